package traffic

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/attacks"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// attack is a row of the table that is tried by packets.
type attack struct {
	// svc makes mallory's Service of one that has ports, pod-c behind it and an address that nobody has.
	svc func(svc lab.Service) lab.Service
	// more are other objects that mallory writes.
	more func(svc lab.Service) []lab.Object
	// to is where it shows; not valid: not in this family.
	to func(family int) netip.AddrPort
	// owner answers there before; "": nobody does.
	owner string
	// goal is who answers there when the attack succeeds; "": pod-c, mallory's pod.
	goal string
	by   asking
}

// claimsOf claims addresses by a field, beside those that nobody has.
func claimsOf(field int, addrs ...string) func(lab.Service) lab.Service {
	return func(svc lab.Service) lab.Service { return claims[field].with(svc, slices.Concat(addrs, free)...) }
}

// endpointsByHand are slices of mallory's Service that nobody's controller has made, on a port, by family.
func endpointsByHand(port uint16, addrs map[int][]string) func(lab.Service) []lab.Object {
	return func(svc lab.Service) (objs []lab.Object) {
		for family, list := range addrs {
			sl := lab.Slice{Namespace: svc.Namespace, Service: svc.Name, Name: fmt.Sprintf("hand-%d", family), Family: family}
			for _, p := range svc.Ports {
				sl.Ports = append(sl.Ports, lab.Port{Name: p.Name, Protocol: p.Protocol, Port: port})
			}
			for _, a := range list {
				sl.Endpoints = append(sl.Endpoints, lab.Endpoint{Addr: netip.MustParseAddr(a)})
			}
			objs = append(objs, sl)
		}
		return objs
	}
}

// arena is a cluster with victims.
type arena struct {
	*stage
	bank, dns, api, theirs, shop, mallory lab.Service
}

// ipOf is an address of either family.
func ipOf(four, six string, port uint16) func(int) netip.AddrPort {
	return func(family int) netip.AddrPort {
		a := map[int]string{4: four, 6: six}[family]
		if a == "" {
			return netip.AddrPort{}
		}
		return netip.AddrPortFrom(netip.MustParseAddr(a), port)
	}
}

func vip(svc lab.Service, port uint16) func(int) netip.AddrPort {
	return ipOf(svc.ClusterIPs[0], svc.ClusterIPs[1], port)
}

