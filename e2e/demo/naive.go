package main

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/moby/ipvs"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// naive does the same rolling update without the care, now that no agent runs: as another program would that
// deletes the real server of a pod which ends.
func (s *show) naive() error {
	s.title("For comparison: the same update by a program that at once deletes the real server of a pod that ends")
	swap := func(old, fresh *lab.Pod) error {
		for _, e := range s.entries() {
			if err := e.replace(old, fresh); err != nil {
				return err
			}
		}
		return nil
	}
	// More grace would not help: nothing reaches the pod any more, and it waits for requests that never come.
	if err := s.underUpdate(updater{name: "naive", swap: swap, grace: time.Second, out: func() error { return nil }}); err != nil {
		return err
	}
	s.say("%-12s %-20s %-24s %6s %6s %7s %6s", "proxy", "requests enter at", "", "sent", "rate", "for", "lost")
	lost := map[string]int{}
	for _, r := range s.rolls {
		s.say("%-12s %-20s %-24s %6d %4.0f/s %6.1fs %6d", r.name, r.entry.name, r.to, r.Sent, r.Rate, r.Duration.Seconds(), r.Lost)
		lost[r.name] += r.Lost
	}
	if lost["naive"] == 0 {
		return errors.New("nothing was lost: so that ipvs-proxy lost nothing means nothing")
	}
	return nil
}

// replace adds a real server and deletes another, in the kernel of the entry's node.
func (e entry) replace(old, fresh *lab.Pod) error {
	err := e.node.Do(func() error {
		h, err := lab.OpenIPVS()
		if err != nil {
			return err
		}
		defer h.Close()
		family, af := 4, uint16(syscall.AF_INET)
		if e.to.Addr().Is6() {
			family, af = 6, syscall.AF_INET6
		}
		svc := &ipvs.Service{AddressFamily: af, Protocol: syscall.IPPROTO_TCP, Address: e.to.Addr().AsSlice(), Port: e.to.Port()}
		real := func(p *lab.Pod) *ipvs.Destination {
			return &ipvs.Destination{AddressFamily: af, Address: p.Addr(family).AsSlice(), Port: httpPort, Weight: 1, ConnectionFlags: ipvs.ConnFwdMasq}
		}
		return errors.Join(h.NewDestination(svc, real(fresh)), h.DelDestination(svc, real(old)))
	})
	if err != nil {
		return fmt.Errorf("%s for %s at %s of %s: %w", fresh.Name, old.Name, e.to, e.node.Name, err)
	}
	return nil
}
