package desk

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// placed are endpoints on this node, in its zone, and elsewhere.
func placed() (eps []cluster.Endpoint) {
	for i, at := range [][2]string{{thisNode, "a"}, {"near", "a"}, {"far", "b"}, {"", ""}} {
		eps = append(eps, cluster.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, 0, byte(i + 1)}), Port: 8080, Protocol: cluster.TCP,
			PortName: "p80", NodeName: at[0], Zone: at[1], Ready: true, Serving: true})
	}
	return eps
}

func siteOf(lacking ...string) Site {
	s := Site{Node: cluster.Node{Name: thisNode, Zone: "a", Addrs: addrsOf("192.0.2.1")}, Lacking: map[string]bool{}}
	for _, name := range lacking {
		s.Lacking[name] = true
	}
	return s
}

// serverOf is what a Service's ClusterIP becomes, in a line.
func serverOf(f Fragment) string {
	s := f.Claims[0].Claim.Want.Server
	text := fmt.Sprintf("%s %#x", s.Scheduler, uint32(s.Flags))
	for _, r := range s.Reals {
		text += fmt.Sprintf(" %d", r.Weight)
		if r.Most > 0 {
			text += fmt.Sprintf("/%d", r.Most)
		}
	}
	return text
}

// B70, B71: what an annotation makes of a virtual server, of the node's own scheduler, and of one that the kernel lacks.
func TestB70Server(t *testing.T) {
	type asked = cluster.Scheduling
	weights := cluster.Weights{Given: true, SameNode: 100, SameZone: 10, Other: 1}
	weigh := func(w ...int) (list []cluster.Weight) {
		for _, n := range w {
			list = append(list, cluster.Weight{Given: n >= 0, Is: uint16(max(n, 0))})
		}
		return list
	}
	for _, c := range []struct {
		asked   asked
		node    string // its scheduler
		slices  []cluster.Weight
		lacking []string
		want    string
		warns   int
	}{
		{asked{}, "", nil, nil, "rr 0x0 1 1 1 1", 0},
		{asked{Scheduler: "lc"}, "", nil, nil, "lc 0x0 1 1 1 1", 0},
		{asked{}, "sh", nil, nil, "sh 0x8 1 1 1 1", 0},
		{asked{}, "mh", nil, nil, "mh 0x18 1 1 1 1", 0}, // as kube-proxy's, by connection
		{asked{Scheduler: "mh"}, "rr", nil, nil, "mh 0x8 1 1 1 1", 0},
		{asked{Scheduler: "mh", Ports: true}, "rr", nil, nil, "mh 0x18 1 1 1 1", 0},
		{asked{Scheduler: "sh", Ports: true}, "mh", nil, nil, "sh 0x18 1 1 1 1", 0},
		{asked{Scheduler: "nq"}, "lc", nil, []string{"nq"}, "lc 0x0 1 1 1 1", 1},
		{asked{Scheduler: "nq"}, "lc", nil, []string{"nq", "lc"}, "rr 0x0 1 1 1 1", 1},
		{asked{Weights: weights}, "", nil, nil, "wrr 0x0 100 10 1 1", 0},
		{asked{Weights: weights}, "", nil, []string{"wrr"}, "rr 0x0 100 10 1 1", 0},
		{asked{Weights: weights}, "lc", nil, nil, "wlc 0x0 100 10 1 1", 0},
		{asked{Weights: weights, Scheduler: "sed"}, "", nil, nil, "sed 0x0 100 10 1 1", 0},
		{asked{}, "", weigh(5, -1, 0, 7), nil, "wrr 0x0 5 1 0 7", 0},
		{asked{}, "", weigh(0, 0, 0, 0), nil, "wrr 0x0 1 1 1 1", 0},
		{asked{Weights: weights}, "", weigh(65535, 65535, 1, 0), nil, "wrr 0x0 65535 6553 1 0", 0},
		{asked{MaxConnections: 9}, "", nil, nil, "rr 0x0 1/9 1/9 1/9 1/9", 0},
		{asked{OnePacket: true}, "", nil, nil, "rr 0x0 1 1 1 1", 0}, // TCP
	} {
		svc := service("web", "10.96.0.1", 80)
		svc.Scheduling = c.asked
		eps := placed()
		for i, w := range c.slices {
			eps[i].Weight = w
		}
		f := Compile(svc, eps, nil, siteOf(c.lacking...), Options{Scheduler: cmp.Or(c.node, "rr")})
		if got := serverOf(f); got != c.want || len(f.Problems) != c.warns {
			t.Errorf("%+v, node's %q, slices %v, lacking %q: %s, want %s; problems %v, want %d", c.asked, c.node, c.slices, c.lacking, got, c.want, f.Problems, c.warns)
		}
		if f.Zonal != c.asked.Weights.Given {
			t.Errorf("%+v: zonal %t", c.asked, f.Zonal)
		}
	}
	udp := service("dns", "10.96.0.2", 53)
	udp.Ports[0].Protocol, udp.Scheduling.OnePacket = cluster.UDP, true
	f := Compile(udp, nil, nil, siteOf(), Options{Scheduler: "rr"})
	if got := f.Claims[0].Claim.Want.Server.Flags; got != ipvs.OnePacket {
		t.Errorf("one-packet of UDP: flags %#x", uint32(got))
	}
}

