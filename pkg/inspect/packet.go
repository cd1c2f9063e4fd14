package inspect

import (
	"context"
	"net/netip"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// Packet says what becomes of a packet by what is wanted of this node now. The kernel is not looked at.
func (n *Node) Packet(ctx context.Context, q preview.Question) (*preview.Answer, error) {
	v := &wanted{ctx: ctx, node: n}
	name := ""
	v.ask(func(view *sync.View) { name = view.Site().Node.Name })
	a := preview.AnswerPacket(preview.Ground{Node: name, Clients: n.about.Clients, View: v}, q)
	if v.err != nil {
		return nil, v.err
	}
	return a, nil
}

// wanted is what the loop wants, a question for each part of it: what a Service of many endpoints takes to think through is
// not the loop's time. After an error nothing more is asked, and what is had is worth nothing.
type wanted struct {
	ctx  context.Context
	node *Node
	err  error
}

func (w *wanted) ask(f func(*sync.View)) {
	if w.err == nil {
		w.err = w.node.loop.Ask(w.ctx, f)
	}
}

// Passage takes what is wanted for packets to a Key.
func (w *wanted) Passage(k ipvs.Key) (p desk.Passage) {
	w.ask(func(v *sync.View) { p = v.Passage(k) })
	return p
}

// Snapshot takes what decides what a Service becomes.
func (w *wanted) Snapshot(id cluster.ID) (s desk.Snapshot) {
	w.ask(func(v *sync.View) { s = v.Snapshot(id) })
	return s
}

// Asking are the Services that ask for an address from outside.
func (w *wanted) Asking(a netip.Addr) []cluster.ID {
	if w.node.about.Asking == nil {
		return nil
	}
	return w.node.about.Asking(a)
}
