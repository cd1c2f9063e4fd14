package desk

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// decided is a desk at which all Services were decided, as without an agent.
func decided(c objects, opt Options, local ipvs.Local) *Desk {
	d := New(c, opt)
	d.Move(nodeNamed("192.0.2.7"), local, addrsOf("192.0.2.100"), time.Time{})
	for next := c.Services(); len(next) > 0; next = next[1:] {
		next = append(next, d.Decide(next[0], time.Time{}).Also...)
	}
	return d
}

// endpoint is one of the port p80, in the words of endpointOf.
func endpoint(number int, words string) cluster.Endpoint {
	ep := endpointOf(number, words)
	if ep.PortName, ep.Port = "p80", 8080; ep.NodeName == "this" {
		ep.NodeName = thisNode
	}
	return ep
}

// printed is an Explanation in lines.
func printed(e Explanation) (lines []string) {
	for _, f := range e.Frontends {
		line := f.Key.String()
		if f.Why != None {
			line += " " + f.Why.String()
		}
		if f.Owner != (cluster.ID{}) {
			line += " of " + f.Owner.Name
		}
		for _, j := range f.Endpoints {
			mark := " -"
			if j.Used() {
				mark = " +"
			}
			line += fmt.Sprint(mark, j.Addr.Addr().As4()[3])
			if j.Why != None {
				line += "(" + j.Why.String() + ")"
			}
		}
		lines = append(lines, line)
	}
	for _, r := range e.Refused {
		lines = append(lines, fmt.Sprintf("%s %s %s", r.Field, r.Addr, r.Why))
	}
	return lines
}

