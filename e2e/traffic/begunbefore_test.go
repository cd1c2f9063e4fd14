package traffic

import (
	"fmt"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// unanswered counts the entries of a node's connection table of TCP connections to a frontend that the frontend's own
// address is to answer, and did not.
func unanswered(t *testing.T, n *lab.Node, to netip.AddrPort) (found int) {
	t.Helper()
	family := netlink.InetFamily(unix.AF_INET)
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	if err := n.Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		for _, f := range flows {
			dst, _ := netip.AddrFromSlice(f.Forward.DstIP)
			src, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
			if f.Forward.Protocol == unix.IPPROTO_TCP && f.Forward.DstPort == to.Port() && dst.Unmap() == to.Addr() && src.Unmap() == to.Addr() && f.Reverse.Packets == 0 {
				found++
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// B83: a client begins a connection before there is the Service, and tries again as TCP does: it is served at its next
// SYN, from a pod, the node and outside, by a ClusterIP and by a load balancer's address. The trap is set: the node tracks these
// connections as going elsewhere. What a process of the node serves on the number of a node port goes on.
func TestB83BegunBefore(t *testing.T) {
	for _, binding := range []string{"address", "route"} {
		t.Run("binding "+binding, func(t *testing.T) {
			s := newStage(t).start("--vip-binding=" + binding)
			svc, n := balanced(web(83), 83), s.w.Node(1)
			if _, err := n.ServeLines("daemon", svc.Ports[0].NodePort); err != nil {
				t.Fatal(err)
			}
			s.silent(svc)
			type attempt struct {
				name  string
				reply chan lab.Reply
			}
			var attempts []attempt
			var kept []*lab.Kept
			for _, family := range []int{4, 6} {
				k, err := s.w.Client.StartKept(netip.AddrPortFrom(n.Addr(family), svc.Ports[0].NodePort), 100*time.Millisecond)
				if err != nil {
					t.Fatal(err)
				}
				kept = append(kept, k)
				for _, to := range []netip.AddrPort{at(svc, family, 80), netip.AddrPortFrom(balancerAddr(svc, family), 80)} {
					for _, c := range s.clients() {
						a := attempt{fmt.Sprintf("%s asks %s", c.name, to), make(chan lab.Reply, 1)}
						attempts = append(attempts, a)
						go func() { a.reply <- c.Ask(to, lab.Timeout(soon)) }()
					}
					lab.Eventually(t, soon, fmt.Sprintf("connections to %s have begun", to), func() error {
						if got := unanswered(t, n, to); got != 3 {
							return fmt.Errorf("%d are tracked", got)
						}
						return nil
					})
				}
			}
			s.applyAtOnce(svc, s.w.Pod("pod-c"))
			for _, a := range attempts {
				if r := <-a.reply; r.Pod != "pod-c" {
					t.Errorf("%s: %s", a.name, r)
				} else {
					t.Logf("%s: %s", a.name, r)
				}
			}
			for _, k := range kept {
				before := k.Report().Answered
				lab.Eventually(t, soon, "the daemon's connection goes on", func() error {
					if r := k.Report(); r.Err == nil && r.Answered < before+5 {
						return fmt.Errorf("%s", r)
					}
					return nil
				})
				if r := k.Stop(); r.Err != nil {
					t.Errorf("the daemon's connection: %s", r)
				}
			}
		})
	}
}

// B83, at any moment: clients try again all the time while the Service comes, before its virtual server is there, while
// it is, and until the entries that bypass it are deleted, which is up to 1 s later. Each is served by a connection that lasts,
// at the ClusterIP and at a load balancer's address: one after the other, for a client's port at both would be a limit (B88).
func TestB83BegunMeanwhile(t *testing.T) {
	t.Run("ClusterIP", func(t *testing.T) {
		begunMeanwhile(t, func(svc lab.Service, family int) netip.AddrPort { return at(svc, family, 80) })
	})
	t.Run("load balancer", func(t *testing.T) {
		begunMeanwhile(t, func(svc lab.Service, family int) netip.AddrPort {
			return netip.AddrPortFrom(balancerAddr(svc, family), 80)
		})
	})
}

// begunMeanwhile has clients begin before there is the Service. They come from outside, so that they are masqueraded, and to
// a pod of the node that they come through, so that its answer passes there whether they are or not.
func begunMeanwhile(t *testing.T, frontend func(lab.Service, int) netip.AddrPort) {
	const (
		perFamily = 40
		apart     = 50 * time.Millisecond // TCP tries again after 1, 3, 7 s: together these have no gap before the tenth second but from 5 to 7
		lines     = 30
		port      = 7085
	)
	s := newStage(t).start()
	svc, pod := balanced(web(85), 85), s.w.Pod("pod-b")
	svc.Ports[0].TargetPort = port
	if _, err := pod.ServeLines(pod.Name, port); err != nil {
		t.Fatal(err)
	}
	s.silent(svc)
	type outcome struct {
		to   netip.AddrPort
		kept *lab.Kept
		err  error
	}
	outcomes := make(chan outcome, 2*perFamily)
	pace := time.NewTicker(apart)
	defer pace.Stop()
	for range perFamily {
		for _, family := range []int{4, 6} {
			go func() {
				to := frontend(svc, family)
				k, err := s.w.Client.StartKept(to, 100*time.Millisecond)
				outcomes <- outcome{to, k, err}
			}()
		}
		<-pace.C
	}
	for _, family := range []int{4, 6} {
		lab.Eventually(t, soon, "the connections have begun", func() error {
			if got := unanswered(t, s.w.Node(1), frontend(svc, family)); got != perFamily {
				return fmt.Errorf("IPv%d: %d are tracked", family, got)
			}
			return nil
		})
	}
	// The look for such entries comes at most once a second: after another Service's this one's takes its time.
	v4, v6 := s.w.SlicesFor(svc, pod)
	other := web(86)
	if err := s.cluster.Apply(v4, v6, other); err != nil {
		t.Fatal(err)
	}
	wantHas(t, s.w.Node(1), frontends(other)...)
	if err := s.cluster.Apply(svc); err != nil {
		t.Fatal(err)
	}
	for range 2 * perFamily {
		is := <-outcomes
		if is.err != nil {
			t.Errorf("%s: %v", is.to, is.err)
			continue
		}
		lab.Eventually(t, soon, "the connection goes on", func() error {
			if r := is.kept.Report(); r.Err == nil && r.Answered < lines {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
		if r := is.kept.Stop(); r.Err != nil {
			t.Errorf("%s: %s", is.to, r)
		}
	}
}

// applyAtOnce has the endpoints there before the Service is: at no moment is it one without endpoints, which is refused.
func (s *stage) applyAtOnce(svc lab.Service, pods ...*lab.Pod) {
	s.t.Helper()
	v4, v6 := s.w.SlicesFor(svc, pods...)
	if err := s.cluster.Apply(v4, v6); err != nil {
		s.t.Fatal(err)
	}
	if err := s.cluster.Apply(svc); err != nil {
		s.t.Fatal(err)
	}
}

// silent has the network drop what is sent to a Service's addresses, where it would say at times that nobody has them: a
// client that hears it gives up.
func (s *stage) silent(svc lab.Service) {
	s.t.Helper()
	for _, family := range []int{4, 6} {
		for _, a := range []netip.Addr{at(svc, family, 80).Addr(), balancerAddr(svc, family)} {
			if err := s.w.Wire.Do(func() error {
				if out, err := exec.Command("ip", "route", "add", "blackhole", a.String()).CombinedOutput(); err != nil {
					return fmt.Errorf("drop what is sent to %s: %w: %s", a, err, out)
				}
				return nil
			}); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}