// newArena has the victims' machines and daemons. The wire is the API server's, and another proxy's.
func newArena(t *testing.T) *arena {
	t.Helper()
	a := &arena{stage: newStage(t), bank: web(60), dns: web(10), theirs: web(92), shop: announced(web(88), "203.0.113.88", "fd20:113::88")}
	a.serveUDP(5353, a.pods()...)
	a.outsiders(6443)
	if _, err := a.w.Wire.ServeHTTP("wire", 80); err != nil {
		t.Fatal(err)
	}
	n := a.w.Node(1)
	if err := n.AddDummy("eth1", netip.MustParsePrefix("198.18.7.1/24"), netip.MustParsePrefix("fd18:7::1/64")); err != nil {
		t.Fatal(err)
	}
	for _, node := range a.w.Nodes {
		daemon(t, node, 22)
	}
	for _, port := range []uint16{10250, 30500} {
		daemon(t, n, port)
	}
	stop, err := n.ServeHTTP("loopback", 10260, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	br0, err := a.w.Wire.Netlink().LinkByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range a.theirs.ClusterIPs {
		addr := netip.MustParseAddr(ip)
		if err := a.w.Wire.Netlink().AddrAdd(br0, &netlink.Addr{IPNet: netipNet(netip.PrefixFrom(addr, addr.BitLen()))}); err != nil {
			t.Fatal(err)
		}
	}
	a.bank.Namespace, a.bank.Name, a.bank.Created = "bank", "vault", younger
	a.dns.Namespace, a.dns.Name = "kube-system", "kube-dns"
	a.dns.Ports = []lab.Port{{Name: "dns", Protocol: "UDP", Port: 53, TargetPort: 5353}, {Name: "http", Port: 80, TargetPort: 8080}}
	a.theirs.Namespace, a.theirs.Labels = "theirs", map[string]string{"service.kubernetes.io/service-proxy-name": "another"}
	a.shop.Namespace, a.shop.Type, a.shop.Created = "shop", "LoadBalancer", older.Add(-time.Hour)
	a.api = lab.Service{Name: "kubernetes", ClusterIPs: []string{"10.96.0.1", "fd00:96::1"}, Selector: map[string]string{}, Ports: []lab.Port{{Name: "https", Port: 443, TargetPort: 6443}}}
	a.mallory = mallory(61, 22, 53, 80, 443, 6443, 8080)
	return a
}

// open applies the victims, once a proxy runs, and waits until they are served.
func (a *arena) open() {
	a.t.Helper()
	a.apply(a.bank, a.w.Pod("pod-b"))
	a.apply(a.dns, a.w.Pod("pod-a"))
	a.apply(a.shop, a.w.Pod("pod-b"))
	a.cluster.Apply(append(byHand(a.api, "apiserver", 6443, a.w.Wire), a.api, a.theirs)...)
}

// attacks are those that are tried by packets, by their row.
func (a *arena) attacks() map[string]attack {
	n1, n2, b := a.w.Node(1), a.w.Node(2), a.w.Pod("pod-b")
	of := func(h *lab.Host) []string { return []string{h.V4.String(), h.V6.String()} }
	at := func(h *lab.Host, port uint16) func(int) netip.AddrPort {
		return ipOf(h.V4.String(), h.V6.String(), port)
	}
	lb := ipOf("203.0.113.88", "fd20:113::88", 80)
	alone := func(svc lab.Service) lab.Service { return claimsOf(0)(svc) }
	return map[string]attack{
		"A1": {svc: claimsOf(1, a.bank.ClusterIPs...), to: vip(a.bank, 80), owner: "pod-b"},
		"A2": {svc: claimsOf(0, a.bank.ClusterIPs...), to: vip(a.bank, 80), owner: "pod-b"},
		"A3": {svc: claimsOf(1, a.bank.ClusterIPs...), to: vip(a.bank, 443)},
		"A4": {svc: claimsOf(0, a.api.ClusterIPs...), to: vip(a.api, 443), owner: "wire"},
		"A5": {svc: claimsOf(0, a.dns.ClusterIPs...), to: vip(a.dns, 53), owner: "pod-a", by: asks[1]},
		"A6": {svc: claimsOf(0, a.theirs.ClusterIPs...), to: vip(a.theirs, 80), owner: "wire"},
		"A7": {svc: claimsOf(0, of(a.w.Wire)...), to: at(a.w.Wire, 6443), owner: "wire"},
		"A8": {svc: claimsOf(1, of(n1.Host)...), to: at(n1.Host, 22), owner: "daemon of node1"},
		"A9": {svc: claimsOf(0, "198.18.7.1", "fd18:7::1"), to: ipOf("198.18.7.1", "fd18:7::1", 22), owner: "daemon of node1"},
		"A10": {svc: claimsOf(0, n1.Gateway4.String(), n1.Gateway6.String()), to: ipOf(n1.Gateway4.String(), n1.Gateway6.String(), 22),
			owner: "daemon of node1"},
		"A11": {svc: func(svc lab.Service) lab.Service {
			svc.Type = "LoadBalancer" // without the addresses that nobody has: these would be taken for nodes as well
			return announced(svc, slices.Concat(of(n1.Host), of(n2.Host))...)
		}, to: at(n2.Host, 22), owner: "daemon of node2"},
		"A12": {svc: claimsOf(0, of(n2.Host)...), to: at(n2.Host, 22), owner: "daemon of node2"},
		"A13": {svc: claimsOf(0, of(b.Host)...), to: at(b.Host, 8080), owner: "pod-b"},
		"A14": {svc: claimsOf(0, of(b.Host)...), to: vip(a.bank, 80), owner: "pod-b"},
		"A15": {svc: claimsOf(1, "203.0.113.88", "fd20:113::88"), to: lb, owner: "pod-b"},
		"A16": {svc: claimsOf(0, "240.0.0.1", "fd28:128::"), to: ipOf("240.0.0.1", "fd28:128::", 80)},
		"A17": {svc: alone, more: endpointsByHand(10260, map[int][]string{4: {"127.0.0.1"}, 6: {"::1"}}), to: vip(a.mallory, 80), goal: "loopback"},
		"A18": {svc: alone, more: endpointsByHand(10250, map[int][]string{4: {n1.V4.String()}, 6: {n1.V6.String()}}), to: vip(a.mallory, 80), goal: "daemon of node1"},
		"A19": {svc: alone, more: endpointsByHand(80, map[int][]string{4: a.bank.ClusterIPs[:1], 6: a.bank.ClusterIPs[1:]}), to: vip(a.mallory, 80), owner: "pod-c", goal: "-"},
		"A20": {svc: alone, more: endpointsByHand(8080, map[int][]string{4: {"0.0.0.5", "240.0.0.1", "172.28.128.255"}, 6: {"fd28:128::"}}), to: vip(a.mallory, 80), owner: "pod-c", goal: "-"},
		"A21": {svc: alone, more: endpointsByHand(80, map[int][]string{4: {"203.0.113.88"}, 6: {"fd20:113::88"}}), to: lb, owner: "pod-b"},
		"A22": {svc: alone, more: func(lab.Service) []lab.Object {
			return endpointsByHand(1, map[int][]string{4: {"203.0.113.88"}, 6: {"fd20:113::88"}})(a.api)
		}, to: lb, owner: "pod-b"},
		"A23": {svc: func(svc lab.Service) lab.Service {
			svc = alone(svc)
			svc.Ports[slices.IndexFunc(svc.Ports, func(p lab.Port) bool { return p.Name == "tcp80" })].NodePort = 30500
			return svc
		}, to: at(n1.Host, 30500), owner: "daemon of node1"},
		"A24": {svc: alone, to: vip(a.bank, 22), goal: "daemon of node1"},
	}
}

// outcome is what a few clients get where an attack shows: the worst of it.
func (a *arena) outcome(t *testing.T, at attack, to netip.AddrPort) (word string, seen []string) {
	t.Helper()
	word = attacks.Kept
	for _, c := range []*lab.Host{a.w.Pod("pod-a").Host, a.w.Node(1).Host} {
		for range 4 {
			r := at.ask(c, to)
			who := r.Pod
			if r.Verdict != lab.Answered {
				who = r.Verdict.String()
			}
			seen = append(seen, c.Name+": "+who)
			switch {
			case who == at.aim():
				word = attacks.Taken
			case at.owner != "" && who != at.owner && word != attacks.Taken && at.aim() != "-":
				word = attacks.Cut
			case at.aim() == "-" && r.Verdict != lab.Answered:
				word = attacks.Cut
			}
		}
	}
	return word, seen
}

func (at attack) aim() string {
	if at.goal == "" {
		return "pod-c"
	}
	return at.goal
}

func (at attack) ask(c *lab.Host, to netip.AddrPort) lab.Reply {
	if at.by.ask != nil {
		return at.by.ask(c, to, lab.Timeout(time.Second))
	}
	return c.Ask(to, lab.Timeout(time.Second))
}

// try tries an attack, and says what comes of it in the worse family. Marker waits until the proxy has taken note.
func (a *arena) try(t *testing.T, id string, at attack, marker func(attack lab.Service)) (word string) {
	t.Helper()
	svc := a.mallory
	svc.Name, svc.Ports = strings.ToLower(id), slices.Clone(svc.Ports)
	svc = at.svc(svc)
	for _, family := range []int{4, 6} {
		to := at.to(family)
		if !to.IsValid() || at.owner == "" || at.more != nil && at.to(family) == vip(a.mallory, 80)(family) {
			continue
		}
		lab.Eventually(t, soon, "the control: "+at.owner+" answers at "+to.String(), func() error {
			if r := at.ask(a.w.Pod("pod-a").Host, to); r.Pod != at.owner {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
	}
	v4, v6 := a.w.SlicesFor(svc, a.w.Pod("pod-c"))
	objs := []lab.Object{svc, v4, v6}
	if at.more != nil {
		if at.goal != "" && at.goal != "-" { // nothing but the endpoints that are the attack
			objs = objs[:1]
		}
		objs = append(at.more(svc), objs...)
	}
	a.cluster.Apply(objs...)
	marker(svc)
	word = attacks.Kept
	for _, family := range []int{4, 6} {
		to := at.to(family)
		if !to.IsValid() {
			continue
		}
		got, seen := a.outcome(t, at, to)
		t.Logf("%s over IPv%d at %s: %s: %s", id, family, to, got, strings.Join(seen, ", "))
		if rank := []string{attacks.Kept, attacks.Cut, attacks.Taken}; slices.Index(rank, got) > slices.Index(rank, word) {
			word = got
		}
	}
	a.cluster.Delete(objs...)
	return word
}

// tried are the rows that are tried by packets.
func (a *arena) tried(t *testing.T) (rows []attacks.Row, by map[string]attack) {
	t.Helper()
	all, err := attacks.Rows()
	if err != nil {
		t.Fatal(err)
	}
	by = a.attacks()
	for _, r := range all {
		if _, is := by[r.ID]; is != (r.KubeProxy != "") {
			t.Errorf("%s: tried here %t, and the table has a word of kube-proxy: %t", r.ID, is, r.KubeProxy != "")
		} else if is {
			rows = append(rows, r)
		}
	}
	if len(rows) != len(by) {
		t.Errorf("%d rows of %d attacks", len(rows), len(by))
	}
	return rows, by
}

// marked waits until what mallory may have is served on node 1: all that was written with it was decided then.
func (a *arena) marked(t *testing.T, number int) func(lab.Service) {
	marker := web(100 + number)
	return func(lab.Service) {
		t.Helper()
		a.apply(marker, a.w.Pod("pod-c"))
		each(t, func(t *testing.T, family int) {
			wantHit(t, a.w.Node(1).Host, vip(marker, 80)(family), "pod-c")
		})
		a.gone(marker)
	}
}

// The table of attacks, row by row: what comes of each here is what the table says. With the configuration as bad as it
// can be: external IPs of all ranges, and no protected ones. The agent of node 1 alone, for another one takes node 1's
// address (A12).
func TestAttacks(t *testing.T) {
	a := newArena(t)
	a.agents = append(a.agents, a.w.StartAgent(t, a.w.Node(1), a.cluster, anyExternalIP))
	t.Cleanup(a.nothingRefused)
	a.open()
	rows, by := a.tried(t)
	for i, r := range rows {
		t.Run(r.ID, func(t *testing.T) {
			if got := a.try(t, r.ID, by[r.ID], a.marked(t, i)); got != attacks.Word(r.Here) {
				t.Errorf("%s: %s: %s, and the table says %s", r.ID, r.Tries, got, r.Here)
			}
		})
	}
}
