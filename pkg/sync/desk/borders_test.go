package desk

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// endpointAt is one of port p80 on a node; "": nobody says on which.
func endpointAt(addr, node string) cluster.Endpoint {
	return cluster.Endpoint{Addr: netip.MustParseAddr(addr), Port: 8080, Protocol: cluster.TCP, PortName: "p80", NodeName: node, Ready: true, Serving: true}
}

// bordersSite is a node with a bridge of pods and a second interface.
func bordersSite(d *Desk) {
	node := nodeNamed("192.0.2.7")
	node.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	d.Move(node, ipvs.Local{
		Addrs: addrsOf("192.0.2.7", "10.244.1.1", "198.18.0.7", "203.0.113.9", "2001:db8:9::7"),
		Own:   addrsOf("192.0.2.7", "10.244.1.1", "198.18.0.7", "2001:db8:9::7"),
		Subnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.244.1.0/24"),
			netip.MustParsePrefix("198.18.0.0/24"), netip.MustParsePrefix("198.18.9.0/31"), netip.MustParsePrefix("2001:db8:9::/64")},
	}, nil, time.Time{})
}

// settle decides Services, in an order, with what follows.
func settle(d *Desk, ids ...cluster.ID) {
	for len(ids) > 0 {
		ids = append(ids[1:], d.Decide(ids[0], time.Time{}).Also...)
	}
}

// TestBorderAddresses: what no Service may have from outside though neither its Node object nor the configuration
// names it, and why (B61, B86).
func TestBorderAddresses(t *testing.T) {
	pods := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd10:244::/56")}
	for _, c := range []struct {
		addr string
		why  Code // None: it may
	}{
		{"203.0.113.1", None},
		{"203.0.113.9", None}, // on an interface, without a subnet: a virtual IP of another program
		{"10.244.200.3", PodAddress},
		{"fd10:244:0:7::3", PodAddress},
		{"198.18.0.7", NodeAddress},
		{"2001:db8:9::7", NodeAddress},
		{"198.18.0.255", NoHostAddress},
		{"198.18.0.0", NoHostAddress},
		{"2001:db8:9::", NoHostAddress},
		{"198.18.9.0", None}, // of two hosts each is one
		{"240.0.0.1", NoHostAddress},
		{"172.16.0.4", EndpointAddress}, // a pod's of which only its slice says so
		{"172.16.0.5", EndpointAddress}, // named by hand by a Service that is older
		{"172.16.0.6", None},            // and by one that is younger
		{"2001:db8:4::4", EndpointAddress},
	} {
		for _, claim := range []string{"balancer", "external"} {
			t.Run(c.addr+" "+claim, func(t *testing.T) {
				svc := service("thief", "10.96.0.9", 80)
				svc.ClusterIPs = append(svc.ClusterIPs, netip.MustParseAddr("fd00:96::9"))
				svc.Created = 5
				if claim == "balancer" {
					svc.Type, svc.LoadBalancerIPs = cluster.TypeLoadBalancer, addrsOf(c.addr)
				} else {
					svc.ExternalIPs = addrsOf(c.addr)
				}
				old, young, pod := service("old", "10.96.0.1", 80), service("young", "10.96.0.2", 80), service("pod", "10.96.0.3", 80)
				old.Created, young.Created, pod.Created = 4, 6, 9
				o := objects{svc.ID: {svc: svc}, old.ID: {svc: old, eps: []cluster.Endpoint{endpointAt("172.16.0.5", "")}},
					young.ID: {svc: young, eps: []cluster.Endpoint{endpointAt("172.16.0.6", "")}},
					pod.ID:   {svc: pod, eps: []cluster.Endpoint{endpointAt("172.16.0.4", "node2"), endpointAt("2001:db8:4::4", "node2")}}}
				d := New(o, Options{Pods: pods, ExternalIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}})
				bordersSite(d)
				settle(d, o.Services()...)
				got := None
				for _, r := range d.Snapshot(svc.ID).Explain().Refused {
					got = r.Why
				}
				k := ipvs.Key{Addr: netip.MustParseAddr(c.addr), Port: 80, Proto: ipvs.TCP}
				if served := d.Want(k, time.Time{}).Frontend != nil; got != c.why || served != (c.why == None) {
					t.Errorf("refused for %s, served %t; want %s", got, served, c.why)
				}
				problems := d.Decide(svc.ID, time.Time{}).Problems
				if len(problems) != len(asList(c.why)) || len(problems) > 0 && (problems[0].Reason != c.why.name() || !strings.Contains(problems[0].Text, c.addr)) {
					t.Errorf("problems %+v, want one of %s", problems, c.why)
				}
			})
		}
	}
}

