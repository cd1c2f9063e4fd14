# make help lists the targets. Each sets up what it needs: packages with apt-get, Go where it is missing.
.DEFAULT_GOAL := help
SHELL := /bin/sh

# Go is found or installed when a target needs it, and only then; a target ends where there is none to be had.
FIND_GO = GO=$$(hack/go.sh) || exit 1; export GO
WITH_GO = $(FIND_GO); $$GO
# Not LAB: that is the lab's own variable, which make would hand on with our value.
RUN_LAB = @hack/lab.sh

# What git says of the tree; a source archive has none, so there it is given: make image VERSION=v1.2.3
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo development)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the agent: bin/ipvs-proxy
	CGO_ENABLED=0; export CGO_ENABLED; $(WITH_GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ipvs-proxy ./cmd/ipvs-proxy

# The commit; empty in a source archive.
REVISION = $(shell git rev-parse HEAD 2>/dev/null)

# A module of its own, so that none of what it needs is among the agent's modules.
RELEASE = $(WITH_GO) run -C hack/release

.PHONY: image
image: ## build the image, amd64 and arm64: bin/image (OCI layout), bin/image.tar (the same as OCI archive), bin/image.cdx.json (SBOM)
	mkdir -p bin
	$(RELEASE) ./image --source $(CURDIR) --version $(VERSION) --revision '$(REVISION)' --layout $(CURDIR)/bin/image --archive $(CURDIR)/bin/image.tar --sbom $(CURDIR)/bin/image.cdx.json

.PHONY: image-twice
image-twice: image ## build the image again, of a copy elsewhere and with nothing cached, and compare
	set -e; d=$$(mktemp -d); trap 'rm -rf "$$d"' EXIT; cp -R cmd pkg go.mod go.sum "$$d"; $(FIND_GO); \
	$$GO build -C hack/release -o "$$d/pack" ./image; \
	GOCACHE="$$d/cache" "$$d/pack" --source "$$d" --version $(VERSION) --revision '$(REVISION)' --layout "$$d/image" --archive "$$d/image.tar"; \
	cmp bin/image.tar "$$d/image.tar"

.PHONY: release
release: ## all that a release needs, in dist/: make release VERSION=v1.2.3 IMAGE=registry.example.com/ipvs-proxy
	$(RELEASE) ./release --source $(CURDIR) --version '$(VERSION)' --image '$(IMAGE)' --out $(CURDIR)/dist

.PHONY: push
push: ## hand the release's image on to its registry, with what is attached; log in by docker login before
	$(RELEASE) ./push --archive $(CURDIR)/dist/ipvs-proxy-$(VERSION)-image.tar --image '$(IMAGE)'

.PHONY: demo
demo: ## show the main job working: Services through a real kernel
	@echo 'ipvs-proxy demo: three nodes, a client outside and their Services on a kernel with IPVS, in ten scenes.'
	@echo 'It takes half a minute; the first time some minutes more, for what it needs (Go, and QEMU and a kernel'
	@echo 'where this machine has no IPVS), and one scene and two minutes more where make compare has compiled kube-proxy.'
	@echo 'Nothing of it stays on this machine but packages and a cache.'
	$(RUN_LAB) demo

.PHONY: transcript
transcript: ## run the demo and keep what it prints in docs/demo.txt
	@hack/lab.sh demo >docs/demo.txt.new && mv docs/demo.txt.new docs/demo.txt

.PHONY: demo-shell
demo-shell: ## the demo's world, and you at a shell of one of its nodes
	$(RUN_LAB) demo --shell

.PHONY: test
test: ## all checks: vet, unit tests with -race, and the kernel tests on a kernel with IPVS
	$(RUN_LAB) test $(if $(CI),--fail-on-skip)

# Helm's library takes minutes to compile, so this is no part of make test, which compares the file with the manifests.
.PHONY: chart
chart: ## test the chart by Helm's own library, and write anew what it renders to
	$(WITH_GO) test -C hack/chart -count=1 ./... -update

# Prometheus takes some minutes to compile the first time, so this is no part of make test, which compares the names.
.PHONY: monitoring
monitoring: ## test alerts and dashboard by Prometheus' own library, and write the dashboard anew
	$(WITH_GO) test -C hack/monitoring -count=1 . -update
	cp manifests/monitoring/dashboard.json manifests/chart/files/dashboard.json
	sed '1,/^spec:$$/d; s/^  //' manifests/monitoring/prometheusrule.yaml >manifests/chart/files/rules.yaml

.PHONY: kubectl-ipvs
kubectl-ipvs: ## build kubectl's plugin, bin/kubectl-ipvs, and test it: show, explain and top of a node or of all
	$(WITH_GO) test -C hack/kubectl-ipvs -count=1 ./...
	$(WITH_GO) build -C hack/kubectl-ipvs -o $(CURDIR)/bin/kubectl-ipvs .

.PHONY: test-route
test-route: ## the traffic tests with virtual IPs as local routes instead of addresses
	$(RUN_LAB) test --skip-host --env LAB_AGENT_ARGS=--vip-binding=route

# Another version of Kubernetes: make e2e KUBERNETES=1.37.2 (e2e/programs has a module for each that there is)
RUN_E2E = $(RUN_LAB) e2e $(if $(KUBERNETES),--kubernetes $(KUBERNETES))

.PHONY: e2e
e2e: ## the tests with a real control plane; the first time compiles Kubernetes, etcd and CoreDNS
	$(RUN_E2E) --verbose

# Three machines with kernels of their own. Wants 12 GB of memory; without KVM each command takes long.
RUN_VAGRANT = $(WITH_GO) run -C e2e/vagrant .

.PHONY: vagrant-box
vagrant-box: ## make the machines' box, of Debian's packages, for Vagrant's provider libvirt
	$(RUN_VAGRANT) box

.PHONY: vagrant-up
vagrant-up: ## a cluster of three machines: kubeadm, kube-proxy in mode ipvs, flannel; the first time compiles Kubernetes
	$(RUN_VAGRANT) up

.PHONY: vagrant-test
vagrant-test: ## in that cluster: the guide's own commands, there and back, and stories with real pods; then docs/clusters.md
	$(RUN_VAGRANT) test; s=$$?; $$GO run -C e2e/vagrant . page >docs/clusters.md.new && mv docs/clusters.md.new docs/clusters.md && exit $$s

.PHONY: vagrant-down
vagrant-down: ## remove the machines
	$(RUN_VAGRANT) down

# Its tests have a build tag of their own: they need kube-proxy, which is compiled the first time.
.PHONY: takeover
takeover: ## take nodes over from kube-proxy itself and give them back, under load
	$(RUN_E2E) --build --only kube-proxy
	GOFLAGS=-tags=kubeproxy; export GOFLAGS; hack/lab.sh test --skip-host $(if $(KUBERNETES),--kube-proxy $(KUBERNETES)) --run '^(TestB54TakeOverFromKubeProxy|TestB54AdoptsThousand|TestB58WayBack|TestF26KubeProxyComesBack|TestB73DiffBesideKubeProxy)$$'

.PHONY: compare
compare: ## the agent beside each of kube-proxy's modes with a thousand Services: how long until they answer
	$(RUN_E2E) --build --only kube-proxy
	GOFLAGS=-tags=kubeproxy; export GOFLAGS; hack/lab.sh test --skip-host $(if $(KUBERNETES),--kube-proxy $(KUBERNETES)) --run '^TestCompareWithKubeProxy$$' --verbose --timeout 3h

.PHONY: attacks
attacks: ## try the table of attacks on kube-proxy itself: what it gets there
	$(RUN_LAB) e2e --build --only kube-proxy
	GOFLAGS=-tags=kubeproxy; export GOFLAGS; hack/lab.sh test --skip-host --run '^TestAttacksOnKubeProxy'

.PHONY: memory
memory: ## measure the memory of the agent and of kube-proxy with 5,000 Services from a real API server
	$(RUN_E2E) --memory

.PHONY: record-kube-proxy
record-kube-proxy: ## record what the real kube-proxy serves over HTTP, for the tests that compare
	$(RUN_E2E) --record

# A kernel takes some 20 min. One that the mirrors have no more fails this target, never make test.
.PHONY: test-kernels
test-kernels: ## the kernel tests on Linux 5.10, 6.1, 6.12 and 7.2, and the conformance page from what they come to
	$(RUN_LAB) kernels; s=$$?; $(WITH_GO) run ./e2e/conformance && $$GO run ./e2e/pictures && exit $$s

.PHONY: conformance
conformance: ## renew docs/conformance.md and docs/proof.svg from the last results
	$(WITH_GO) run ./e2e/conformance && $$GO run ./e2e/pictures

# Some minutes on an emulated machine; with fewer it is faster: make scheduling-pictures REQUESTS=2000
REQUESTS = 10000
.PHONY: scheduling-pictures
scheduling-pictures: ## measure what the pictures of docs/scheduling.md show, and draw them
	$(RUN_LAB) test --skip-host --run '^(TestB70SpreadPicture|TestB71CanaryPicture|TestB71SlowStartPicture|TestB70ClientsPicture)$$' --env LAB_PICTURES=$(REQUESTS) --results e2e/pictures/measured
	$(WITH_GO) run ./e2e/pictures --scheduling

.PHONY: proportion
proportion: ## count what a change writes to the kernel with 10, 1,000 and 10,000 Services
	$(RUN_LAB) test --skip-host --run '^TestProportion$$' --env LAB_PROPORTION=10000

.PHONY: bench
bench: ## count the instructions that the agent's work costs, on a machine whose clock counts them
	$(RUN_LAB) bench

.PHONY: performance
performance: ## count what packets cost, and write docs/performance.md from it
	$(RUN_LAB) bench --results e2e/bench/result.json -- --only packets --sizes 1,1000,5000
	$(WITH_GO) run ./e2e/bench --page e2e/bench/result.json >docs/performance.md.new && mv docs/performance.md.new docs/performance.md

.PHONY: asking
asking: ## count what questions to an agent with 10,000 Services cost, and write docs/performance.md from it
	$(RUN_LAB) bench --timeout 90m --results e2e/bench/result.json -- --only asking
	$(WITH_GO) run ./e2e/bench --page e2e/bench/result.json >docs/performance.md.new && mv docs/performance.md.new docs/performance.md

FUZZ = ipvs.FuzzDiff sync.FuzzCompile cluster.FuzzDirectoryFile config.FuzzFile ipvs/kernel.FuzzProcIPVS ipvs/kernel.FuzzNetlinkMessages

# Minimising may take a minute for each input that finds something new, which is the minute that there is.
.PHONY: fuzz
fuzz: ## run each fuzz target for a minute
	set -e; $(FIND_GO); for f in $(FUZZ); do \
		$$GO test ./pkg/$${f%%.*} -run '^$$' -fuzz "^$${f##*.}$$" -fuzztime 1m -fuzzminimizetime 10x; done

# What passed with the same agent, lab and test is kept: a run that was cut off goes on where it was. ONLY=F20 TestF6
.PHONY: faults
faults: ## run the long forms of the tests of docs/reliability.md, an hour or two, and renew the page
	$(WITH_GO) run ./e2e/faults/run $(ONLY); s=$$?; $$GO test ./e2e/conformance -count=1 -run '^TestReliabilityPage$$' -update && exit $$s

# Another first history: make soak SEED=1000001; 0: another one each time.
SEED = 1
.PHONY: soak
soak: ## walk a million random histories on a kernel that only remembers
	$(WITH_GO) test -count=1 -timeout 12h ./pkg/sync -run '^TestModel$$' -v -model.sequences=1000000 -model.seed=$(SEED)

# Another first cluster: make soak-packets SEED=1001; fewer of them: CLUSTERS=100
CLUSTERS = 500
.PHONY: soak-packets
soak-packets: ## hold what explain says of packets against packets, in 500 random clusters on a live kernel
	$(RUN_LAB) test --skip-host --run '^TestB73RandomPacketsAreTrue$$' --verbose --timeout 3h --env LAB_PACKET_CLUSTERS=$(CLUSTERS) --env LAB_PACKET_SEED=$(SEED)

# It wants Chromium, and so is no part of make test. BROWSER=/path/to/it takes another one.
WITH_BROWSER = BROWSER=$$(hack/browser.sh) || exit 1; export BROWSER

.PHONY: browser
browser: ## test the status page in a real browser, with 10,000 Services: by keyboard, light and dark, on a phone
	$(WITH_BROWSER); $(WITH_GO) test -C e2e/browser -count=1 -v ./...

.PHONY: screenshots
screenshots: ## take the pictures of docs/status-page.md anew
	$(WITH_BROWSER); $(WITH_GO) run -C e2e/browser ./cmd/screenshots --to $(CURDIR)/docs

.PHONY: mutants
mutants: ## take one behaviour out at a time and require that its test fails
	$(WITH_GO) run ./e2e/mutants

.PHONY: lint
lint: ## staticcheck
	$(WITH_GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
	$(WITH_GO) run -C hack/release honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
	$(WITH_GO) run -C hack/chart honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
	$(WITH_GO) run -C hack/monitoring honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
	$(WITH_GO) run -C hack/kubectl-ipvs honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
	$(WITH_GO) run -C e2e/browser honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

.PHONY: vuln
vuln: ## govulncheck, with the vulnerability database or, where its host cannot be reached, its module
	$(WITH_GO) run ./hack/vuln
