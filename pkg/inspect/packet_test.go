package inspect

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// What becomes of a packet is asked of the loop that runs: what it wants now, for the clients as the node knows them.
func TestB73PacketOfLoop(t *testing.T) {
	web := service("shop/web", "10.96.0.1", 80)
	held := service("shop/held", "10.96.0.2", 80)
	held.Spec.ExternalIPs = []string{"198.51.100.9"}
	n := newNode(t, web, slice(web, "10.244.1.1@node1", "10.244.2.1@node2"), held, slice(held))
	n.Node = n.WithPackets(preview.Clients{Pods: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}, n.model.Asking)
	ask := func(client, to string) *preview.Answer {
		t.Helper()
		q, err := preview.ParseQuestion([]string{client, to})
		if err != nil {
			t.Fatal(err)
		}
		a, err := n.Packet(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, c := range []struct {
		client, to string
		kind       preview.ClientKind
		verdict    preview.Verdict
		service    string
		code       string
		backends   int
	}{
		{"10.244.7.7", "10.96.0.1:80", preview.ClientPod, preview.Served, "shop/web", "", 2},
		{"192.0.2.7", "10.96.0.1:80", preview.ClientOutside, preview.Served, "shop/web", "", 2},
		{"node", "10.96.0.1:81", preview.ClientNode, preview.Refused, "shop/web", "IPX0301", 0},
		{"10.244.7.7", "10.96.0.2:80", preview.ClientPod, preview.Refused, "shop/held", "IPX0302", 0},
		{"192.0.2.7", "198.51.100.9:80", preview.ClientOutside, preview.Passes, "", "IPX0203", 0}, // asked for, and not given
	} {
		a := ask(c.client, c.to)
		if a.Node != "node1" || a.Kind != c.kind || a.Verdict != c.verdict || c.service != "" && a.Service != c.service || a.Code != c.code || len(a.Backends) != c.backends || a.Kernel == nil || !a.Kernel.Agrees {
			t.Errorf("%s to %s: %+v, want %+v", c.client, c.to, a, c)
		}
	}
	n.give(slice(web, "10.244.2.1@node2"))
	n.until(t, func(h Head) bool { return h.Programmed && len(ask("node", "10.96.0.1:80").Backends) == 1 })
}

// A loop that does not come to the question is an error, not half an answer.
func TestB73PacketWithoutAnswer(t *testing.T) {
	asked := 0
	n := New(asker(func(context.Context, func(*sync.View)) error { asked++; return sync.ErrCrowded }),
		About{}).WithPackets(preview.Clients{}, func(netip.Addr) []cluster.ID { return nil })
	a, err := n.Packet(t.Context(), preview.Question{To: ipvs.Key{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Proto: ipvs.TCP}})
	if a != nil || !errors.Is(err, sync.ErrCrowded) || asked != 1 || !strings.Contains(err.Error(), "ask again") {
		t.Errorf("%v, %v after %d questions", a, err, asked)
	}
}

type asker func(context.Context, func(*sync.View)) error

func (a asker) Ask(ctx context.Context, ask func(*sync.View)) error { return a(ctx, ask) }