// TestExplain: what becomes of a Service, and why. Each Code turns up, so that none is in the list for nothing.
func TestExplain(t *testing.T) {
	const lb = "203.0.113.81"
	local := func(s *cluster.Service, internal, external bool) *cluster.Service {
		s.InternalLocal, s.ExternalLocal = internal, external
		return s
	}
	shop := balancer("shop", "10.96.0.81", lb, 5, 80)
	dual := service("dual", "10.96.0.1", 80)
	dual.ClusterIPs = append(dual.ClusterIPs, netip.MustParseAddr("fd00::1"))
	checked := func(name, ip string, created int64) *cluster.Service {
		s := local(balancer(name, ip, "203.0.113."+ip[len(ip)-1:], created, 80), false, true)
		s.HealthCheckNodePort = 30200
		return s
	}
	seen := map[Code]bool{}
	for _, c := range []struct {
		name   string
		svc    *cluster.Service
		eps    []string
		others []*cluster.Service
		zone   string
		noIPv6 bool
		want   []string
	}{
		{"operator's example", local(shop, false, true), []string{"lingering here", ""}, nil, "", false,
			[]string{"10.96.0.81:80/tcp -1(IPX0104) +2", lb + ":80/tcp +1(IPX0106) -2(IPX0105)"}},
		{"not ready, and gone", service("s", "10.96.0.1", 80), []string{"unready", "gone", ""}, nil, "", false,
			[]string{"10.96.0.1:80/tcp -1(IPX0101) -2(IPX0102) +3"}},
		{"internal Local", local(service("s", "10.96.0.1", 80), true, false), []string{"here", ""}, nil, "", false,
			[]string{"10.96.0.1:80/tcp +1 -2(IPX0107)"}},
		{"internal Local, none here", local(service("s", "10.96.0.1", 80), true, false), []string{""}, nil, "", false,
			[]string{"10.96.0.1:80/tcp IPX0303 -1(IPX0107)"}},
		{"zones", service("s", "10.96.0.1", 80), []string{"zone=a", "zone=b"}, nil, "a", false,
			[]string{"10.96.0.1:80/tcp +1 -2(IPX0108)"}},
		{"nodes", service("s", "10.96.0.1", 80), []string{"node=" + thisNode, "node=other"}, nil, "", false,
			[]string{"10.96.0.1:80/tcp +1 -2(IPX0109)"}},
		{"no endpoint", service("s", "10.96.0.1", 80), nil, nil, "", false, []string{"10.96.0.1:80/tcp IPX0302"}},
		{"an endpoint that is a virtual IP", service("s", "10.96.0.1", 80), []string{"", ""}, []*cluster.Service{service("o", "10.0.0.2", 443)}, "", false,
			[]string{"10.96.0.1:80/tcp +1 -2(IPX0103)"}},
		{"an external IP without leave", external(service("s", "10.96.0.1", 80), 1, "198.18.0.1"), nil, nil, "", false,
			[]string{"10.96.0.1:80/tcp IPX0302", "spec.externalIPs 198.18.0.1 IPX0203"}},
		{"addresses that nobody may have", external(service("s", "10.96.0.1", 80), 1, "192.0.2.7", "192.0.2.100", "192.0.2.200", "2001:db8::1"), nil, nil, "", false,
			[]string{"10.96.0.1:80/tcp IPX0302", "spec.externalIPs 192.0.2.7 IPX0201", "spec.externalIPs 192.0.2.100 IPX0202",
				"spec.externalIPs 192.0.2.200 IPX0204", "spec.externalIPs 2001:db8::1 IPX0205"}},
		{"an older balancer has the port", balancer("s", "10.96.0.1", lb, 9, 80), nil, []*cluster.Service{balancer("o", "10.96.0.2", lb, 1, 80)}, "", false,
			[]string{"10.96.0.1:80/tcp IPX0302", lb + ":80/tcp IPX0206 of o"}},
		{"another's ClusterIP, a free port", balancer("s", "10.96.0.1", "10.96.0.2", 9, 80), nil, []*cluster.Service{service("o", "10.96.0.2", 443)}, "", false,
			[]string{"10.96.0.1:80/tcp IPX0302", "10.96.0.2:80/tcp IPX0207 of o"}},
		{"an older Service's healthCheckNodePort", checked("s", "10.96.0.1", 9), nil, []*cluster.Service{checked("o", "10.96.0.2", 1)}, "", false,
			[]string{"10.96.0.1:80/tcp IPX0302", "203.0.113.1:80/tcp IPX0302", "spec.healthCheckNodePort invalid IP IPX0209"}},
		{"IPv6 off", dual, nil, nil, "", true, []string{"10.96.0.1:80/tcp IPX0302", "spec.clusterIPs fd00::1 IPX0208"}},
		{"a list of nodes", external(service("s", "10.96.0.1", 80), 1, "192.0.2.7", "192.0.2.8"), nil, nil, "", false,
			[]string{"10.96.0.1:80/tcp IPX0302", "spec.externalIPs 192.0.2.7 IPX0201", "spec.externalIPs 192.0.2.8 IPX0212"}},
		{"pods' addresses, and one that is no host's", external(service("s", "10.96.0.1", 80), 1, "10.0.0.1", "10.0.0.7", "192.0.2.40"), []string{"", "", "", ""}, nil, "", false,
			[]string{"10.96.0.1:80/tcp +1 +2 +3 -4(IPX0110)", "spec.externalIPs 10.0.0.1 IPX0211", "spec.externalIPs 10.0.0.7 IPX0213", "spec.externalIPs 192.0.2.40 IPX0210"}},
		{"none", nil, nil, nil, "", false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			id, o := idOf("s"), objects{}
			if c.svc != nil {
				id = c.svc.ID
				is := object{svc: c.svc}
				for i, words := range c.eps {
					is.eps = append(is.eps, endpoint(i+1, words))
				}
				o[id] = is
			}
			for _, s := range c.others {
				o[s.ID] = object{svc: s}
			}
			opt := Options{Pods: []netip.Prefix{netip.MustParsePrefix("192.0.2.32/28")}, ExternalIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/29"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
				Protected: []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25")}}
			d := decided(o, opt, ipvs.Local{NoIPv6: c.noIPv6, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.4/30")}})
			if c.zone != "" {
				node := nodeNamed("192.0.2.7")
				node.Zone = c.zone
				for _, again := range d.Move(node, ipvs.Local{}, nil, time.Time{}) {
					d.Decide(again, time.Time{})
				}
			}
			snapshot := d.Snapshot(id)
			clear(o) // what was taken does not change any more
			e := snapshot.Explain()
			if got := printed(e); !slices.Equal(got, c.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(c.want, "\n  "))
			}
			for _, f := range e.Frontends {
				seen[f.Why] = true
				for _, j := range f.Endpoints {
					seen[j.Why] = true
				}
			}
			for _, r := range e.Refused {
				seen[r.Why] = true
			}
		})
	}
	for _, r := range Reasons() {
		frontends := r.Code == NoEndpoint || r.Code == NoneForSome || r.Code < NoSuchPort && r.Code != StrayHints
		if !seen[r.Code] && frontends { // the others are those of packets, and what is no Service's alone
			t.Errorf("%s turns up in no case", r.Code)
		}
	}
}

// TestExplainAgrees: of whatever endpoints and policies, the endpoints that are said to be used are those that are, and
// every other one has a reason.
func TestExplainAgrees(t *testing.T) {
	words := []string{"", "here", "unready", "unready here", "serving", "lingering", "lingering here", "gone", "zone=a", "zone=b", "node=" + thisNode, "node=x", "zone=a here"}
	known := map[Code]bool{None: true}
	for _, r := range Reasons() {
		known[r.Code] = true
	}
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		svc := nodePorts(balancer("s", "10.96.0.1", "203.0.113.1", 1, 80), 30080)
		svc.InternalLocal, svc.ExternalLocal = r.IntN(2) == 0, r.IntN(2) == 0
		var eps []cluster.Endpoint
		for i := range r.IntN(5) {
			eps = append(eps, endpoint(i+1, words[r.IntN(len(words))]))
		}
		d := decided(objects{svc.ID: {svc: svc, eps: eps}}, Options{}, ipvs.Local{Addrs: addrsOf("192.0.2.7")})
		e := d.Snapshot(svc.ID).Explain()
		if len(e.Frontends) != 3 {
			t.Fatalf("seed %d: %v, want three frontends", seed, printed(e))
		}
		for _, f := range e.Frontends {
			want := d.Want(f.Key, time.Time{}).Frontend
			for _, j := range f.Endpoints {
				used := slices.ContainsFunc(want.Server.Reals, func(r ipvs.Real) bool { return r.Addr == j.Addr })
				if used != j.Used() || !known[j.Why] {
					t.Errorf("seed %d: %s: %s: used %t, and explained as %s", seed, f.Key, j.Addr, used, j.Why)
				}
			}
			if open := want.Guard.Open && want.Guard.Barred == ipvs.BarredNobody; open != (f.Why == None) || len(f.Endpoints) != len(eps) {
				t.Errorf("seed %d: open %t, explained as %v", seed, open, printed(e))
			}
		}
	}
}

