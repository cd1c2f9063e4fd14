package desk

import (
	"maps"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// twins are the schedulers that heed weights, in the place of those that do the same without.
var twins = map[string]string{"rr": "wrr", "lc": "wlc"}

// byClient are the schedulers that go by the client's address, where one whose real server takes no new connection would
// be refused without the flag Fallback (net/netfilter/ipvs/ip_vs_sh.c, ip_vs_mh.c).
var byClient = map[string]bool{"sh": true, "mh": true}

// server is the virtual server of some real servers.
func (c *portCompiler) server(b *backends) ipvs.Server {
	s := ipvs.Server{Scheduler: c.scheduler(b.weighted), Reals: b.reals}
	asked := c.svc.Scheduling
	if c.svc.AffinitySeconds > 0 {
		s.Flags, s.Timeout = ipvs.Persistent, c.svc.AffinitySeconds
	}
	if byClient[s.Scheduler] {
		s.Flags |= ipvs.Fallback
		// Of the node's own choice mh kube-proxy makes a spread by connection (pkg/proxy/ipvs/proxier.go, FlagSourceHash).
		if asked.Ports || s.Scheduler == "mh" && asked.Scheduler != "mh" {
			s.Flags |= ipvs.ClientPorts
		}
	}
	if asked.OnePacket && c.port.Protocol == cluster.UDP {
		s.Flags |= ipvs.OnePacket
	}
	return s
}

// scheduler is the one that serves: the Service's, where this node's kernel has it, else the node's.
func (c *compiler) scheduler(weighted bool) string {
	name := c.svc.Scheduling.Scheduler
	if c.needs(name) {
		c.warn(ReasonSchedulerMissing, "metadata.annotations["+cluster.SchedulerAnnotation+"]: the kernel of node "+c.site.Node.Name+
			" lacks the scheduler "+name+": the node's own serves in its place")
		name = ""
	}
	if name == "" {
		name = c.site.scheduler(c.opt.Scheduler)
	}
	if twin := twins[name]; weighted && twin != "" && !c.needs(twin) {
		return twin
	}
	return name
}

// needs notes a scheduler that a virtual server is to have, and reports whether the kernel lacks it.
func (c *compiler) needs(scheduler string) (lacking bool) {
	if scheduler == "" || scheduler == fallbackScheduler || scheduler == c.opt.Scheduler {
		return false // the node's own has its own substitute
	}
	if !slices.Contains(c.f.Schedulers, scheduler) {
		c.f.Schedulers = append(c.f.Schedulers, scheduler)
	}
	return c.site.Lacking[scheduler]
}

// schedules notes which schedulers a Service needs beside the node's own.
func (d *Desk) schedules(id cluster.ID, needed []string) {
	if slices.Equal(needed, d.schedulesOf[id]) {
		return
	}
	for _, name := range d.schedulesOf[id] {
		if delete(d.scheduled[name], id); len(d.scheduled[name]) == 0 {
			delete(d.scheduled, name)
		}
	}
	for _, name := range needed {
		if d.scheduled[name] == nil {
			d.scheduled[name] = map[cluster.ID]struct{}{}
		}
		d.scheduled[name][id] = struct{}{}
	}
	if d.schedulesOf[id] = needed; len(needed) == 0 {
		delete(d.schedulesOf, id)
	}
}

// Lack takes that the kernel does not have a scheduler: the node's own, or rr, serves in its place from now on. It returns
// the Services that have to be decided anew for it, and false where that was known or nothing could take its place.
func (d *Desk) Lack(scheduler string) (again []cluster.ID, news bool) {
	if scheduler == "" || scheduler == fallbackScheduler || d.site.Lacking[scheduler] {
		return nil, false
	}
	lacking := map[string]bool{scheduler: true}
	maps.Copy(lacking, d.site.Lacking)
	d.site.Lacking = lacking
	return d.servedBy(scheduler), true
}

// Gain takes that the kernel has a scheduler that it lacked, and returns the Services that have to be decided anew for it.
func (d *Desk) Gain(scheduler string) (again []cluster.ID) {
	if !d.site.Lacking[scheduler] {
		return nil
	}
	lacking := maps.Clone(d.site.Lacking)
	delete(lacking, scheduler)
	d.site.Lacking = lacking
	return d.servedBy(scheduler)
}

// servedBy are the Services that a scheduler is to serve, sorted.
func (d *Desk) servedBy(scheduler string) []cluster.ID {
	if scheduler == d.opt.Scheduler {
		return d.cluster.Services()
	}
	return slices.SortedFunc(maps.Keys(d.scheduled[scheduler]), cluster.ID.Compare)
}

// Lacking are the schedulers that the kernel is known to lack and somebody wants, sorted.
func (d *Desk) Lacking() (names []string) {
	for name := range d.site.Lacking {
		if name == d.opt.Scheduler || len(d.scheduled[name]) > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
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

// maxWeight is what 16 bits hold.
const maxWeight = 1<<16 - 1

// weights gives the weights of endpoints in their order: by where they are, times what their slice says. Weighted is false
// where nobody asks for any: all have 1. They are scaled where they do not fit into 16 bits. Where all are 0 nobody would
// be served: they count as alike. With a slow start all are larger, so that a tenth of 1 can be told.
func (c *compiler) weights(eps []cluster.Endpoint) (of []uint16, weighted bool) {
	of = make([]uint16, len(eps))
	exact := make([]uint64, len(eps))
	most, unit := uint64(0), uint64(1)
	if c.f.SlowStart > 0 {
		weighted, unit = true, tenths
	}
	for i, ep := range eps {
		of[i], exact[i] = uint16(unit), unit*uint64(c.weightOf(ep))
		if ep.Weight.Given {
			weighted = true
			exact[i] *= uint64(ep.Weight.Is)
		}
		most = max(most, exact[i])
	}
	weighted = weighted || c.svc.Scheduling.Weights.Given
	if !weighted || most == 0 {
		return of, weighted
	}
	for i, w := range exact {
		if most > maxWeight && w > 0 {
			w = max(w*maxWeight/most, 1)
		}
		of[i] = uint16(w)
	}
	return of, true
}

// weightOf is an endpoint's weight by where it is.
func (c *compiler) weightOf(ep cluster.Endpoint) uint16 {
	w, node := c.svc.Scheduling.Weights, c.site.Node
	switch {
	case !w.Given:
		return 1
	case ep.NodeName != "" && ep.NodeName == node.Name:
		return w.SameNode
	case ep.Zone != "" && ep.Zone == node.Zone:
		return w.SameZone
	}
	return w.Other
}
