package sync

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Site is the place for which Services are compiled: this node, and what must be kept safe on it.
type Site struct {
	Node cluster.Node
	// Local are the addresses of the node's interfaces other than ours, and whether it has IPv6.
	Local ipvs.Local
	// NodePorts are the addresses on which node ports are served, sorted.
	NodePorts []netip.Addr
	// APIServers are the addresses by which the API server is reached, and the endpoints of its Service, sorted.
	APIServers []netip.Addr
	// Lacking are the schedulers that the kernel does not have: rr serves in their place.
	Lacking map[string]bool
}

// kubernetes is the API server's own Service.
var kubernetes = cluster.ID{Namespace: "default", Name: "kubernetes"}

// newSite puts a Site together.
func newSite(node cluster.Node, local ipvs.Local, apiServers []netip.Addr, opt CompileOptions) Site {
	s := Site{Node: node, Local: local, APIServers: apiServers}
	primaries := node.Addrs
	if len(primaries) == 0 { // the Node object is not known, or gone for a moment
		primaries = local.Sources
	}
	for _, a := range local.Addrs {
		if opt.NodePorts.selects(a, primaries) {
			s.NodePorts = append(s.NodePorts, a)
		}
	}
	return s
}

// primary is the node's first address of a family; invalid: it has none.
func (s Site) primary(ipv4 bool) netip.Addr {
	for _, list := range [][]netip.Addr{s.Node.Addrs, s.Local.Sources} {
		for _, a := range list {
			if a.Is4() == ipv4 {
				return a
			}
		}
	}
	return netip.Addr{}
}

// equal reports whether two Sites give every Service the same Fragment.
func (s Site) equal(o Site) bool { return s.Node.Zone == o.Node.Zone && s.equalButZone(o) }

func (s Site) equalButZone(o Site) bool {
	return s.Node.Name == o.Node.Name && slices.Equal(s.Node.Addrs, o.Node.Addrs) &&
		s.Local.NoIPv6 == o.Local.NoIPv6 && slices.Equal(s.Local.Addrs, o.Local.Addrs) &&
		slices.Equal(s.Local.Sources, o.Local.Sources) && maps.Equal(s.Lacking, o.Lacking) && slices.Equal(s.NodePorts, o.NodePorts) && slices.Equal(s.APIServers, o.APIServers)
}

// isLocal reports whether an address stands on another interface of the node.
func (s Site) isLocal(a netip.Addr) bool {
	_, found := slices.BinarySearchFunc(s.Local.Addrs, a, netip.Addr.Compare)
	return found
}

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
	if local.NoIPv6 != (l.local.known && l.site.Local.NoIPv6) {
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

// settleSite makes the Site anew and has the Services decided again that it matters to.
func (l *Loop) settleSite(local ipvs.Local) {
	site := newSite(l.model.Node(), local, l.apiServers(), l.opt.Compile)
	site.Lacking = l.site.Lacking
	old := l.site
	// Without a Node object the last ranges stay: nobody's pods become strangers for a while.
	if pods := site.Node.PodCIDRs; l.opt.NodePods && len(pods) > 0 && !slices.Equal(l.pods, pods) {
		l.pods = pods
		if err := l.kernel.SetPods(site.Node.PodCIDRs); err != nil {
			l.log.Error("the Node's pod ranges cannot be used", zap.Stringers("podCIDRs", site.Node.PodCIDRs), zap.Error(err))
		}
		l.base.next = l.now()
	}
	l.opt.Health.SetCheckAddresses(l.opt.Compile.NodePorts.checkAddresses(site))
	if l.site = site; site.equal(old) {
		return
	}
	if old.Local.NoIPv6 != local.NoIPv6 || old.Node.Name != site.Node.Name {
		l.again(l.model.Services())
		return
	}
	var affected []cluster.ID
	if old.Node.Zone != site.Node.Zone {
		affected = slices.Collect(maps.Keys(l.zonal))
	}
	if !site.equalButZone(old) {
		affected = slices.AppendSeq(affected, maps.Keys(l.sensitive))
	}
	for _, addrs := range [][]netip.Addr{old.Local.Addrs, site.Local.Addrs, old.Node.Addrs, site.Node.Addrs} {
		for _, a := range addrs { // whose ClusterIP is or was the node's own
			affected = append(affected, l.ledger.holders(a)...)
		}
	}
	slices.SortFunc(affected, cluster.ID.Compare)
	l.again(slices.Compact(affected))
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
	if !errors.Is(err, fs.ErrNotExist) || scheduler == "" || scheduler == fallbackScheduler || l.site.Lacking[scheduler] {
		return
	}
	l.log.Error("the kernel lacks a scheduler: rr serves in its place until the next start", zap.String("scheduler", scheduler), zap.Error(err))
	if l.opt.Events != nil {
		l.opt.Events.Warn(cluster.ID{}, ReasonSchedulerMissing, "the kernel of this node lacks the scheduler "+scheduler+": rr serves in its place")
	}
	l.opt.Health.Problems(ReasonSchedulerMissing, 1)
	lacking := map[string]bool{scheduler: true}
	maps.Copy(lacking, l.site.Lacking)
	l.site.Lacking = lacking
	l.again(l.model.Services())
}

// fallbackScheduler is the one that every kernel with IPVS has.
const fallbackScheduler = "rr"

// scheduler is what the kernel has of a scheduler that is asked for.
func (s Site) scheduler(name string) string {
	if s.Lacking[name] {
		return fallbackScheduler
	}
	return name
}

// apiServers are the API server's addresses: those by which it is reached, and the endpoints of its Service, whoever
// serves that. One that leaves it, as an API server does that is restarted, stays protected as long as this process
// lives: with another's Service on its address it could not come back.
func (l *Loop) apiServers() []netip.Addr {
	addrs := slices.Concat(l.site.APIServers, l.model.APIServers())
	for _, ep := range l.model.Endpoints(kubernetes) {
		addrs = append(addrs, ep.Addr)
	}
	return ipvs.SortAddrs(addrs)
}
