package desk

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// B73: what a Passage says of packets to a Key: whose it is, where clients inside are sent, and of an address that has
// hundreds of ports the first few.
func TestB73Passage(t *testing.T) {
	shop := nodePorts(balancer("shop", "10.96.0.1", "203.0.113.1", 1, 80), 30080)
	shop.ExternalLocal = true
	many := service("many", "10.96.0.2")
	for p := range uint16(200) {
		many.Ports = append(many.Ports, cluster.Port{Protocol: cluster.TCP, Port: 1000 + p})
	}
	o := objects{
		idOf("shop"): {svc: shop, eps: []cluster.Endpoint{endpoint(5, "here"), endpoint(6, "")}},
		idOf("many"): {svc: many},
	}
	d := decided(o, Options{}, ipvs.Local{Addrs: addrsOf("192.0.2.7")})
	at := func(addr string, port uint16) Passage {
		return d.Passage(ipvs.Key{Addr: netip.MustParseAddr(addr), Port: port, Proto: ipvs.TCP}, time.Time{})
	}
	here := o[idOf("shop")].eps[0].Addr
	if p := at("203.0.113.1", 80); p.Service != idOf("shop") || p.Rank != RankLoadBalancer || !p.VIP || !p.Bound || len(p.Frontend.Server.Reals) != 1 ||
		p.Inside == nil || p.Inside.Key.Addr != netip.MustParseAddr("10.96.0.1") || len(p.Inside.Frontend.Server.Reals) != 2 || !slices.Equal(p.Hairpin, []netip.Addr{here}) {
		t.Errorf("the load balancer's address: %+v", p)
	}
	if p := at("192.0.2.7", 30080); p.Rank != RankNodePort || p.VIP || p.Bound || p.Inside == nil || len(p.Ports) > 0 {
		t.Errorf("the node port: %+v", p)
	}
	if p := at("10.96.0.2", 53); p.Frontend != nil || p.Service != idOf("many") || !p.VIP || len(p.Ports) != passagePorts || p.More != 200-passagePorts || p.Ports[0].Port != 1000 {
		t.Errorf("a port that is not there: %+v", p)
	}
	if p := at(here.String(), 8080); p.Frontend != nil || p.Service != (cluster.ID{}) || p.VIP || p.Named.Pod != idOf("shop") {
		t.Errorf("an endpoint's address: %+v", p)
	}
}
