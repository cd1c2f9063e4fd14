package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

// here is the directory of this package, below the root of the repository.
const here = "e2e/vagrant"

// cluster is the machines and what was made for them.
type cluster struct {
	root     string // of the repository
	dir      string // of what is kept between runs
	out      io.Writer
	programs map[string]string
	record   *record

	api kubernetes.Interface
}

// errDone is what a step comes to that an earlier run has done: how long it takes is not seen.
var errDone = errors.New("done before")

// step does one thing that takes its time, says so, and notes how long it took.
func (c *cluster) step(what string, do func() error) error {
	fmt.Fprintf(c.out, "%s: ", what)
	start := time.Now()
	err := do()
	took := time.Since(start)
	if errors.Is(err, errDone) {
		fmt.Fprintln(c.out, err)
		return nil
	}
	if err != nil {
		fmt.Fprintf(c.out, "failed after %s\n", took.Round(100*time.Millisecond))
		return fmt.Errorf("%s: %w", what, err)
	}
	fmt.Fprintf(c.out, "%s\n", took.Round(100*time.Millisecond))
	return c.record.step(what, took)
}

// up brings the cluster up as far as it is not: machines, kubeadm's cluster with kube-proxy in mode ipvs, the pods' network.
func (c *cluster) up(ctx context.Context) error {
	if err := c.startMachines(ctx); err != nil {
		return err
	}
	if err := c.serve(ctx); err != nil {
		return err
	}
	script, err := os.ReadFile(filepath.Join(c.root, here, "node.sh"))
	if err != nil {
		return err
	}
	for _, m := range nodes {
		if err := c.step(m+" made ready for kubeadm", func() error {
			// The script's own lines come by the standard input, so its arguments are set first.
			whole := fmt.Sprintf("set -- http://%s/bin http://%s %s\n%s", hostAddress, hostAddress, addresses[m], script)
			sum := sha256.Sum256([]byte(whole))
			done := "/var/lib/ipvs-proxy-vagrant-" + hex.EncodeToString(sum[:8])
			if _, err := c.on(ctx, m, "test -e "+done); err == nil {
				return errDone
			}
			_, err := c.on(ctx, m, whole+"\ntouch "+done+"\n")
			return err
		}); err != nil {
			return err
		}
	}
	init, what, joining := c.init, "kubeadm init", nodes[1:]
	if emulated() {
		init, what, joining = c.initBeside, "control plane beside the machines", nodes
	}
	if err := c.step(what, func() error { return init(ctx) }); err != nil {
		return err
	}
	if err := c.connect(ctx); err != nil {
		return err
	}
	for _, m := range joining {
		if err := c.step("kubeadm join of "+m, func() error { return c.join(ctx, m) }); err != nil {
			return err
		}
	}
	if emulated() {
		if err := c.besides(ctx); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		what  string
		do    func(context.Context) error
		ready func(context.Context) error
	}{
		{"flannel, until all nodes are ready", c.network, c.nodesReady},
		{"CoreDNS ready", c.dnsReady, c.dnsThere},
	} {
		if err := c.step(s.what, func() error {
			if s.ready(ctx) == nil {
				return errDone
			}
			return s.do(ctx)
		}); err != nil {
			return err
		}
	}
	return c.describe(ctx)
}

// init has kubeadm make the cluster on the master, unless it did.
func (c *cluster) init(ctx context.Context) error {
	if _, err := c.on(ctx, master, "test -e /etc/kubernetes/kubeadm-done"); err == nil {
		return errDone
	}
	config, err := c.kubeadmConfig(nodesPKI)
	if err != nil {
		return err
	}
	_, err = c.on(ctx, master, "cat >/root/kubeadm.yaml <<'EOF'\n"+config+"EOF\n"+
		"kubeadm reset -f >/dev/null 2>&1 </dev/null || true\n"+
		"kubeadm init --config /root/kubeadm.yaml >/root/kubeadm.log 2>&1 </dev/null || { tail -n 40 /root/kubeadm.log; exit 1; }\n"+
		"touch /etc/kubernetes/kubeadm-done\n")
	return err
}

// kubeadmConfig is kubeadm's configuration, with certificates in a directory.
func (c *cluster) kubeadmConfig(pki string) (string, error) {
	text, err := os.ReadFile(filepath.Join(c.root, here, "kubeadm.yaml"))
	return strings.NewReplacer("VERSION", "v"+programs.Default, "ETCD", etcdTag, "COREDNS", coreDNSTag,
		"ADDRESS", planeAddress(), "PKI", pki).Replace(string(text)), err
}

