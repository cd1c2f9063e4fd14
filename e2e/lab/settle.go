package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
)

// A link that is set up carries packets only some time later, when the kernel
// has noticed: until then a bridge port drops, an interface's queue too, and a
// host does not hear the neighbour solicitations for its new IPv6 address.
// What is lost then, an ARP request or a SYN, is sent again after a second.
// Without waiting, one new world in four answered its first question that late.

// settleTime is far more than the second that the kernel may take.
const settleTime = 20 * time.Second

// settled waits for every link of a new world: for all at the end, since
// waiting for each would add up.
func (w *World) settled() error {
	errs := []error{w.Wire.settled("br0", w.Wire.V6), w.Client.settled("eth0", w.Client.V6),
		w.Wire.settled(w.Client.Name, netip.Addr{})}
	for _, n := range w.Nodes {
		errs = append(errs, n.settled("eth0", n.V6), w.Wire.settled(n.Name, netip.Addr{}))
	}
	for _, p := range w.pods {
		errs = append(errs, p.settled())
	}
	return errors.Join(errs...)
}

// settled waits until the pod is reachable.
func (p *Pod) settled() error {
	return errors.Join(p.Host.settled("eth0", p.V6),
		p.Node.settled(p.port, netip.Addr{}), p.Node.settled("cni0", p.Node.Gateway6))
}

// settled waits until an interface carries packets and, with a valid address,
// until that can be found by its neighbours.
func (h *Host) settled(name string, v6 netip.Addr) error {
	deadline := time.Now().Add(settleTime)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := h.ready(name, v6)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %s: %w", settleTime, err)
		}
		time.Sleep(pause)
	}
}

func (h *Host) ready(name string, v6 netip.Addr) error {
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s of %s: %w", name, h.Name, err)
	}
	if state := link.Attrs().OperState; state != netlink.OperUp {
		return fmt.Errorf("interface %s of %s is %s", name, h.Name, state)
	}
	if !v6.IsValid() {
		return nil
	}
	return h.Do(func() error {
		groups, err := os.ReadFile("/proc/thread-self/net/igmp6")
		if err != nil {
			return err
		}
		want := solicitedNode(v6)
		for line := range bytes.Lines(groups) {
			f := bytes.Fields(line)
			if len(f) > 2 && string(f[1]) == name && string(f[2]) == want {
				return nil
			}
		}
		return fmt.Errorf("interface %s of %s does not listen for solicitations of %s", name, h.Name, v6)
	})
}

// solicitedNode is the multicast group by which an address is looked for, as
// /proc/net/igmp6 prints it.
func solicitedNode(a netip.Addr) string {
	b := a.As16()
	return fmt.Sprintf("ff0200000000000000000001ff%x", b[13:])
}
