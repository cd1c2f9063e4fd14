package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// resolver replaces the one endpoint of a UDP Service while clients keep sending from one port.
func (s *show) resolver() error {
	s.title("The resolver's pod is replaced while clients keep sending, each from one port")
	fresh, err := s.w.AddPod(lab.PodSpec{Name: "dns-b", Node: 1})
	if err != nil {
		return err
	}
	if _, err := fresh.ServeUDP(fresh.Name, dnsPort); err != nil {
		return err
	}
	type sender struct {
		*lab.Flow
		name string
		to   netip.AddrPort
	}
	var senders []sender
	for _, c := range []*lab.Host{s.w.Pod("pod-a").Host, s.w.Client} {
		for _, to := range []netip.AddrPort{resolver4, resolver6} {
			f, err := c.StartFlow(to, 50*time.Millisecond)
			if err != nil {
				return err
			}
			senders = append(senders, sender{f, c.Name, to})
		}
	}
	// reach waits until each has had some answers of a pod.
	reach := func(pod string) error {
		return eventually("everybody hears of "+pod, func() error {
			for _, f := range senders {
				if r := f.Report(); r.Last != pod || r.ByPod[pod] < 20 {
					return fmt.Errorf("%s to %s: %s", f.name, f.to, r)
				}
			}
			return nil
		})
	}
	old := s.w.Pod("dns-a")
	if err := reach(old.Name); err != nil {
		return err
	}
	if err := s.swapEndpoint("resolver.yaml", old, fresh); err != nil {
		return err
	}
	if err := reach(fresh.Name); err != nil {
		return err
	}
	if err := old.Remove(); err != nil {
		return err
	}
	s.say("\n%-8s %-18s %6s %7s %6s   answered by %s, %s", "from", "to", "sent", "for", "lost", old.Name, fresh.Name)
	for _, f := range senders {
		r := f.Stop()
		s.say("%-8s %-18s %6d %6.1fs %6d   %17d %6d", f.name, f.to, r.Sent, r.Duration.Seconds(), r.Lost, r.ByPod[old.Name], r.ByPod[fresh.Name])
		// What is on its way to the old pod when that is taken out may be lost: one datagram, where nothing else keeps
		// the processors.
		if r.Lost > r.UnderWay() {
			return fmt.Errorf("%s to %s: %s; want no more lost than was on its way", f.name, f.to, r)
		}
	}
	s.say("One datagram each 50 ms. The kernel forgets at once that these ports belonged to %s; one that is on its way there may be lost.", old.Name)
	return nil
}

// swapEndpoint puts one pod into the place of another in a file of the cluster.
func (s *show) swapEndpoint(name string, old, fresh *lab.Pod) error {
	file := filepath.Join(s.cluster.Dir, name)
	before, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text := string(before)
	for _, family := range []int{4, 6} {
		out, in := endpoint(old, family), endpoint(fresh, family)
		if !strings.Contains(text, out) {
			return fmt.Errorf("%s has no line with %q", file, out)
		}
		text = strings.Replace(text, out, in, 1)
		s.say("  - %s\n  + %s", out, in)
	}
	return s.cluster.Write(name, text)
}

// endpoint is how an endpoint's line begins in a file.
func endpoint(p *lab.Pod, family int) string {
	addr := p.Addr(family).String()
	if family == 6 {
		addr = `"` + addr + `"`
	}
	return fmt.Sprintf("{addresses: [%s], nodeName: %s", addr, p.Node.Name)
}