func asList(c Code) []Code {
	if c == None {
		return nil
	}
	return []Code{c}
}

// TestClaimsSpareEndpoints: whoever asks for a pod's address, at whatever age, the Service of the pod keeps its endpoint,
// whichever of the two comes first, and its address is the thief's no longer than until the pod is known (B60).
func TestClaimsSpareEndpoints(t *testing.T) {
	const pod = "10.244.2.10"
	thief, dns := balancer("thief", "10.96.0.9", pod, 1, 80), service("dns", "10.96.0.10", 80)
	dns.Created = 9
	own := ipvs.Key{Addr: netip.MustParseAddr(pod), Port: 80, Proto: ipvs.TCP}
	of := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}
	for _, order := range [][]cluster.ID{{thief.ID, dns.ID}, {dns.ID, thief.ID}} {
		o := objects{}
		d := New(o, Options{})
		bordersSite(d)
		o[thief.ID] = object{svc: thief}
		settle(d, thief.ID)
		if d.Want(own, time.Time{}).Frontend == nil {
			t.Fatal("the control: without the pod the thief has its address")
		}
		o[dns.ID] = object{svc: dns, eps: []cluster.Endpoint{endpointAt(pod, "node2")}}
		for _, id := range order {
			is := d.Decide(id, time.Time{})
			for _, p := range is.Problems {
				if id == dns.ID {
					t.Errorf("%v: the Service of the pod has the problem %s", order, p.Text)
				}
			}
			settle(d, is.Also...)
		}
		if f := d.Want(own, time.Time{}).Frontend; f != nil {
			t.Errorf("%v: the thief has the pod's address: %+v", order, f)
		}
		if reals := d.Want(of, time.Time{}).Frontend.Server.Reals; len(reals) != 1 {
			t.Errorf("%v: the Service of the pod has %v", order, reals)
		}
		o[dns.ID] = object{svc: dns}
		settle(d, dns.ID, thief.ID) // as the model marks them
		if d.Want(own, time.Time{}).Frontend == nil {
			t.Errorf("%v: the pod is gone, and the address is nobody's", order)
		}
		delete(o, dns.ID)
		delete(o, thief.ID)
		settle(d, dns.ID, thief.ID)
		isEmpty(t, d)
	}
}

// TestHandMadeEndpoints: of a claim and an endpoint without a node the older Service's holds, in whatever order they are
// decided: neither takes away what was there before (B60).
func TestHandMadeEndpoints(t *testing.T) {
	const addr = "203.0.113.5"
	for _, c := range []struct {
		what          string
		claim, naming int64 // when they were made
		served        bool
	}{{"the claim is older", 1, 2, true}, {"the endpoint is older", 2, 1, false}, {"of the same age by name", 1, 1, false}} {
		claim, naming := balancer("claim", "10.96.0.9", addr, c.claim, 80), service("alias", "10.96.0.10", 80)
		naming.Created = c.naming
		for _, order := range [][]cluster.ID{{claim.ID, naming.ID}, {naming.ID, claim.ID}} {
			o := objects{claim.ID: {svc: claim}, naming.ID: {svc: naming, eps: []cluster.Endpoint{endpointAt(addr, "")}}}
			d := New(o, Options{})
			bordersSite(d)
			settle(d, order...)
			served := d.Want(ipvs.Key{Addr: netip.MustParseAddr(addr), Port: 80, Proto: ipvs.TCP}, time.Time{}).Frontend != nil
			reals := d.Want(ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}, time.Time{}).Frontend.Server.Reals
			if served != c.served || len(reals) == 1 == c.served {
				t.Errorf("%s, %v: served %t, endpoints %v", c.what, order, served, reals)
			}
		}
	}
}