// TestClosed: why a connection is not served, and whose the address is.
func TestClosed(t *testing.T) {
	held := service("held", "10.96.0.1", 80)
	held.InternalLocal = true
	d := decided(objects{
		held.ID:      {svc: held, eps: []cluster.Endpoint{endpoint(1, "")}},
		idOf("shop"): {svc: balancer("shop", "10.96.0.2", "203.0.113.1", 1, 80), eps: []cluster.Endpoint{endpoint(2, "")}},
		idOf("idle"): {svc: service("idle", "10.96.0.3", 80)},
	}, Options{}, ipvs.Local{})
	for at, want := range map[string]string{
		"10.96.0.1:80":   "held IPX0303",
		"10.96.0.2:80":   "shop IPX0000",
		"10.96.0.2:443":  "shop IPX0301",
		"203.0.113.1:22": "shop IPX0301",
		"10.96.0.3:80":   "idle IPX0302",
		"192.0.2.7:22":   " IPX0000",
	} {
		ap := netip.MustParseAddrPort(at)
		id, why := d.Closed(ipvs.Key{Addr: ap.Addr(), Port: ap.Port(), Proto: ipvs.TCP})
		if got := id.Name + " " + why.String(); got != want {
			t.Errorf("%s: %s, want %s", at, got, want)
		}
	}
}