var joinHash = regexp.MustCompile(`--token (\S+) --discovery-token-ca-cert-hash (\S+)`)

// join has kubeadm take a machine in, unless it did.
func (c *cluster) join(ctx context.Context, machine string) error {
	if _, err := c.on(ctx, machine, "test -e /etc/kubernetes/kubeadm-done"); err == nil {
		return errDone
	}
	var said string
	var err error
	if emulated() {
		var out []byte
		out, err = run(exec.CommandContext(ctx, c.programs[programs.Kubeadm], "token", "create", "--print-join-command", "--kubeconfig", c.plane("super-admin.conf")))
		said = string(out)
	} else {
		said, err = c.on(ctx, master, "kubeadm token create --print-join-command")
	}
	if err != nil {
		return err
	}
	m := joinHash.FindStringSubmatch(said)
	if m == nil {
		return fmt.Errorf("kubeadm's join command %q has no token and hash", said)
	}
	_, err = c.on(ctx, machine, fmt.Sprintf(`cat >/root/join.yaml <<'EOF'
apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery:
  bootstrapToken: {token: %s, apiServerEndpoint: "%s:6443", caCertHashes: ["%s"]}
nodeRegistration: {criSocket: "unix:///run/containerd/containerd.sock"}
timeouts: {kubeletHealthCheck: 15m0s, kubernetesAPICall: 10m0s, tlsBootstrap: 15m0s, discovery: 15m0s}
EOF
kubeadm reset -f >/dev/null 2>&1 </dev/null || true
kubeadm join --config /root/join.yaml >/root/kubeadm.log 2>&1 </dev/null || { tail -n 40 /root/kubeadm.log; exit 1; }
touch /etc/kubernetes/kubeadm-done
`, m[1], planeAddress(), m[2]))
	return err
}

// kubeconfig is the administrator's, which kubeadm made.
func (c *cluster) kubeconfig() string { return filepath.Join(c.dir, "admin.conf") }

// connect gets the administrator's way to the API server.
func (c *cluster) connect(ctx context.Context) error {
	text, err := c.adminConf(ctx)
	if err == nil {
		err = os.WriteFile(c.kubeconfig(), []byte(text), 0o600)
	}
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig())
	if err != nil {
		return err
	}
	config.Timeout, config.QPS, config.Burst = 2*time.Minute, 100, 100
	c.api, err = kubernetes.NewForConfig(config)
	return err
}

// adminConf is the kubeconfig where kubeadm has put it.
func (c *cluster) adminConf(ctx context.Context) (string, error) {
	if !emulated() {
		return c.on(ctx, master, "cat /etc/kubernetes/admin.conf")
	}
	if err := c.startPlane(ctx); err != nil {
		return "", err
	}
	text, err := os.ReadFile(c.plane("super-admin.conf"))
	return string(text), err
}

// kubectl runs it here, as the administrator, in a directory.
func (c *cluster) kubectl(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.programs[programs.Kubectl], args...)
	cmd.Dir, cmd.Env = dir, c.environment()
	out, err := run(cmd)
	return string(out), err
}

// environment is that of an administrator's shell.
func (c *cluster) environment() []string {
	return append(os.Environ(), "KUBECONFIG="+c.kubeconfig(), "PATH="+filepath.Join(c.dir, "bin")+":"+os.Getenv("PATH"))
}

// network installs flannel, and waits for what every node needs it for.
func (c *cluster) network(ctx context.Context) error {
	text, err := os.ReadFile(filepath.Join(c.root, here, "flannel.yaml"))
	if err != nil {
		return err
	}
	if _, err := c.follow(ctx, "kubectl apply -f - <<'EOF'\n"+string(text)+"EOF\n", "ADDRESS", planeAddress()); err != nil {
		return err
	}
	return until(ctx, 30*time.Minute, "all nodes are ready", func() error { return c.nodesReady(ctx) })
}

func (c *cluster) nodesReady(ctx context.Context) error {
	var errs []error
	for _, n := range nodes {
		errs = append(errs, c.nodeReady(ctx, n))
	}
	return errors.Join(errs...)
}

func (c *cluster) dnsThere(ctx context.Context) error {
	return c.deploymentThere(ctx, "kube-system", "coredns")
}
func (c *cluster) dnsReady(ctx context.Context) error {
	return c.deploymentReady(ctx, "kube-system", "coredns")
}