// TestListOfNodes: a status that names this node names nodes. The others are served neither, of the same family (B86).
func TestListOfNodes(t *testing.T) {
	for _, c := range []struct {
		list      []string
		served    []string
		protected bool
	}{
		{[]string{"192.0.2.7", "192.0.2.8", "203.0.113.1"}, nil, false},
		{[]string{"192.0.2.7", "192.0.2.8"}, nil, true},
		{[]string{"192.0.2.8", "203.0.113.1"}, []string{"192.0.2.8", "203.0.113.1"}, false},
		{[]string{"192.0.2.7", "2001:db8::8"}, []string{"2001:db8::8"}, false},
	} {
		svc := service("lb", "10.96.0.9", 80)
		svc.ClusterIPs = append(svc.ClusterIPs, netip.MustParseAddr("fd00:96::9"))
		svc.Type, svc.LoadBalancerIPs = cluster.TypeLoadBalancer, addrsOf(c.list...)
		opt := Options{}
		if c.protected {
			opt.Protected = []netip.Prefix{netip.MustParsePrefix("172.31.0.0/16")}
		}
		d := New(objects{svc.ID: {svc: svc}}, opt)
		bordersSite(d)
		is := d.Decide(svc.ID, time.Time{})
		var got []netip.Addr
		for _, a := range svc.LoadBalancerIPs {
			if d.Want(ipvs.Key{Addr: a, Port: 80, Proto: ipvs.TCP}, time.Time{}).Frontend != nil {
				got = append(got, a)
			}
		}
		if !slices.Equal(got, addrsOf(c.served...)) {
			t.Errorf("%v: %v are served, want %v", c.list, got, c.served)
		}
		hinted := strings.Contains(fmt.Sprint(is.Problems), "protectedCIDRs, which is empty")
		if want := len(c.served) == 0 && !c.protected; hinted != want {
			t.Errorf("%v: protectedCIDRs named: %t, want %t: %+v", c.list, hinted, want, is.Problems)
		}
	}
}

// TestHostlessEndpoints: endpoints that no host can be are left out beside good ones, with a reason; those that become one
// when the node gets a subnet, then (B4).
func TestHostlessEndpoints(t *testing.T) {
	svc := service("web", "10.96.0.10", 80)
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}
	o := objects{svc.ID: {svc: svc, eps: []cluster.Endpoint{endpointAt("10.244.2.10", "node2"), endpointAt("198.18.0.255", ""), endpointAt("198.18.7.255", ""), endpointAt("240.0.0.1", "")}}}
	d := New(o, Options{})
	bordersSite(d)
	is := d.Decide(svc.ID, time.Time{})
	reals := func() (list []string) {
		for _, r := range d.Want(key, time.Time{}).Frontend.Server.Reals {
			list = append(list, r.Addr.Addr().String())
		}
		return list
	}
	if got := reals(); !slices.Equal(got, []string{"10.244.2.10", "198.18.7.255"}) {
		t.Errorf("endpoints %v", got)
	}
	if len(is.Problems) != 2 || is.Problems[0].Reason != ReasonNoHost || !strings.Contains(is.Problems[0].Text, "198.18.0.255") || !is.Problems[0].Anywhere {
		t.Errorf("problems %+v", is.Problems)
	}
	judged := d.Snapshot(svc.ID).Explain().Frontends[0].Endpoints
	if len(judged) != 4 || judged[2].Why != NoHost || judged[2].Used() {
		t.Errorf("explained as %+v", judged)
	}
	local := d.Site().Local
	local.Subnets = append(slices.Clone(local.Subnets), netip.MustParsePrefix("198.18.7.0/24"), netip.MustParsePrefix("240.0.0.0/24"))
	settle(d, d.Move(d.Site().Node, local, nil, time.Time{})...)
	if got := reals(); !slices.Equal(got, []string{"10.244.2.10", "240.0.0.1"}) {
		t.Errorf("with subnets for two of them: endpoints %v", got)
	}
	pods := New(o, Options{Pods: []netip.Prefix{netip.MustParsePrefix("240.0.0.0/8")}})
	pods.Move(nodeNamed("192.0.2.7"), ipvs.Local{}, nil, time.Time{})
	if is := pods.Decide(svc.ID, time.Time{}); len(is.Problems) > 0 {
		t.Errorf("a cluster with its pods in 240.0.0.0/8: %+v", is.Problems)
	}
}

