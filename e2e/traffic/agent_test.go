package traffic

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	mobyipvs "github.com/moby/ipvs"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// Stopping the agent leaves the kernel as it is, a start on a correct node writes nothing (I5), and what
// changed meanwhile is caught up with. A load runs through all of it.
func TestStopAndStart(t *testing.T) {
	s := newStage(t).start()
	svc, old := web(30), web(31)
	s.apply(svc, s.pods()...)
	s.apply(old, s.w.Pod("pod-c"))
	s.ready(svc)
	s.ready(old)
	load := s.w.Pod("pod-a").StartLoad(at(svc, 4, 80), lab.LoadConfig{Rate: 50})
	stop := func(i int) {
		t.Helper()
		if err := s.agents[i].Stop(); err != nil {
			t.Fatalf("SIGTERM: %v\n%s", err, s.agents[i].Log())
		}
	}
	stop(0)
	again := s.w.StartAgent(t, s.w.Node(1), s.cluster)
	programmed(t, again)
	for _, wrote := range []string{"\tprogrammed\t", "\tnode set up\t"} {
		if strings.Contains(again.Log(), wrote) {
			t.Errorf("a start on a correct node wrote something:\n%s", again.Log())
		}
	}
	if err := again.Stop(); err != nil {
		t.Fatal(err)
	}
	// While no agent runs, a Service goes and another comes.
	v4, v6 := s.w.SlicesFor(old)
	s.cluster.Delete(old, v4, v6)
	fresh := web(32)
	s.apply(fresh, s.w.Pod("pod-c"))
	programmed(t, s.w.StartAgent(t, s.w.Node(1), s.cluster))
	each(t, func(t *testing.T, family int) {
		answers(t, s.w.Node(1).Host, at(fresh, family, 80))
		wantReals(t, s.w.Node(1), at(old, family, 80))
		if bound(t, s.w.Node(1), at(old, family, 80).Addr()) {
			t.Errorf("%s is still bound", at(old, family, 80).Addr())
		}
	})
	if r := load.Stop(); r.Lost > 0 || r.Sent == 0 {
		t.Errorf("load through two restarts: %s", r)
	} else {
		t.Logf("load through two restarts: %s", r)
	}
	wouldNotice(t, s.w.Pod("pod-a").Host, s.w.Node(1), at(svc, 4, 80))
}

// A directory that is suddenly empty or gone is no order to delete (F2).
func TestSourceGoneKeepsServices(t *testing.T) {
	s := newStage(t).start()
	svc := web(33)
	s.apply(svc, s.pods()...)
	s.ready(svc)
	away := filepath.Join(t.TempDir(), "away")
	if err := os.Rename(s.cluster.Dir, away); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, soon, "the agent notices", func() error {
		for _, a := range s.agents {
			if !strings.Contains(a.Log(), s.cluster.Dir+": no such file or directory; the last state stays") {
				return fmt.Errorf("not a word of it in the log:\n%s", a.Log())
			}
		}
		return nil
	})
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			if r := c.Ask(at(svc, family, 80)); r.Verdict != lab.Answered {
				t.Errorf("%s: %s", c.name, r)
			}
		}
	})
	if err := os.Rename(away, s.cluster.Dir); err != nil {
		t.Fatal(err)
	}
	fresh := web(34)
	s.apply(fresh, s.pods()...)
	s.ready(fresh)
}

// An endpoint leaves and another joins while requests go on: none is lost. The control deletes the real
// server at once, as a naive agent would, under the same load.
func TestEndpointReplacedUnderLoad(t *testing.T) {
	s := newStage(t).start()
	svc := web(35)
	a, b, c := s.w.Pod("pod-a"), s.w.Pod("pod-b"), s.w.Pod("pod-c")
	load := func(f func()) lab.LoadReport {
		l := s.w.Client.StartLoad(at(svc, 4, 80), lab.LoadConfig{Rate: 60, Wait: 200 * time.Millisecond, Timeout: 5 * time.Second})
		began := l.Report()
		lab.Eventually(t, soon, "the load runs", func() error {
			if r := l.Report(); r.Answered < began.Answered+30 {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
		f()
		after := l.Report()
		lab.Eventually(t, soon, "the load goes on", func() error {
			if r := l.Report(); r.Answered+r.Lost < after.Answered+after.Lost+60 {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
		return l.Stop()
	}
	addr := func(p *lab.Pod) string { return netip.AddrPortFrom(p.V4, 8080).String() }

	s.apply(svc, a, b)
	s.ready(svc)
	r := load(func() {
		s.apply(svc, b, c)
		wantReals(t, s.w.Node(1), at(svc, 4, 80), addr(a)+" 0", addr(b)+" 1", addr(c)+" 1")
	})
	if r.Lost > 0 || r.ByPod["pod-c"] == 0 {
		t.Errorf("endpoint replaced: %s", r)
	}
	t.Logf("endpoint replaced: %s", r)

	control := load(func() {
		for _, agent := range s.agents {
			if err := agent.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		deleteReal(t, s.w.Node(1), at(svc, 4, 80), netip.AddrPortFrom(b.V4, 8080))
	})
	if control.Lost == 0 {
		t.Errorf("the control, a real server deleted at once, lost nothing: %s", control)
	}
	t.Logf("control: %s", control)
}

// deleteReal deletes a real server as a naive agent would.
func deleteReal(t *testing.T, n *lab.Node, vip, real netip.AddrPort) {
	t.Helper()
	err := n.Do(func() error {
		h, err := lab.OpenIPVS()
		if err != nil {
			return err
		}
		defer h.Close()
		svc := &mobyipvs.Service{AddressFamily: syscall.AF_INET, Protocol: syscall.IPPROTO_TCP, Address: vip.Addr().AsSlice(), Port: vip.Port()}
		return h.DelDestination(svc, &mobyipvs.Destination{AddressFamily: syscall.AF_INET, Address: real.Addr().AsSlice(), Port: real.Port()})
	})
	if err != nil {
		t.Fatalf("delete real server %s of %s: %v", real, vip, err)
	}
}

// What a user gets to see when something is missing: one line that says what, and a status of 1.
func TestClearErrors(t *testing.T) {
	w := lab.New(t)
	dir := w.Cluster(t).Dir
	for _, c := range []struct {
		name string
		uid  uint32
		args []string
		want []string
	}{
		{"not root", 65534, []string{"--source-dir", dir}, []string{"run as root", "CAP_NET_ADMIN"}},
		{"directory missing", 0, []string{"--source-dir", dir + "/nowhere"}, []string{dir + "/nowhere", "no such file or directory"}},
		{"a file for a directory", 0, []string{"--source-dir", dir + "/nodes.yaml"}, []string{dir + "/nodes.yaml", "not a directory"}},
		{"no source", 0, nil, []string{"--source-dir"}},
		{"bad range", 0, []string{"--source-dir", dir, "--cluster-cidr", "10.244.0.0"}, []string{"--cluster-cidr", "10.244.0.0", "10.244.0.0/16"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, stderr, exit := w.Node(1).Command(t, c.uid, append([]string{"run", "--hostname-override", "node1"}, c.args...)...)
			if exit != 1 {
				t.Errorf("ended with status %d, want 1\n%s", exit, stderr)
			}
			lines := strings.Split(strings.TrimSpace(stderr), "\n")
			last := lines[len(lines)-1]
			for _, want := range c.want {
				if !strings.Contains(last, want) {
					t.Errorf("the last line does not say %q: %s", want, last)
				}
			}
		})
	}
}
