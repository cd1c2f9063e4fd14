//go:build kubeproxy

package traffic

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B73: beside a kube-proxy at work, in each of its modes, diff says whose kernel it is and what would be taken out, and
// writes nothing. In mode ipvs all virtual and real servers stay as they are, and no Service behaves otherwise.
func TestB73DiffBesideKubeProxy(t *testing.T) {
	program := kubeProxyProgram(t)
	for _, mode := range []string{"ipvs", "iptables", "nftables"} {
		if !hasMode(t, mode) {
			continue
		}
		t.Run(mode, func(t *testing.T) {
			_, k := takenStage(t)
			k.start(program, mode)
			k.serves()
			k.wrote(mode)
			d, text := k.diffed()
			if d.Kernel != "kube-proxy" || d.Agent || d.Leftovers == nil || d.Leftovers.Mode != mode || len(d.Leftovers.Writes) == 0 {
				t.Errorf("the kernel is %s's, an agent %t, %+v", d.Kernel, d.Agent, d.Leftovers)
			}
			if mode == "ipvs" {
				servers := len(virtualServers(t, k.n))
				wantCounts(t, d, "virtual servers", servers, 0, 0, 0)
				wantCounts(t, d, "real servers", 2*servers, 0, 0, 0)
			}
			if len(d.Services) != 0 {
				t.Errorf("these behave otherwise: %+v", d.Services)
			}
			t.Log("\n" + text)
		})
	}
}

// diffed is what diff says beside a kube-proxy, which writes at times: in one of several tries the kernel is the same
// before and after.
func (k *kubeProxy) diffed() (d diffReport, text string) {
	k.t.Helper()
	var err error
	for range 5 {
		before := kernelState(k.t, k.n)
		out, stderr, exit := k.n.Command(k.t, 0, k.s.diffArgs(k.n, "-o", "json")...)
		text, _, _ = k.n.Command(k.t, 0, k.s.diffArgs(k.n)...)
		if after := kernelState(k.t, k.n); after != before {
			err = fmt.Errorf("the kernel is\n%s\nwas\n%s", after, before)
			continue
		}
		d = diffReport{}
		if err := json.Unmarshal([]byte(out), &d); err != nil || exit != 1 || stderr != "" {
			k.t.Fatalf("exit status %d, %v:\n%s%s", exit, err, out, stderr)
		}
		return d, text
	}
	k.t.Fatalf("each time: %v", err)
	return d, text
}

// B54: a node with a thousand Services comes from mode ipvs: of virtual servers, real servers and addresses, all of which
// are right, the agent writes none. The control is another node, on which kube-proxy never was.
func TestB54AdoptsThousand(t *testing.T) {
	const services = 1000
	program := kubeProxyProgram(t)
	s := newStage(t)
	n, b, c := s.w.Node(1), s.w.Pod("pod-b"), s.w.Pod("pod-c")
	sample := s.applyMany(services, b, c)
	k := &kubeProxy{t: t, s: s, n: n}
	p := k.start(program, "ipvs", "--v=4")
	// Its log is asked, not the kernel, and for as long as it takes: reading a thousand virtual servers again and again would
	// leave an emulated kube-proxy, which starts a program for each of its ipset's entries, little of the processor.
	lab.Eventually(t, 30*time.Minute, "kube-proxy has made them all", func() error {
		if n := strings.Count(p.Log(), "syncProxyRules complete"); n < 2 {
			return fmt.Errorf("it has written all of %d families", n)
		}
		return nil
	})
	if have, rules := len(virtualServers(t, n)), k.rules(); have < services || !strings.Contains(rules, "KUBE-CLUSTER-IP") {
		t.Fatalf("%d virtual servers, and rules:\n%s", have, rules)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	before := virtualServers(t, n)
	for _, node := range []*lab.Node{n, s.w.Node(2)} {
		agent := s.w.StartAgent(t, node, s.cluster)
		programmed(t, agent)
		writes := 0.0
		for _, op := range []string{"add_virtual_server", "set_virtual_server", "delete_virtual_server", "add_real_server", "set_real_server", "delete_real_server", "bind_address", "unbind_address"} {
			writes += metric(t, node, `ipvsproxy_kernel_writes_total{operation="`+op+`"}`)
		}
		took := between(t, agent.Log(), "starting", "all Services are programmed")
		t.Logf("%s: %.0f writes to IPVS and addresses, %.0f elements, all Services programmed after %s", node.Name, writes, metric(t, node, `ipvsproxy_kernel_writes_total{operation="add_element"}`), took)
		for _, to := range sample {
			answers(t, node.Host, to)
		}
		if open := strings.Count(nftList(t, node, "set inet ipvs-proxy open4"), " . tcp . 80"); open != services {
			t.Errorf("%s: %d frontends are open", node.Name, open)
		}
		if adopted := node == n; adopted != (writes == 0) {
			t.Errorf("%s: %.0f writes to IPVS and addresses", node.Name, writes)
		}
	}
	if after := virtualServers(t, n); !slices.Equal(before, after) {
		t.Errorf("%d virtual servers, were %d", len(after), len(before))
	}
}

// between is the time from one line of a log to another.
func between(t *testing.T, log, from, to string) time.Duration {
	t.Helper()
	at := func(what string) time.Time {
		for line := range strings.Lines(log) {
			stamp, rest, _ := strings.Cut(line, "\t")
			if strings.Contains(rest, what) {
				found, err := time.Parse("2006-01-02T15:04:05.000Z", stamp)
				if err != nil {
					t.Fatal(err)
				}
				return found
			}
		}
		t.Fatalf("the log has no %q", what)
		return time.Time{}
	}
	return at(to).Sub(at(from))
}