// TestForeignClusterIP: a ClusterIP that another proxy serves is its Service's on every port, whoever comes first; when it
// goes, the address is anybody's (B60).
func TestForeignClusterIP(t *testing.T) {
	const addr = "10.96.0.1"
	thief, foreign := balancer("thief", "10.96.0.9", addr, 1, 80), service("victim", addr, 443)
	foreign.Created, foreign.Foreign = 9, true
	alias := service("alias", "10.96.0.10", 80)
	key := ipvs.Key{Addr: netip.MustParseAddr(addr), Port: 80, Proto: ipvs.TCP}
	for _, order := range [][]cluster.ID{{thief.ID, foreign.ID}, {foreign.ID, thief.ID}} {
		o := objects{alias.ID: {svc: alias, eps: []cluster.Endpoint{endpointAt(addr, "")}}}
		alias.Created = 20
		d := New(o, Options{})
		bordersSite(d)
		settle(d, alias.ID)
		check := func(when string, taken bool) {
			t.Helper()
			if got := d.Want(key, time.Time{}).Frontend != nil; got != taken {
				t.Errorf("%s, %v: the thief has the address: %t", when, order, got)
			}
			reals := d.Want(ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}, time.Time{}).Frontend.Server.Reals
			if len(reals) == 1 == taken {
				t.Errorf("%s, %v: who leads there has %v", when, order, reals)
			}
		}
		for i, id := range order {
			if id == thief.ID {
				o[id] = object{svc: thief}
			} else {
				o[id] = object{foreign: foreign}
			}
			settle(d, id)
			check("after "+id.String(), i == 0 && id == thief.ID)
		}
		if p := d.Decide(thief.ID, time.Time{}).Problems; len(p) != 1 || p[0].Reason != ReasonAddressTaken || !strings.Contains(p[0].Text, "default/victim") {
			t.Errorf("problems %+v", p)
		}
		if why := d.Snapshot(thief.ID).Owners[key]; why != (Owner{foreign.ID, ClusterIPTaken}) {
			t.Errorf("explained as %+v", why)
		}
		delete(o, foreign.ID)
		settle(d, foreign.ID)
		check("the victim is gone", true)
		clear(o)
		settle(d, thief.ID, alias.ID)
		isEmpty(t, d)
	}
}

// TestAPIServersSlice: what a slice of default/kubernetes says protects an address for as long as it says so, and no
// longer; by which the API server was reached, for good (B61).
func TestAPIServersSlice(t *testing.T) {
	const addr = "203.0.113.1"
	lb := balancer("lb", "10.96.0.9", addr, 1, 80)
	key := ipvs.Key{Addr: netip.MustParseAddr(addr), Port: 80, Proto: ipvs.TCP}
	o := objects{lb.ID: {svc: lb}}
	d := New(o, Options{})
	move := func(reached ...netip.Addr) {
		settle(d, d.Move(nodeNamed("192.0.2.7"), ipvs.Local{}, reached, time.Time{})...)
	}
	served := func(when string, want bool) {
		t.Helper()
		if got := d.Want(key, time.Time{}).Frontend != nil; got != want {
			t.Errorf("%s: served %t", when, got)
		}
	}
	move()
	settle(d, lb.ID)
	served("at first", true)
	o[kubernetes] = object{eps: []cluster.Endpoint{endpointAt(addr, "")}}
	move()
	served("a slice names it", false)
	delete(o, kubernetes)
	move()
	served("the slice is gone", true)
	move(netip.MustParseAddr(addr))
	served("the API server is there", false)
	move(netip.MustParseAddr(addr))
	served("and remains", false)
}
