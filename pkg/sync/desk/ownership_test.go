package desk

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// TestOwnership: who gets an address and port that several Services claim (B60).
func TestOwnership(t *testing.T) {
	const lb, clusterIP, nodeIP = "203.0.113.1", "10.96.0.1", "192.0.2.7"
	victim := func() *cluster.Service { return service("victim", clusterIP, 80) }
	for _, c := range []struct {
		name  string
		svcs  []*cluster.Service
		owner map[string]string // of "address:port"; "" is nobody
	}{
		{"a ClusterIP beats an older external IP, on its free ports as well",
			[]*cluster.Service{external(service("thief", "10.96.0.2", 80, 443), 1, clusterIP), victim()},
			map[string]string{clusterIP + ":80": "victim", clusterIP + ":443": "", "10.96.0.2:443": "thief"}},
		{"and an older load balancer's address",
			[]*cluster.Service{balancer("thief", "10.96.0.2", clusterIP, 1, 80, 443), victim()},
			map[string]string{clusterIP + ":80": "victim", clusterIP + ":443": ""}},
		{"two Services with one ClusterIP: the older has all of it",
			[]*cluster.Service{external(service("late", clusterIP, 80, 81), 9), external(service("early", clusterIP, 80, 82), 3)},
			map[string]string{clusterIP + ":80": "early", clusterIP + ":81": "", clusterIP + ":82": "early"}},
		{"the owner of a ClusterIP may have it as its load balancer's address too",
			[]*cluster.Service{balancer("own", clusterIP, clusterIP, 1, 80)}, map[string]string{clusterIP + ":80": "own"}},
		{"one load balancer address, two ports", []*cluster.Service{balancer("one", "10.96.0.2", lb, 1, 80), balancer("two", "10.96.0.3", lb, 2, 443)},
			map[string]string{lb + ":80": "one", lb + ":443": "two"}},
		{"one load balancer address and port: the older", []*cluster.Service{balancer("late", "10.96.0.2", lb, 2, 80), balancer("early", "10.96.0.3", lb, 1, 80)},
			map[string]string{lb + ":80": "early"}},
		{"of the same age: by name", []*cluster.Service{balancer("b", "10.96.0.2", lb, 2, 80), balancer("a", "10.96.0.3", lb, 2, 80)},
			map[string]string{lb + ":80": "a"}},
		{"a load balancer before a node port, whatever their age",
			[]*cluster.Service{nodePorts(external(service("np", "10.96.0.2", 80), 1), 30080), balancer("lb", "10.96.0.3", nodeIP, 9, 30080)},
			map[string]string{nodeIP + ":30080": "lb"}},
		{"a node port before an external IP",
			[]*cluster.Service{external(service("ext", "10.96.0.3", 30080), 1, nodeIP), nodePorts(external(service("np", "10.96.0.2", 80), 9), 30080)},
			map[string]string{nodeIP + ":30080": "np"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			opt := Options{Scheduler: "rr", ExternalIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}
			for _, order := range [][]int{{0, 1}, {1, 0}} {
				m := objects{}
				d := New(m, opt)
				d.Move(nodeNamed("192.0.2.1"), ipvs.Local{Addrs: addrsOf(nodeIP)}, nil, time.Time{})
				for _, i := range order {
					if i < len(c.svcs) {
						m[c.svcs[i].ID] = object{svc: c.svcs[i]}
						d.Decide(c.svcs[i].ID, time.Time{})
					}
				}
				check := func(when string, owner map[string]string) {
					t.Helper()
					for at, want := range owner {
						ap := netip.MustParseAddrPort(at)
						if got := d.Want(ipvs.Key{Addr: ap.Addr(), Port: ap.Port(), Proto: ipvs.TCP}, time.Time{}).Service.Name; got != want {
							t.Errorf("%s: %s belongs to %q, want %q", when, at, got, want)
						}
					}
				}
				check("order", c.owner)
				// The owner goes: whoever is left takes over what it claims.
				for name := range ownersOf(c.owner) {
					delete(m, idOf(name))
					d.Decide(idOf(name), time.Time{})
				}
				for at := range c.owner {
					ap := netip.MustParseAddrPort(at)
					k := ipvs.Key{Addr: ap.Addr(), Port: ap.Port(), Proto: ipvs.TCP}
					if claimed := len(d.ledger.claims[k]) > 0; claimed != (d.Want(k, time.Time{}).Frontend != nil) {
						t.Errorf("%s: claimed %t, owned %t after its owner went", at, claimed, !claimed)
					}
				}
				for _, s := range c.svcs {
					delete(m, s.ID)
					d.Decide(s.ID, time.Time{})
				}
				isEmpty(t, d)
			}
		})
	}
}

