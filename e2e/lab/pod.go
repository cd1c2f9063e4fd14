package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
)

// PodSpec names a pod to be made.
type PodSpec struct {
	Name string
	Node int // 1 for node1
	// Number is the host part of its addresses; 0 means the next one that no
	// pod of the node had yet, from 10. With it an address can be used again.
	Number int
}

// Pod is a pod: one namespace behind a port of its node's bridge.
type Pod struct {
	*Host
	Node *Node
	port string // of cni0
}

// AddPod makes a pod and plugs it in; it serves nothing yet.
func (w *World) AddPod(spec PodSpec) (*Pod, error) {
	p, err := w.addPod(spec)
	if err != nil {
		return nil, err
	}
	if err := p.settled(); err != nil {
		return nil, errors.Join(err, p.Remove())
	}
	return p, nil
}

// addPod is AddPod without the wait.
func (w *World) addPod(spec PodSpec) (p *Pod, err error) {
	if spec.Node < 1 || spec.Node > len(w.Nodes) {
		return nil, fmt.Errorf("pod %s: there is no node %d", spec.Name, spec.Node)
	}
	n := w.Node(spec.Node)
	if !n.alive() {
		return nil, fmt.Errorf("pod %s: %s: %w", spec.Name, n.Name, errGone)
	}
	if p, err = w.register(n, &spec); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Remove())
			p = nil
		}
	}()
	eth0, port, err := n.plug(n.cni0, p.port, p.Host, mac(1, n.Index, spec.Number))
	if err != nil {
		return p, err
	}
	// Without hairpin a bridge never sends a frame back where it came from:
	// a pod could not reach itself through its Service.
	if err := n.nl.LinkSetHairpin(port, true); err != nil {
		return p, fmt.Errorf("hairpin on %s of %s: %w", p.port, n.Name, err)
	}
	if err := p.addAddrs(eth0, n.PodCIDR4, n.PodCIDR6); err != nil {
		return p, err
	}
	for i, gw := range []netip.Addr{n.Gateway4, n.Gateway6} {
		if err := p.addRoute(eth0, defaultRoutes[i], gw); err != nil {
			return p, err
		}
	}
	return p, nil
}

// register makes the pod's namespace and takes its name and its number.
func (w *World) register(n *Node, spec *PodSpec) (*Pod, error) {
	h, err := newHost(spec.Name)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pods[spec.Name] != nil {
		return nil, errors.Join(fmt.Errorf("there is a pod %s already", spec.Name), h.close())
	}
	if spec.Number == 0 {
		spec.Number = max(10, n.nextPod)
	}
	n.nextPod = max(n.nextPod, spec.Number+1)
	h.V4 = netip.MustParseAddr(fmt.Sprintf("10.244.%d.%d", n.Index, spec.Number))
	h.V6 = netip.MustParseAddr(fmt.Sprintf("fd10:244:%d::%d", n.Index, spec.Number))
	p := &Pod{Host: h, Node: n, port: fmt.Sprintf("veth%d", spec.Number)}
	w.pods[spec.Name] = p
	return p, nil
}

// Remove ends the pod as a node does: its processes end, their connections are
// closed, then its link and its addresses go.
func (p *Pod) Remove() error {
	w := p.Node.world
	w.mu.Lock()
	delete(w.pods, p.Name)
	w.mu.Unlock()
	p.closeSockets()
	var errs []error
	// The link goes now; with the namespace it would go some time later, and
	// a pod that takes the address over would fight with this one.
	if p.Node.alive() && p.alive() {
		if err := p.Node.unplug(p.port); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, p.close())...)
}

// ServeHTTP answers on the pod's port, over IPv4 and IPv6, with the pod's name;
// see Host.ServeHTTP.
func (p *Pod) ServeHTTP(port uint16) (stop func(), err error) {
	return p.Host.ServeHTTP(p.Name, port)
}

// ServeHTTP has each of the pods answer on the port, or fails the test.
func (w *World) ServeHTTP(t testing.TB, port uint16, pods ...*Pod) {
	t.Helper()
	for _, p := range pods {
		if _, err := p.ServeHTTP(port); err != nil {
			t.Fatal(err)
		}
	}
}
