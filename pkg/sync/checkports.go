package sync

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
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

// checkHealth has a Service's healthCheckNodePort answered, or says why it cannot be. Its claims are in the ledger.
func (l *Loop) checkHealth(id cluster.ID, local Local) (problems []Problem) {
	port := local.HealthCheckNodePort
	say := func(here bool, format string, args ...any) {
		problems = append(problems, Problem{Reason: ReasonHealthCheckPort, Here: here, Anywhere: !here,
			Text: fmt.Sprintf("spec.healthCheckNodePort: %d ", port) + fmt.Sprintf(format, args...)})
	}
	check := healthz.Check{Port: port, Local: local.Ready}
	if port != 0 {
		for _, h := range l.checkPorts.asking[port][1:] { // before this one takes it
			l.opt.Health.SetCheck(h.service.Namespace, h.service.Name, healthz.Check{})
		}
		if first := l.checkPorts.asking[port][0].service; first != id {
			say(false, "belongs to Service %s", first)
			check.Port = 0
		} else if owner := l.nodePortOwner(port); owner != nil {
			say(false, "is a node port of Service %s", owner.Service)
			check.Port = 0
		}
	}
	l.opt.Health.SetCheck(id.Namespace, id.Name, check)
	if fault := l.opt.Health.CheckFault(id.Namespace, id.Name); fault != "" && check.Port != 0 {
		say(true, "cannot be served on node %s: %s", l.site.Node.Name, strings.Join(strings.Fields(fault), " "))
	}
	return problems
}

// nodePortOwner is the claim by which a TCP port of this node leads to endpoints; nil: it does not. IPVS takes such
// packets before a listener sees them.
func (l *Loop) nodePortOwner(port uint16) *Claim {
	for _, a := range l.site.NodePorts {
		if owner := l.ledger.owner(ipvs.Key{Addr: a, Port: port, Proto: ipvs.TCP}); owner != nil {
			return owner
		}
	}
	return nil
}

// checkedAt are the Services, other than one, whose healthCheckNodePort is the port of a frontend of this node.
func (l *Loop) checkedAt(keys []ipvs.Key, but cluster.ID) (ids []cluster.ID) {
	for _, k := range keys {
		if k.Proto != ipvs.TCP || l.checkPorts.asking[k.Port] == nil || !slices.Contains(l.site.NodePorts, k.Addr) {
			continue
		}
		for _, h := range l.checkPorts.asking[k.Port] {
			if h.service != but {
				ids = append(ids, h.service)
			}
		}
	}
	return ids
}
