package sync

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// kubernetes is the API server's own Service: its endpoints are the API server's addresses.
var kubernetes = cluster.ID{Namespace: "default", Name: "kubernetes"}

// ear hears what changed in the cluster and has the desk decide anew for the Services concerned.
type ear struct {
	shared
	feed     Feed
	triggers Triggers
	site     *site
	// late are the Services to decide anew when all that is known was decided, before the kernel is read.
	late map[cluster.ID]struct{}
}

// sliceServices is how many Services are decided at a time, so that an urgent Key need not wait for all.
const sliceServices = 128

func (*ear) due(time.Time) time.Time { return time.Time{} } // what is left to decide is decided at once

// tend takes what is new, and decides some of it.
func (e *ear) tend(context.Context) (more bool) {
	dirty, nodeChanged, synced := e.feed.Take()
	e.stage.synced = e.stage.synced || synced
	if !e.stage.complete && e.feed.Complete() {
		e.stage.complete, e.stage.started = true, false // read the kernel again, for what may now be removed
	}
	e.dirty.add(dirty, WhyObject)
	if nodeChanged {
		e.opt.Health.SetNode(e.site.where.Node().Stays())
	}
	if len(dirty) > 0 {
		e.opt.Health.Heard(e.feed.Changes())
	}
	for _, name := range e.opt.Health.TakeCheckNews() {
		e.dirty.add([]cluster.ID{{Namespace: name.Namespace, Name: name.Name}}, WhyCheck)
	}
	if !e.site.known {
		return false // nothing can be decided before the node's addresses are known
	}
	if nodeChanged || slices.Contains(dirty, kubernetes) {
		e.site.move(e.desk.Site().Local)
	}
	e.decideAll(e.dirty.take(sliceServices))
	e.tell.tell(desk.OwnNode, e.desk.NodeProblems(), e.desk)
	return e.dirty.len() > 0
}

// decideAll has Services decided anew, and then those for which something follows from it: before the next write, since
// between the two the kernel would be given a state that nobody wants. However many they follow from, they have one turn:
// a Service may have thousands of endpoints that are virtual IPs of others. Before the kernel was read nothing is written,
// so they wait until all others are decided.
func (e *ear) decideAll(ids []cluster.ID) {
	for len(ids) > 0 {
		follow := map[cluster.ID]struct{}{}
		for _, id := range ids {
			delete(follow, id)
			for _, other := range e.decide(id) {
				follow[other] = struct{}{}
			}
		}
		ids = slices.SortedFunc(maps.Keys(follow), cluster.ID.Compare)
		if !e.stage.started {
			maps.Copy(e.late, follow)
			ids = nil
		}
	}
	if e.stage.synced && e.dirty.len() == 0 {
		e.dirty.add(slices.SortedFunc(maps.Keys(e.late), cluster.ID.Compare), WhyOther)
		clear(e.late)
	}
}

// decide has a Service decided anew and queues the Keys whose wanted state changed. It returns the Services that must be
// decided at once for it.
func (e *ear) decide(id cluster.ID) []cluster.ID {
	is := e.desk.Decide(id, e.now())
	if e.stage.started && e.desk.Unknown(id) {
		e.desk.Resume(id, e.mirror.Known, e.now())
	}
	e.tell.countNoLocal(id, is.NoLocal)
	problems := append(is.Problems, e.serveCheck(id, is.Check)...)
	e.fare.await(e.triggers.TakeTriggers(id), is.Touched)
	class := classChange
	if is.Urgent {
		class = classUrgent
	}
	if why, known := e.dirty.taken[id]; e.stage.started {
		if !known { // it follows from another's change
			why = cause{WhyOther, e.now()}
		}
		for _, k := range is.Touched {
			e.queue.add(k, class)
			e.diary.because(k, why)
			if e.want(k).Service == (cluster.ID{}) {
				e.fare.was[k] = id
			}
		}
		for _, a := range is.Freed {
			// What hangs on the frontend's own address goes with its Key; a pod's fact has no Key of its own.
			if e.mirror.Holds(ipvs.Fact{Kind: ipvs.FactHairpin, Addr: a}) {
				e.queue.add(ipvs.AddrKey(a), class)
				e.diary.because(ipvs.AddrKey(a), why)
			}
		}
	}
	e.tell.tell(id, problems, e.desk)
	return is.Also
}

// serveCheck has a Service's healthCheckNodePort answered, or says why it cannot be.
func (e *ear) serveCheck(id cluster.ID, check desk.Check) []desk.Problem {
	for _, other := range check.Instead {
		e.opt.Health.SetCheck(other.Namespace, other.Name, healthz.Check{})
	}
	e.opt.Health.SetCheck(id.Namespace, id.Name, healthz.Check{Port: check.Port, Local: check.Ready, At: check.At})
	if fault := e.opt.Health.CheckFault(id.Namespace, id.Name); fault != "" && check.Port != 0 {
		return []desk.Problem{desk.UncheckedProblem(check.Port, true, "cannot be served on node %s: %s", e.desk.Site().Node.Name, strings.Join(strings.Fields(fault), " "))}
	}
	return nil
}