// B70: a scheduler that the kernel lacks concerns the Services that need it, and they alone are decided anew when it turns up.
func TestB70Lacking(t *testing.T) {
	asks := func(name, ip, scheduler string) *cluster.Service {
		s := service(name, ip, 80)
		s.Scheduling.Scheduler = scheduler
		return s
	}
	weighs := service("weighs", "10.96.0.4", 80)
	weighs.Scheduling.Weights = cluster.Weights{Given: true, SameNode: 2, SameZone: 1, Other: 1}
	o := objects{}
	for _, s := range []*cluster.Service{service("plain", "10.96.0.1", 80), asks("nq", "10.96.0.2", "nq"), asks("lc", "10.96.0.3", "lc"), weighs} {
		o[s.ID] = object{svc: s, eps: placed()}
	}
	d := New(o, Options{})
	d.Move(nodeNamed("192.0.2.1"), ipvs.Local{}, nil, time.Unix(1, 0))
	for id := range o {
		d.Decide(id, time.Time{})
	}
	ids := func(names ...string) (list []cluster.ID) {
		for _, n := range names {
			list = append(list, idOf(n))
		}
		return list
	}
	for _, c := range []struct {
		scheduler string
		want      []cluster.ID
	}{{"nq", ids("nq")}, {"wrr", ids("weighs")}, {"sed", nil}} {
		again, news := d.Lack(c.scheduler)
		if !slices.Equal(again, c.want) || !news {
			t.Errorf("without %s: %v again, news %t; want %v", c.scheduler, again, news, c.want)
		}
		for _, id := range again {
			d.Decide(id, time.Time{})
		}
		if again, news := d.Lack(c.scheduler); news || again != nil {
			t.Errorf("without %s, again: %v, news %t", c.scheduler, again, news)
		}
	}
	if got := d.Lacking(); !slices.Equal(got, []string{"nq", "wrr"}) {
		t.Errorf("lacking %q, of which somebody wants nq and wrr", got)
	}
	if got := d.Gain("nq"); !slices.Equal(got, ids("nq")) {
		t.Errorf("nq turned up: %v", got)
	}
	o[idOf("weighs")] = object{svc: service("weighs", "10.96.0.4", 80), eps: placed()}
	d.Decide(idOf("weighs"), time.Time{})
	if got := d.Lacking(); len(got) > 0 {
		t.Errorf("lacking %q, of which nobody wants any", got)
	}
}
