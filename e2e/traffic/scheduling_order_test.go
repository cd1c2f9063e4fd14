package traffic

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// manyClients are addresses of one host outside, IPv4 and IPv6: to the schedulers that go by it, as many clients.
type manyClients struct {
	host  *lab.Host
	addrs map[int][]netip.Addr
}

// manyClients gives the client outside so many addresses of either family. They are local to it as a range each, and the
// wire's hosts have a route there.
func (s *stage) manyClients(n int) *manyClients {
	s.t.Helper()
	m := &manyClients{host: s.w.Client, addrs: map[int][]netip.Addr{}}
	for _, p := range []netip.Prefix{netip.MustParsePrefix("100.64.0.0/20"), netip.MustParsePrefix("fd64::/112")} {
		if err := s.w.ClientHas(p); err != nil {
			s.t.Fatal(err)
		}
		family := 6
		if p.Addr().Is4() {
			family = 4
		}
		for i := range n {
			m.addrs[family] = append(m.addrs[family], nth(p.Addr(), i+1))
		}
	}
	return m
}

func nth(a netip.Addr, n int) netip.Addr {
	b := new(big.Int).Add(new(big.Int).SetBytes(a.AsSlice()), big.NewInt(int64(n)))
	is, _ := netip.AddrFromSlice(b.FillBytes(make([]byte, a.BitLen()/8)))
	return is
}

// asked is who answers each of the clients, who come in another order each time: what goes by turn is not taken for what goes by
// the client.
func (m *manyClients) asked(t testing.TB, to netip.AddrPort) (pods []string) {
	t.Helper()
	lost, addrs := 0, m.addrs[familyOf(to)]
	pods = make([]string, len(addrs))
	for _, i := range rand.Perm(len(addrs)) {
		a := addrs[i]
		r := m.host.Ask(to, lab.From(a), lab.Timeout(patient))
		if r.Verdict != lab.Answered {
			if lost++; lost < 5 {
				t.Errorf("%s asks %s: %s", a, to, r)
			}
		}
		pods[i] = r.Pod
	}
	return pods
}

// askedThrough is who answers each of the clients through a node.
func (m *manyClients) askedThrough(t testing.TB, s *stage, node int, to netip.AddrPort) []string {
	t.Helper()
	if err := s.w.ClientViaNode(node); err != nil {
		t.Fatal(err)
	}
	return m.asked(t, to)
}

// first are so many of them.
func (m *manyClients) first(n int) *manyClients {
	few := &manyClients{m.host, map[int][]netip.Addr{}}
	for family, addrs := range m.addrs {
		few.addrs[family] = addrs[:min(n, len(addrs))]
	}
	return few
}

// moved counts the clients that another pod answers.
func moved(before, after []string) (n int) {
	for i := range before {
		if before[i] != after[i] {
			n++
		}
	}
	return n
}

func spreadOf(pods []string) map[string]int {
	by := map[string]int{}
	for _, p := range pods {
		by[p]++
	}
	return by
}

// B70: with mh and sh every one of 1,000 clients has the same endpoint through each of three nodes, with dh all clients have
// one. The control: with rr they have not. That is so where the nodes made their real servers in one order, the canonical
// one. A kernel keeps those that come later in the order in which they came: how many clients have another endpoint through
// a node that made all of them anew is counted, and with mh those are few.
func TestB70OneOrder(t *testing.T) {
	s := newStage(t, lab.Config{Nodes: 3, Pods: []lab.PodSpec{{Name: "pod-a", Node: 1}, {Name: "pod-b", Node: 2}, {Name: "pod-c", Node: 3}}}).start()
	const clients = 1000
	who := s.manyClients(clients)
	schedulers := []string{"mh", "sh", "dh", "rr"}
	for i, scheduler := range schedulers {
		svc := annotated(web(100+i), "scheduler", scheduler)
		s.apply(svc, s.pods()...)
		s.ready(svc)
	}
	for i, scheduler := range schedulers {
		each(t, func(t *testing.T, family int) {
			s.oneOrder(t, who, at(web(100+i), family, 80), scheduler)
		})
	}
	t.Run("in the order in which they came", func(t *testing.T) { s.orderOfComing(t, who.first(300)) })
}

// oneOrder asks a frontend as many clients through each node.
func (s *stage) oneOrder(t *testing.T, who *manyClients, to netip.AddrPort, scheduler string) {
	t.Helper()
	n := len(who.addrs[familyOf(to)])
	if familyOf(to) == 6 {
		n /= 5 // an emulated machine asks some 60 a second
	}
	if scheduler == "rr" || scheduler == "dh" {
		n = 100
	}
	var through [3][]string
	for node := range through {
		through[node] = who.first(n).askedThrough(t, s, node+1, to)
	}
	other, spread := moved(through[0], through[1])+moved(through[0], through[2]), spreadOf(through[0])
	t.Logf("%s: %d clients by %v, %d of them with another through another node", scheduler, n, spread, other)
	switch {
	case scheduler == "rr":
		if other == 0 {
			t.Errorf("the control, rr: all %d clients have one endpoint through every node", n)
		}
		return
	case scheduler == "dh" && len(spread) != 1, scheduler != "dh" && len(spread) != 3:
		t.Errorf("%s: clients by %v", scheduler, spread)
	}
	if other > 0 {
		t.Errorf("%s: %d of %d clients have another endpoint through another node", scheduler, other, n)
	}
}

// orderOfComing has endpoints come one by one, another than the canonical one, and one node make them anew.
func (s *stage) orderOfComing(t *testing.T, who *manyClients) {
	t.Helper()
	for i, scheduler := range []string{"mh", "sh"} {
		svc := annotated(web(110+i), "scheduler", scheduler)
		to := at(svc, 4, 80)
		pods := s.pods()
		for come := []*lab.Pod{pods[2], pods[0], pods[1]}; len(pods) > 0; pods = pods[1:] {
			s.apply(svc, come[:len(come)-len(pods)+1]...)
			s.wantServing(t, to, come[:len(come)-len(pods)+1]...)
		}
		was := who.askedThrough(t, s, 1, to)
		if other := moved(was, who.askedThrough(t, s, 2, to)); other > 0 {
			t.Errorf("%s: of nodes to which endpoints came in one order %d clients have another", scheduler, other)
		}
		if err := s.w.Node(3).DeleteVirtualServer(to); err != nil {
			t.Fatal(err)
		}
		s.wantServing(t, to, s.pods()...)
		other := moved(was, who.askedThrough(t, s, 3, to))
		lab.Figure(t, fmt.Sprintf("%s, clients of 300 with another endpoint through a node that made them anew", scheduler), other)
		if scheduler == "mh" && other > len(was)/20 {
			t.Errorf("mh: %d of %d clients have another endpoint through the node that made them anew", other, len(was))
		}
	}
}
