package controlplane

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// How large the cluster is in which memory is measured.
const (
	memoryServices  = 5000
	memoryEndpoints = 10
)

// resident is what the kernel counts of a process: all, its peak, and the part that is not a file's.
type resident struct{ rss, peak, anon int } // KiB

func (r resident) String() string {
	return fmt.Sprintf("resident %.1f MiB (%.1f MiB without files), peak %.1f MiB", mib(r.rss), mib(r.anon), mib(r.peak))
}

func mib(kib int) float64 { return float64(kib) / 1024 }

// P6: with 5,000 Services of 10 endpoints each, read from the real API server, the agent needs at most half of the
// memory of kube-proxy in ipvs mode, resident a minute after its work is done, and at the peak.
func TestMemory(t *testing.T) {
	s := newStage(t, 1)
	s.proxyAccount()
	began := time.Now()
	s.switchPlane(http.MethodPost, fmt.Sprintf("/seed?services=%d&endpoints=%d", memoryServices, memoryEndpoints), nil)
	t.Logf("%d Services with %d endpoints each made in %s", memoryServices, memoryEndpoints, time.Since(began).Round(time.Second))
	n := s.w.Node(1)
	source := []string{"--kubeconfig", s.kubeconfig("kube-system", "kube-proxy", s.server())}
	agent := s.measure(n, "the agent", s.w.StartAgentOf(t, n, source))
	s.clear(n)
	theirs := s.measure(n, "kube-proxy", s.startKubeProxy(n))
	for _, c := range []struct {
		what         string
		ours, theirs int
	}{{"resident", agent.rss, theirs.rss}, {"peak", agent.peak, theirs.peak}} {
		share := float64(c.ours) / float64(c.theirs)
		t.Logf("%s: %.2f of kube-proxy's", c.what, share)
		if share > 0.5 {
			t.Errorf("%s: the agent has %.1f MiB, more than half of kube-proxy's %.1f MiB", c.what, mib(c.ours), mib(c.theirs))
		}
	}
}

// measure waits until a proxy has programmed the cluster and for another minute, and ends it.
func (s *stage) measure(n *lab.Node, name string, a *lab.Agent) resident {
	s.t.Helper()
	began := time.Now()
	lab.Eventually(s.t, 20*time.Minute, name+" programs the cluster", func() error {
		if !a.Running() {
			s.t.Fatalf("%s ended:\n%s", name, a.Log())
		}
		time.Sleep(5 * time.Second) // reading all of it costs the machine more than a second
		servers, err := n.VirtualServers()
		if err != nil {
			return err
		}
		whole := 0
		for _, v := range servers {
			if len(v.Reals) == memoryEndpoints {
				whole++
			}
		}
		if whole < memoryServices {
			return fmt.Errorf("%d of %d Services", whole, memoryServices)
		}
		return nil
	})
	took := time.Since(began)
	time.Sleep(time.Minute) // P6 says when it is measured
	r, err := memoryOf(a.Pid())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("%s: %s; programmed after %s", name, r, took.Round(time.Second))
	if err := a.Kill(); err != nil {
		s.t.Fatal(err)
	}
	return r
}

func memoryOf(pid int) (r resident, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return r, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		for key, to := range map[string]*int{"VmRSS:": &r.rss, "VmHWM:": &r.peak, "RssAnon:": &r.anon} {
			if len(f) > 1 && f[0] == key {
				if *to, err = strconv.Atoi(f[1]); err != nil {
					return r, err
				}
			}
		}
	}
	if r.rss == 0 || r.peak == 0 || r.anon == 0 {
		return r, fmt.Errorf("no figures in %s", b)
	}
	return r, nil
}

// clear empties the node's kernel, so that the next proxy begins with nothing.
func (s *stage) clear(n *lab.Node) {
	s.t.Helper()
	err := n.Do(func() error {
		h, err := lab.OpenIPVS()
		if err != nil {
			return err
		}
		defer h.Close()
		return h.Flush()
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := n.DelLink("kube-ipvs0"); err != nil {
		s.t.Fatal(err)
	}
	s.nft(n.Host, "flush ruleset")
}
