package lab

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// The controls of the UDP questions: who answered, refused or silent, and a flow that loses nothing or some.
func TestUDPQuestions(t *testing.T) {
	w := NewWithoutIPVS(t)
	a, c := w.Pod("pod-a"), w.Pod("pod-c")
	stop, err := c.ServeUDP("pod-c", 5353)
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			if r := a.AskUDP(netip.AddrPortFrom(c.Addr(family), 5353)); r.Verdict != Answered || r.Pod != "pod-c" {
				t.Errorf("asked: %s", r)
			}
			if r := a.AskUDP(netip.AddrPortFrom(c.Addr(family), 5354)); r.Verdict != Refused {
				t.Errorf("a closed port: %s, want refused", r)
			}
			nobody := map[int]string{4: "10.244.2.99", 6: "fd10:244:2::99"}[family]
			if r := a.AskUDP(netip.AddrPortFrom(netip.MustParseAddr(nobody), 5353), Timeout(200*time.Millisecond)); r.Verdict != TimedOut {
				t.Errorf("nobody there: %s, want timed out", r)
			}
		})
	}
	to := netip.AddrPortFrom(c.V4, 5353)
	flow := func(during func()) FlowReport {
		f, err := a.StartFlow(to, 5*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		reach := func(n int) {
			Eventually(t, 20*time.Second, "the flow flows", func() error {
				if r := f.Report(); r.Sent < n {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
		}
		reach(20)
		during()
		reach(f.Report().Sent + 20)
		return f.Stop()
	}
	if r := flow(func() {}); r.Lost > 0 || r.Answered < 40 || r.Last != "pod-c" {
		t.Errorf("undisturbed: %s", r)
	}
	if r := flow(stop); r.Lost == 0 || r.Refused == 0 || r.Answered == 0 {
		t.Errorf("the server goes: %s; want some answered, some refused", r)
	}
}
