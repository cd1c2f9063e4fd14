package inspect

import (
	"context"
	"errors"
	"net/netip"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// WithPackets has a Node answer what becomes of packets as well: how it tells clients apart, and which Services ask for an
// address from outside.
func (n *Node) WithPackets(clients preview.Clients, asking func(netip.Addr) []cluster.ID) *Node {
	with := *n
	with.clients, with.asking = clients, asking
	return &with
}

// Explain says what becomes of a Service, why, and what is still to be written for it, as far as the loop knows. The error
// is a preview.UnknownServiceError where there is none.
func (n *Node) Explain(ctx context.Context, id cluster.ID) (*preview.Explained, error) {
	var s desk.Snapshot
	var pending ipvs.Plan
	var grows map[ipvs.Key][]desk.Growing
	err := n.loop.Ask(ctx, func(v *sync.View) {
		s = v.Snapshot(id)
		pending, _ = v.PendingOf(id)
		grows = v.Growing(id)
	})
	if err != nil {
		return nil, err
	}
	if s.Service == nil {
		return nil, n.unknown(ctx, id)
	}
	return preview.ExplainSnapshot(s.Site.Node.Name, id, s, pending, func(k ipvs.Key) []desk.Growing { return grows[k] }), nil
}

// unknown is the error that there is no such Service.
func (n *Node) unknown(ctx context.Context, id cluster.ID) error {
	names, err := n.names(ctx)
	if err != nil {
		return err
	}
	return preview.UnknownService(id, names)
}

// Packet says what becomes of a packet, by what the loop wants and knows of the kernel. It is put together from several
// short questions.
func (n *Node) Packet(ctx context.Context, q preview.Question) (*preview.Answer, error) {
	a := &asked{node: n, ctx: ctx}
	keys := []ipvs.Key{q.To}
	if to := a.Passage(q.To); to.Inside != nil {
		keys = append(keys, to.Inside.Key)
	}
	g := preview.Ground{Clients: n.clients, View: a, Kernel: facts{a}}
	a.ask(func(v *sync.View) {
		g.Node = v.Site().Node.Name
		g.Pending = v.Pending(keys...)
	})
	is := preview.AnswerPacket(g, q)
	if a.err != nil {
		return nil, a.err
	}
	return is, nil
}

// asked is what the loop says, one question at a time. After an error nothing more is asked, and what was said is void.
type asked struct {
	node *Node
	ctx  context.Context // of the one answer that it is for
	err  error
}

func (a *asked) ask(f func(*sync.View)) {
	if a.err == nil {
		a.err = a.node.loop.Ask(a.ctx, f)
	}
}

// Passage takes what is wanted for packets to a Key.
func (a *asked) Passage(k ipvs.Key) (p desk.Passage) {
	a.ask(func(v *sync.View) { p = v.Passage(k) })
	return p
}

// Snapshot takes what decides what a Service becomes.
func (a *asked) Snapshot(id cluster.ID) (s desk.Snapshot) {
	a.ask(func(v *sync.View) { s = v.Snapshot(id) })
	return s
}

// Asking are the Services that ask for an address from outside.
func (a *asked) Asking(at netip.Addr) []cluster.ID {
	if a.node.asking == nil {
		return nil
	}
	return a.node.asking(at)
}

// facts are what the kernel holds, as far as the loop knows.
type facts struct{ *asked }

// Frontend gives what the kernel holds of a Key.
func (f facts) Frontend(k ipvs.Key) (is *ipvs.Frontend) {
	f.ask(func(v *sync.View) { is = v.Has(k) })
	return is
}

// Has reports a fact that the kernel holds.
func (f facts) Has(fact ipvs.Fact) (has bool) {
	f.ask(func(v *sync.View) {
		has = v.Holds(fact) || fact.Kind == ipvs.FactBind && v.Holds(ipvs.Fact{Kind: ipvs.FactMisbound, Addr: fact.Addr})
	})
	return has
}

// errNoQuestion: nothing is asked.
var errNoQuestion = errors.New("q: missing: want CLIENT to ADDRESS:PORT[/PROTO]")
