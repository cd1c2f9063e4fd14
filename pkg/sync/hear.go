package sync

import (
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// kubernetes is the API server's own Service: its endpoints are the API server's addresses.
var kubernetes = cluster.ID{Namespace: "default", Name: "kubernetes"}

// hear takes what changed in the cluster and decides anew for the Services concerned.
func (l *Loop) hear() {
	dirty, nodeChanged, synced := l.model.Take()
	l.synced = l.synced || synced
	if !l.complete && l.model.Complete() {
		l.complete, l.started = true, false // read the kernel again, for what may now be removed
	}
	l.dirty = append(l.dirty, dirty...)
	if nodeChanged {
		l.opt.Health.SetNode(l.model.Node().Stays())
	}
	if len(dirty) > 0 {
		l.opt.Health.Heard(l.model.Changes())
	}
	for _, name := range l.opt.Health.TakeCheckNews() {
		l.again([]cluster.ID{{Namespace: name.Namespace, Name: name.Name}})
	}
	if !l.local.known {
		return // nothing can be decided before the node's addresses are known
	}
	if nodeChanged || slices.Contains(dirty, kubernetes) {
		l.settleSite(l.desk.Site().Local)
	}
	n := min(len(l.dirty), sliceServices)
	for _, id := range l.dirty[:n] {
		// What follows from it for other Services is decided at once: between the two the kernel would be
		// given a state that nobody wants.
		for next := []cluster.ID{id}; len(next) > 0; next = next[1:] {
			next = append(next, l.decide(next[0])...)
		}
	}
	if l.dirty = l.dirty[n:]; len(l.dirty) == 0 {
		l.dirty = nil
	}
	l.tell(desk.OwnNode, l.desk.NodeProblems())
}

// sliceServices is how many Services are decided at a time, so that an urgent Key need not wait for all.
const sliceServices = 128

// decide has a Service decided anew and queues the Keys whose wanted state changed. It returns the Services that must be
// decided at once for it.
func (l *Loop) decide(id cluster.ID) []cluster.ID {
	is := l.desk.Decide(id)
	l.countNoLocal(id, is.NoLocal)
	problems := append(is.Problems, l.serveCheck(id, is.Check)...)
	l.awaitKeys(id, is.Touched)
	class := classChange
	if is.Urgent {
		class = classUrgent
	}
	if l.started {
		for _, k := range is.Touched {
			l.queue.add(k, class)
		}
		for _, a := range is.Freed {
			// What hangs on the frontend's own address goes with its Key; a pod's fact has no Key of its own.
			if l.present[ipvs.Fact{Kind: ipvs.FactHairpin, Addr: a}] {
				l.queue.add(ipvs.AddrKey(a), class)
			}
		}
	}
	l.tell(id, problems)
	return is.Also
}

// serveCheck has a Service's healthCheckNodePort answered, or says why it cannot be.
func (l *Loop) serveCheck(id cluster.ID, check desk.Check) []desk.Problem {
	for _, other := range check.Instead {
		l.opt.Health.SetCheck(other.Namespace, other.Name, healthz.Check{})
	}
	l.opt.Health.SetCheck(id.Namespace, id.Name, healthz.Check{Port: check.Port, Local: check.Ready})
	if fault := l.opt.Health.CheckFault(id.Namespace, id.Name); fault != "" && check.Port != 0 {
		return []desk.Problem{desk.UncheckedProblem(check.Port, true, "cannot be served on node %s: %s", l.desk.Site().Node.Name, strings.Join(strings.Fields(fault), " "))}
	}
	return nil
}
