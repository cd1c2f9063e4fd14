package traffic

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B32: a client that uses a source port again, while IPVS still remembers the connection that it closed, waits
// for nothing and is scheduled anew; also when the endpoint of that connection is draining or gone.
func TestB32PortReuse(t *testing.T) {
	s := newStage(t).start()
	svc := web(45)
	a, c := s.w.Pod("pod-a"), s.w.Pod("pod-c")
	s.apply(svc, a, c)
	s.ready(svc)
	for name, cl := range map[string]*lab.Host{"outside": s.w.Client, "pod": s.w.Pod("pod-b").Host} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, family int) {
				to := at(svc, family, 80)
				var took, control []time.Duration
				ask := func() string {
					t.Helper()
					var r lab.Reply
					lab.Eventually(t, soon, "the client itself is done with the port's last connection", func() error {
						if r = cl.Ask(to, lab.FromPort(41000)); errors.Is(r.Err, unix.EADDRNOTAVAIL) {
							return r.Err
						}
						return nil
					})
					if r.Verdict != lab.Answered {
						t.Errorf("port used again: %s; want an answer", r)
					}
					took = append(took, r.Took)
					for range 2 { // of each pod one, so that whose turn it is stays the same
						control = append(control, cl.Ask(to).Took)
					}
					return r.Pod
				}
				s.apply(svc, a, c)
				wantReals(t, s.w.Node(1), to, netip.AddrPortFrom(a.Addr(family), 8080).String()+" 1", netip.AddrPortFrom(c.Addr(family), 8080).String()+" 1")
				byPod := map[string]int{}
				for range 8 {
					byPod[ask()]++
				}
				if byPod["pod-a"] == 0 || byPod["pod-c"] == 0 {
					t.Errorf("8 connections from one port: %v; want them scheduled anew", byPod)
				}
				// The port's last connection is to be pod-a's when that leaves.
				for range 8 {
					if ask() == "pod-a" {
						break
					}
				}
				s.apply(svc, c)
				takesNoMore(t, s.w.Node(1), to, netip.AddrPortFrom(a.Addr(family), 8080))
				for range 4 {
					if pod := ask(); pod != "pod-c" {
						t.Errorf("port used again after pod-a left: answered by %s", pod)
					}
				}
				// Where a kernel drops the first SYN, each of these waits for the client's retransmission, 1 s. A machine
				// that stands still for a moment delays some, and one that is busy all; so the control, each time after it, is
				// a request from a port that was not used before.
				again, fresh := median(took), median(control)
				if again > fresh+500*time.Millisecond {
					t.Errorf("port used again: answers after %v, half of them after more than %s; from fresh ports %s", took, again, fresh)
				}
			})
		})
	}
}

func median(list []time.Duration) time.Duration {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}
