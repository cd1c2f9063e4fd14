package desk

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// checkPorts are the healthCheckNodePorts that Services ask for. The API server gives each to one Service alone; where
// several have it all the same, the older Service gets it on every node, as with any frontend (B60).
type checkPorts struct {
	of     map[cluster.ID]uint16
	asking map[uint16][]holder // sorted; nearly always one
}

func newCheckPorts() checkPorts {
	return checkPorts{of: map[cluster.ID]uint16{}, asking: map[uint16][]holder{}}
}

// replace notes which port a Service asks for from now on; 0: none. It returns the other Services that this concerns.
func (c *checkPorts) replace(id cluster.ID, local Local) (others []cluster.ID) {
	h, old, port := holder{local.Created, id}, c.of[id], local.HealthCheckNodePort
	if old == port && (port == 0 || slices.Contains(c.asking[port], h)) {
		return nil
	}
	if old != 0 {
		left := slices.DeleteFunc(slices.Clone(c.asking[old]), func(h holder) bool { return h.service == id })
		if c.asking[old] = left; len(left) == 0 {
			delete(c.asking, old)
		}
		delete(c.of, id)
	}
	if port != 0 {
		at, _ := slices.BinarySearchFunc(c.asking[port], h, holder.compare)
		c.of[id], c.asking[port] = port, slices.Insert(slices.Clone(c.asking[port]), at, h)
	}
	for _, p := range []uint16{old, port} {
		for _, h := range c.asking[p] {
			if h.service != id {
				others = append(others, h.service)
			}
		}
	}
	return others
}

// Check is how a Service's healthCheckNodePort is answered.
type Check struct {
	// Port is 0 where it is not answered: the Service has none, or it is another's.
	Port uint16
	// Ready are the ready endpoints of this node, by family.
	Ready [2]int
	// At are the addresses of the load balancer at which it is answered beside the node's own.
	At []netip.Addr
	// Instead are the Services that had it answered so far and have to give way.
	Instead []cluster.ID
}

// check says how a Service's healthCheckNodePort is answered, or why it cannot be. Its claims are in the ledger.
func (d *Desk) check(id cluster.ID, local Local) (check Check, problems []Problem) {
	port := local.HealthCheckNodePort
	if port == 0 {
		return check, nil
	}
	check = Check{Port: port, Ready: d.readyHere(id), At: local.At}
	for _, h := range d.checkPorts.asking[port][1:] { // before this one takes it
		check.Instead = append(check.Instead, h.service)
	}
	if first := d.checkPorts.asking[port][0].service; first != id {
		check.Port = 0
		return check, []Problem{UncheckedProblem(port, false, "belongs to Service %s", first)}
	}
	if owner := d.nodePortOwner(port); owner != nil {
		check.Port = 0
		return check, []Problem{UncheckedProblem(port, false, "is a node port of Service %s", owner.Service)}
	}
	return check, nil
}

// readyHere counts the ready endpoints of a Service on this node by address, as kube-proxy does (LocalReadyEndpoints in
// pkg/proxy of Kubernetes 1.37): those of all its slices, whether the Service has their ports or not, and virtual IPs
// too. One that ends does not count, though it may still serve.
func (d *Desk) readyHere(id cluster.ID) (ready [2]int) {
	for _, ep := range d.cluster.Endpoints(id) {
		if ep.Ready && ep.NodeName == d.site.Node.Name {
			ready[family(ep.Addr.Is4())]++
		}
	}
	return ready
}

// UncheckedProblem says why a healthCheckNodePort is not answered. Here: on this node alone.
func UncheckedProblem(port uint16, here bool, format string, args ...any) Problem {
	return Problem{Reason: ReasonHealthCheckPort, Here: here, Anywhere: !here,
		Text: fmt.Sprintf("spec.healthCheckNodePort: %d ", port) + fmt.Sprintf(format, args...)}
}

// nodePortOwner is the claim by which a TCP port of this node leads to endpoints; nil: it does not. IPVS takes such
// packets before a listener sees them.
func (d *Desk) nodePortOwner(port uint16) *Claim {
	for _, a := range d.site.NodePorts {
		if owner := d.ledger.owner(ipvs.Key{Addr: a, Port: port, Proto: ipvs.TCP}); owner != nil {
			return owner
		}
	}
	return nil
}

// checkedAt are the Services, other than one, whose healthCheckNodePort is the port of a frontend of this node.
func (d *Desk) checkedAt(keys []ipvs.Key, but cluster.ID) (ids []cluster.ID) {
	for _, k := range keys {
		if k.Proto != ipvs.TCP || d.checkPorts.asking[k.Port] == nil || !slices.Contains(d.site.NodePorts, k.Addr) {
			continue
		}
		for _, h := range d.checkPorts.asking[k.Port] {
			if h.service != but {
				ids = append(ids, h.service)
			}
		}
	}
	return ids
}
