package inspect

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// Asker answers questions about what Services want, and how far that is.
type Asker interface {
	// Ask is that of sync.Loop.
	Ask(ctx context.Context, ask func(*sync.View)) error
}

// Counter says what the kernel counts.
type Counter interface {
	// Of gives some virtual servers with their real servers, in the order of the Keys. One that is not there is left out.
	Of(ctx context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error
}

// About is what of the agent does not change.
type About struct {
	Version string
	Since   time.Time
	Kernel  string // its release
}

// Node is a node with an agent at work.
type Node struct {
	loop  Asker
	about About
	// clients and asking are for packets.
	clients preview.Clients
	asking  func(netip.Addr) []cluster.ID
}

// New makes one.
func New(loop Asker, about About) *Node { return &Node{loop: loop, about: about} }

// Head says how the node stands.
func (n *Node) Head(ctx context.Context) (h Head, err error) {
	err = n.loop.Ask(ctx, func(v *sync.View) { h = n.head(v.Standing()) })
	return h, err
}

func (n *Node) head(s sync.Standing) Head {
	h := Head{Node: s.Node, Version: n.about.Version, Since: when(n.about.Since), Kernel: n.about.Kernel, Services: s.Services,
		Frontends: s.Frontends[0] + s.Frontends[1], Programmed: s.Programmed, Waiting: s.Ready + s.Undecided, Failing: s.Failing, Draining: s.Draining,
		LastWrite: when(s.LastWrite), Now: s.Now}
	switch {
	case s.Away != "":
		h.Note = "another proxy is at work (" + s.Away + "): nothing is written until it is gone"
	case !s.Synced:
		h.Note = "the cluster's objects have not come yet"
	case !s.Started:
		h.Note = "the kernel was not read yet"
	case !s.Complete:
		h.Note = "parts of the cluster could not be read: until they can, nothing is taken out of service"
	}
	return h
}

// Service says what the loop knows of one. The error is a preview.UnknownServiceError where there is none.
func (n *Node) Service(ctx context.Context, id cluster.ID) (*Service, error) {
	var served sync.Served
	var pending ipvs.Plan
	var since time.Time
	if err := n.loop.Ask(ctx, func(v *sync.View) {
		served = v.Service(id)
		pending, since = v.PendingOf(id)
	}); err != nil {
		return nil, err
	}
	s := ServiceOf(served)
	if s == nil {
		return nil, n.unknown(ctx, id)
	}
	for _, step := range pending {
		s.Pending = append(s.Pending, step.Op.String())
	}
	s.Since = when(since)
	return s, nil
}

// KeysOf gives the Keys that Services have, in as many questions to the loop as it takes.
func KeysOf(ctx context.Context, loop Asker, services []cluster.ID) (all []sync.KeyOf, err error) {
	for len(services) > 0 {
		looked := 0
		err := loop.Ask(ctx, func(v *sync.View) {
			var keys []sync.KeyOf
			keys, looked = v.Keys(services)
			all = append(all, keys...)
		})
		if err == nil && looked == 0 {
			err = errors.New("the loop looks at none")
		}
		if err != nil {
			return nil, err
		}
		services = services[looked:]
	}
	return all, nil
}

// names are those of all Services, a page at a time.
func (n *Node) names(ctx context.Context) (all []cluster.ID, err error) {
	var after cluster.ID
	for more := true; more && err == nil; {
		err = n.loop.Ask(ctx, func(v *sync.View) {
			var page []cluster.ID
			page, more = v.Names(after)
			all = append(all, page...)
		})
		if len(all) > 0 {
			after = all[len(all)-1]
		}
	}
	return all, err
}

// Log gives the last writes, a page of them.
func (n *Node) Log(ctx context.Context, which sync.Selection) (log Log, err error) {
	var list []sync.Write
	if err = n.loop.Ask(ctx, func(v *sync.View) { list, log.More = v.Writes(which) }); err != nil {
		return log, err
	}
	log.Changes = []Change{}
	for _, w := range list {
		c := Change{Number: w.Number, At: w.At, Line: w.Line, Cause: w.Why.String(), Heard: when(w.Heard), Error: w.Err, Deleted: w.Deleted}
		if w.Service != (cluster.ID{}) {
			c.Service = w.Service.String()
		}
		log.Changes = append(log.Changes, c)
	}
	return log, nil
}

// CountsOf reads what the kernel counts of some Keys.
func CountsOf(ctx context.Context, from Counter, keys []ipvs.Key) (Counts, error) {
	counts := Counts{}
	err := from.Of(ctx, keys, func(c ipvs.Counted) error {
		counts[c.Key] = c
		return nil
	})
	return counts, err
}