func ownersOf(owner map[string]string) map[string]bool {
	names := map[string]bool{}
	for _, name := range owner {
		if name != "" {
			names[name] = true
		}
	}
	return names
}

// isEmpty: nothing is left at a desk whose Services are all gone.
func isEmpty(t *testing.T, d *Desk) {
	t.Helper()
	l, c := d.ledger, d.checkPorts
	if len(l.claims)+len(l.byService)+len(l.holding)+len(l.external)+len(l.needs)+len(l.users)+len(l.considered)+len(l.holds) > 0 {
		t.Errorf("all gone, and the ledger holds %+v", l)
	}
	if len(d.sensitive)+len(d.zonal)+len(d.dns)+len(d.refused)+len(d.refusedOf)+len(c.of)+len(c.asking) > 0 {
		t.Errorf("all gone, and the desk holds %+v", d)
	}
}

// TestRefusedAddresses: what no Service may have, whoever writes it, and why (B14, B61).
func TestRefusedAddresses(t *testing.T) {
	opt := Options{Scheduler: "rr", ExternalIPs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("192.0.2.0/24")},
		Protected: []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25")}}
	site := NewSite(nodeNamed("192.0.2.7"), ipvs.Local{Addrs: addrsOf("192.0.2.7", "203.0.113.9")}, addrsOf("192.0.2.100"), opt)
	for _, c := range []struct {
		svc   *cluster.Service
		at    string
		field string // "": served
		why   string
	}{
		{balancer("s", "10.96.0.1", "203.0.113.1", 1, 80), "203.0.113.1", "", ""},
		{balancer("s", "10.96.0.1", "192.0.2.7", 1, 80), "192.0.2.7", "status.loadBalancer", "an address of this node"},
		{balancer("s", "10.96.0.1", "192.0.2.100", 1, 80), "192.0.2.100", "status.loadBalancer", "of the API server"},
		{balancer("s", "10.96.0.1", "192.0.2.200", 1, 80), "192.0.2.200", "status.loadBalancer", "protected range"},
		{balancer("s", "10.96.0.1", "2001:db8::1", 1, 80), "2001:db8::1", "status.loadBalancer", "family"},
		{balancer("s", "10.96.0.1", "203.0.113.9", 1, 80), "203.0.113.9", "", ""}, // on another interface
		{external(service("s", "10.96.0.1", 80), 1, "198.51.100.1"), "198.51.100.1", "", ""},
		{external(service("s", "10.96.0.1", 80), 1, "203.0.113.1"), "203.0.113.1", "spec.externalIPs", "--external-ip-cidrs"},
		{external(service("s", "10.96.0.1", 80), 1, "192.0.2.7"), "192.0.2.7", "spec.externalIPs", "an address of this node"},
		{service("s", "192.0.2.7", 80), "192.0.2.7", "spec.clusterIPs", "an address of this node"},
	} {
		f := Compile(c.svc, nil, nil, site, opt)
		var fe *ipvs.Frontend
		for _, k := range f.Claims {
			if k.Key.Addr.String() == c.at {
				fe = k.Claim.Want
			}
		}
		var texts []string
		for _, p := range f.Problems {
			texts = append(texts, p.Text)
		}
		text := strings.Join(texts, "; ")
		switch {
		case c.field == "" && (fe == nil || text != ""):
			t.Errorf("%s: frontend %+v, problems %q; want it served", c.at, fe, text)
		case c.field == "" && (fe.Bind == site.isLocal(netip.MustParseAddr(c.at)) || fe.Guard.VIP != fe.Bind):
			t.Errorf("%s: bound %t, closed %t", c.at, fe.Bind, fe.Guard.VIP)
		case c.field != "" && (fe != nil || !strings.Contains(text, c.field) || !strings.Contains(text, c.at) || !strings.Contains(text, c.why)):
			t.Errorf("%s: frontend %+v, problems %q; want it refused for %s: %s", c.at, fe, text, c.field, c.why)
		}
	}
}
