package sync

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// localPeriod is the least time between two looks at the node's addresses: they come and go in bursts.
const localPeriod = 100 * time.Millisecond

// lookLocal reads what the node itself is, when something may have changed.
func (l *Loop) lookLocal(ctx context.Context) {
	select {
	case <-l.kernel.LocalChanged():
		l.local.news = true
	default:
	}
	now := l.now()
	if !l.local.news || now.Before(l.local.next) {
		return
	}
	local, err := l.kernel.Local(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		l.local.next = now.Add(backoff(l.local.tries))
		l.local.tries++
		l.log.Error("reading the node's addresses failed, trying again", zap.Error(err))
		return
	}
	if local.NoIPv6 != (l.local.known && l.desk.Site().Local.NoIPv6) {
		l.log.Info("IPv6 on this node", zap.Bool("switchedOff", local.NoIPv6))
		l.started = false // with IPv6 the kernel took our IPv6 addresses away
	}
	l.local = localState{known: true, next: now.Add(localPeriod)}
	l.settleSite(local)
}

// localState says how the reading of the node's addresses stands.
type localState struct {
	known bool // they were read once
	news  bool // they may have changed
	tries uint8
	next  time.Time
}

// settleSite tells the desk where it is, and has the Services decided again that it matters to.
func (l *Loop) settleSite(local ipvs.Local) {
	node := l.model.Node()
	// Without a Node object the last ranges stay: nobody's pods become strangers for a while.
	if pods := node.PodCIDRs; l.opt.NodePods && len(pods) > 0 && !slices.Equal(l.pods, pods) {
		l.pods = pods
		if err := l.kernel.SetPods(pods); err != nil {
			l.log.Error("the Node's pod ranges cannot be used", zap.Stringers("podCIDRs", pods), zap.Error(err))
		}
		l.base.next = l.now()
	}
	again := l.desk.Move(node, local, l.model.APIServers())
	l.opt.Health.SetCheckAddresses(l.desk.CheckAddresses())
	l.again(again)
}

// again has Services decided once more.
func (l *Loop) again(ids []cluster.ID) {
	waiting := make(map[cluster.ID]bool, len(l.dirty))
	for _, id := range l.dirty {
		waiting[id] = true
	}
	for _, id := range ids {
		if !waiting[id] {
			l.dirty = append(l.dirty, id)
		}
	}
}

// noteLacking takes from a failed write that the kernel does not have a scheduler. It is asked for it only once
// in a process: until then somebody may have loaded it.
func (l *Loop) noteLacking(op ipvs.Op, err error) {
	var scheduler string
	switch o := op.(type) {
	case ipvs.AddServer:
		scheduler = o.Scheduler
	case ipvs.SetServer:
		scheduler = o.Scheduler
	}
	// The kernel answers ENOENT to both for an unknown scheduler only: a missing virtual server is ESRCH.
	if !errors.Is(err, fs.ErrNotExist) {
		return
	}
	again, news := l.desk.Lack(scheduler)
	if !news {
		return
	}
	l.log.Error("the kernel lacks a scheduler: rr serves in its place until the next start", zap.String("scheduler", scheduler), zap.Error(err))
	if l.opt.Events != nil {
		l.opt.Events.Warn(desk.OwnNode, desk.ReasonSchedulerMissing, "the kernel of this node lacks the scheduler "+scheduler+": rr serves in its place")
	}
	l.opt.Health.Problems(desk.ReasonSchedulerMissing, 1)
	l.again(again)
}