// TestNothingRemembered: Services with all that a desk keeps of them leave nothing when they go.
func TestNothingRemembered(t *testing.T) {
	checked := func(name, ip string) *cluster.Service {
		s := balancer(name, ip, "203.0.113."+ip[len(ip)-1:], 1, 53)
		s.Ports[0].Name, s.HealthCheckNodePort, s.ExternalLocal = "p80", 30200, true
		return s
	}
	o := objects{
		idOf("a"): {svc: checked("a", "10.96.0.1"), eps: []cluster.Endpoint{endpoint(1, "zone=a here"), endpoint(2, "zone=b")}},
		idOf("b"): {svc: checked("b", "10.96.0.2"), eps: []cluster.Endpoint{endpoint(2, "lingering")}},
		idOf("c"): {svc: service("c", "10.0.0.2", 80)},
	}
	d := decided(o, Options{}, ipvs.Local{})
	for _, id := range o.Services() {
		delete(o, id)
		d.Decide(id, time.Time{})
	}
	isEmpty(t, d)
}

var update = flag.Bool("update", false, "write docs/reasons.md anew")

// TestReasonsHaveCodes: each reason of a Problem, by which Events and metrics have it, has a code of its own.
func TestReasonsHaveCodes(t *testing.T) {
	named := map[string]int{}
	for _, r := range Reasons() {
		if r.Name != "" {
			named[r.Name]++
		}
	}
	found := 0
	for _, file := range []string{"problem.go", "../../cluster/problem.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, is := n.(*ast.ValueSpec)
			if !is || !strings.HasPrefix(spec.Names[0].Name, "Reason") || len(spec.Values) != 1 {
				return true
			}
			lit, is := spec.Values[0].(*ast.BasicLit)
			if !is {
				return true
			}
			name, err := strconv.Unquote(lit.Value)
			if found++; err != nil || named[name] == 0 {
				t.Errorf("%s: %s has no code (%v)", file, lit.Value, err)
			}
			return true
		})
	}
	if found < 40 {
		t.Errorf("%d reasons were found: the test shows little", found)
	}
}

// TestReasonsPage: docs/reasons.md is what the list says, and no code or name stands in it twice for two things.
func TestReasonsPage(t *testing.T) {
	const file = "../../../docs/reasons.md"
	var b strings.Builder
	b.WriteString("# Reasons\n\nWhy an endpoint is left out, why a Service may not have an address, why a connection is not served, what of an object or the\nnode is not as it should be: each has a code that never gets another meaning. Where it is a Problem, Events and metrics have\nit by name ([events.md](events.md)).\n")
	last := None
	for _, r := range Reasons() {
		if r.Code <= last || r.Means == "" || r.Do == "" {
			t.Errorf("%s: out of order, or nothing is said of it", r.Code)
		}
		if r.Code/100 != last/100 {
			fmt.Fprintf(&b, "\n## %s\n\n| code | name | what it means | what to do |\n| --- | --- | --- | --- |\n", map[Code]string{1: "Endpoints", 2: "Addresses and ports", 3: "Connections", 4: "Objects", 5: "The node"}[r.Code/100])
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.Code, r.Name, r.Means, r.Do)
		last = r.Code
	}
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(file)
	if err != nil || string(page) != b.String() {
		t.Errorf("docs/reasons.md is not what the list says (%v): go test ./pkg/sync/desk -run TestReasonsPage -update", err)
	}
}
