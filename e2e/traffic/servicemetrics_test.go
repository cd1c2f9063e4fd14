package traffic

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// metrics reads the metrics of a node that begin so: their values by name and labels, as they stand on the page.
func metrics(n *lab.Node, prefix string) (map[string]uint64, error) {
	p, err := get(n.Host, netip.AddrPortFrom(loopback, 10249), "/metrics")
	if err != nil || p.code != 200 {
		return nil, fmt.Errorf("metrics of %s: %d, %w", n.Name, p.code, err)
	}
	found := map[string]uint64{}
	for line := range strings.Lines(p.body) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		at := strings.LastIndex(line, " ")
		v, err := strconv.ParseFloat(strings.TrimSpace(line[at+1:]), 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		found[line[:at]] = uint64(v)
	}
	return found, nil
}

func mustMetrics(t testing.TB, n *lab.Node, prefix string) map[string]uint64 {
	t.Helper()
	found, err := metrics(n, prefix)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// measured has a Service ask for metrics of its own.
func measured(svc lab.Service) lab.Service {
	svc.Annotations = map[string]string{"ipvs-proxy.io/metrics": "true"}
	return svc
}

// portTraffic is what a node's metrics say of a port of a Service.
type portTraffic struct{ conns, inPackets, inBytes, outPackets, outBytes, active, inactive, ready, draining uint64 }

func trafficOf(t testing.TB, n *lab.Node, svc lab.Service, port string) (p portTraffic) {
	t.Helper()
	of := mustMetrics(t, n, "ipvsproxy_service_")
	labels := fmt.Sprintf(`namespace="default",port=%q,service=%q`, port, svc.Name)
	for to, name := range map[*uint64]string{
		&p.conns: "connections_total{" + labels + "}", &p.active: "active_connections{" + labels + "}", &p.inactive: "inactive_connections{" + labels + "}",
		&p.inPackets: `packets_total{direction="in",` + labels + "}", &p.outPackets: `packets_total{direction="out",` + labels + "}",
		&p.inBytes: `bytes_total{direction="in",` + labels + "}", &p.outBytes: `bytes_total{direction="out",` + labels + "}",
		&p.ready: "backends{" + labels + `,state="ready"}`, &p.draining: "backends{" + labels + `,state="draining"}`,
	} {
		v, is := of["ipvsproxy_service_"+name]
		if !is {
			t.Fatalf("%s has no ipvsproxy_service_%s, but %v", n.Name, name, of)
		}
		*to = v
	}
	return p
}

// grew is by how much the counters have grown.
func (p portTraffic) grew(since portTraffic) portTraffic {
	return portTraffic{conns: p.conns - since.conns, inPackets: p.inPackets - since.inPackets, inBytes: p.inBytes - since.inBytes,
		outPackets: p.outPackets - since.outPackets, outBytes: p.outBytes - since.outBytes}
}

// wantGrown waits until the counters have grown by just so much: the kernel adds up every 2 s.
func wantGrown(t testing.TB, what string, n *lab.Node, svc lab.Service, port string, since, want portTraffic) {
	t.Helper()
	lab.Eventually(t, soon, what, func() error {
		if got := trafficOf(t, n, svc, port).grew(since); got != want {
			return fmt.Errorf("grown by %+v, want %+v", got, want)
		}
		return nil
	})
}

// B72: what a Service's metrics count on a node is what went through it there, by port, on every kind of frontend, in both
// families: of UDP every datagram and byte, of TCP every connection. Others have none.
func TestB72ServiceMetrics(t *testing.T) {
	s := newStage(t).start(allowExternalIPs)
	s.serveUDP(5353, s.pods()...)
	svc, other, node := measured(everywhere(72)), web(73), s.w.Node(1)
	s.apply(svc, s.pods()...)
	s.apply(other, s.pods()...)
	s.ready(svc)
	s.ready(other)
	for line := range mustMetrics(t, node, "ipvsproxy_service_") {
		if !strings.Contains(line, `namespace="default",port="http",service="`+svc.Name+`"`) && !strings.Contains(line, `namespace="default",port="dns",service="`+svc.Name+`"`) {
			t.Errorf("%s: it did not ask for that", line)
		}
	}
	each(t, func(t *testing.T, family int) {
		for _, to := range s.ways(svc, family) {
			s.counts(t, node, svc, family, to)
		}
	})
	if got := trafficOf(t, node, svc, "http"); got.ready != 6 || got.draining != 0 {
		t.Errorf("%d endpoints ready and %d draining, want three of each family", got.ready, got.draining)
	}
	countersAgree(t, node, svc, other)
}

// counts asks by one way as every kind of client, and what is counted must be that.
func (s *stage) counts(t *testing.T, node *lab.Node, svc lab.Service, family int, to way) {
	t.Helper()
	const times = 3
	for _, c := range s.clients() {
		answers(t, c.Host, to.tcp)
	}
	settled(t, node, svc)
	http, udp := trafficOf(t, node, svc, "http"), trafficOf(t, node, svc, "dns")
	sent := uint64(0)
	for _, c := range s.clients() {
		for range times {
			if r := c.AskUDP(to.udp); r.Verdict != lab.Answered {
				t.Fatalf("%s asks %s over UDP: %s", c.name, to.udp, r)
			}
			if r := c.Ask(to.tcp); r.Verdict != lab.Answered {
				t.Fatalf("%s asks %s: %s", c.name, to.tcp, r)
			}
			sent++
		}
	}
	header := uint64(map[int]int{4: 20, 6: 40}[family])
	wantGrown(t, fmt.Sprintf("datagrams to %s %s", to.kind, to.udp), node, svc, "dns", udp, portTraffic{conns: sent,
		inPackets: sent, inBytes: sent * (header + 8 + uint64(len("0"))), outPackets: sent, outBytes: sent * (header + 8 + uint64(len("0 pod=pod-a")))})
	lab.Eventually(t, soon, fmt.Sprintf("connections to %s %s", to.kind, to.tcp), func() error {
		got := trafficOf(t, node, svc, "http").grew(http)
		// Of each, SYN, ACK, request and FIN at least, and what answers them.
		if got.conns != sent || got.inPackets < 3*sent || got.inBytes < got.inPackets*(header+20) || got.outPackets < 3*sent || got.outBytes <= got.outPackets*(header+20) {
			return fmt.Errorf("grown by %+v, %d were made", got, sent)
		}
		return nil
	})
}

// settled waits until the kernel has added up: twice the same, 2 s apart.
func settled(t testing.TB, n *lab.Node, svc lab.Service) {
	t.Helper()
	lab.Eventually(t, soon, "the counters of "+svc.Name+" settle", func() error {
		before := trafficOf(t, n, svc, "http")
		time.Sleep(2500 * time.Millisecond) // longer than the kernel takes from one sum to the next
		if now := trafficOf(t, n, svc, "http"); now.grew(before) != (portTraffic{}) {
			return fmt.Errorf("grown by %+v", now.grew(before))
		}
		return nil
	})
}

// countersAgree: connections are those that a library of others' reads of all virtual servers but another Service's.
func countersAgree(t *testing.T, n *lab.Node, svc, other lab.Service) {
	t.Helper()
	lab.Eventually(t, soon, "the kernel's virtual servers and the metrics agree", func() error {
		servers, err := n.VirtualServers()
		if err != nil {
			return err
		}
		by := map[string]uint64{}
		for _, s := range servers {
			port := map[string]string{"TCP": "http", "UDP": "dns"}[s.Protocol]
			if !slices.Contains(other.ClusterIPs, s.Addr.Addr().String()) {
				by[port] += uint64(s.Connections)
			}
		}
		for _, port := range []string{"http", "dns"} {
			if got := trafficOf(t, n, svc, port).conns; got != by[port] {
				return fmt.Errorf("%s: %d connections, the virtual servers have %d", port, got, by[port])
			}
		}
		return nil
	})
}

// B72: through a rolling update, real servers that are removed, and frontends that go and come back, no counter goes
// backwards, and connections are as many as were made.
func TestB72NeverBackwards(t *testing.T) {
	s := newStage(t).start(allowExternalIPs)
	svc, node := measured(everywhere(74)), s.w.Node(1)
	pods := s.pods()
	s.apply(svc, pods...)
	s.ready(svc)
	settled(t, node, svc)
	began := trafficOf(t, node, svc, "http")
	watch := watchCounters(t, node)
	to := at(svc, 4, 80)
	load := s.w.Pod("pod-a").StartLoad(to, lab.LoadConfig{Rate: 20, Timeout: 10 * time.Second})
	inside := svc
	inside.Type, inside.Status, inside.Spec = "ClusterIP", nil, nil
	for i := range 3 {
		left := slices.Delete(slices.Clone(pods), i, i+1)
		s.apply(inside, left...) // two kinds of frontends go, and a real server of the others
		takesNoMore(t, node, to, realAt(pods[i], to))
		lab.Eventually(t, soon, "its frontends are gone", func() error {
			if _, err := node.VirtualServers(); err != nil {
				return err
			}
			if n := len(destinations(t, node, s.frontends(svc, 4)["LoadBalancer"])); n > 0 {
				return fmt.Errorf("%d real servers at the load balancer's address", n)
			}
			return nil
		})
		s.apply(svc, pods...)
		takes(t, node, to, realAt(pods[i], to))
		answers(t, s.w.Client, s.frontends(svc, 4)["LoadBalancer"])
	}
	rep := load.Stop()
	t.Logf("%s", rep)
	settled(t, node, svc)
	made := uint64(rep.Sent)
	got := trafficOf(t, node, svc, "http").grew(began).conns
	if made == 0 || got < made || got > made+uint64(rep.Again)+60 { // and what asked whether the load balancer answers again
		t.Errorf("%d connections counted, %d were made", got, made)
	}
	if n := watch(); n < 10 {
		t.Errorf("looked at the counters %d times: that shows little", n)
	}
}

// watchCounters reads a node's counters of Services again and again until it is called, and fails the test where one is
// less than before. It says how often it read.
func watchCounters(t *testing.T, n *lab.Node) (stop func() (times int)) {
	t.Helper()
	end := make(chan struct{})
	var wg sync.WaitGroup
	times := 0
	wg.Go(func() {
		last := map[string]uint64{}
		for {
			select {
			case <-end:
				return
			case <-time.After(200 * time.Millisecond):
			}
			now, err := metrics(n, "ipvsproxy_service_")
			if err != nil {
				t.Error(err)
				return
			}
			times++
			for name, v := range last {
				if strings.Contains(name, "_total{") && now[name] < v {
					t.Errorf("%s went from %d to %d", name, v, now[name])
				}
			}
			last = now
		}
	})
	return func() int { close(end); wg.Wait(); return times }
}

// B72: what the guard refuses and drops is counted by reason and family, each packet once, and what is served is not.
func TestB72RefusedAndDropped(t *testing.T) {
	s := newStage(t).start(allowExternalIPs)
	s.serveUDP(5353, s.pods()...)
	node, far := s.w.Node(1), s.w.Pod("pod-c")
	served, empty := everywhere(75), everywhere(76)
	local := policies{internalLocal: true}.with(everywhere(77))
	closed := limited(everywhere(78), "198.18.0.0/15", "2001:db8:18::/48")
	s.apply(served, s.pods()...)
	s.apply(empty)
	s.apply(local, far)
	s.apply(closed, s.pods()...)
	s.ready(served)
	s.ready(closed)
	programmed(t, s.agents[0])
	each(t, func(t *testing.T, family int) {
		label := fmt.Sprintf("IPv%d", family)
		counter := func(kind, code string) string {
			return fmt.Sprintf(`ipvsproxy_%s_total{ip_family=%q,reason=%q}`, kind, label, code)
		}
		udp := func(svc lab.Service) netip.AddrPort { return at(svc, family, 53) }
		balancer := netip.AddrPortFrom(balancerAddr(closed, family), 53)
		before := refusals(t, node)
		for i, c := range []struct {
			name, counter string
			to            netip.AddrPort
			dropped       bool
		}{
			{"a port of nobody's", counter("refused", "IPX0301"), at(served, family, 7), false},
			{"no endpoints", counter("refused", "IPX0302"), udp(empty), false},
			{"no endpoint of this node", counter("dropped", "IPX0303"), udp(local), true},
			{"outside the source ranges", counter("dropped", "IPX0304"), balancer, true},
			{"served", "", udp(served), false},
		} {
			for _, from := range s.clients() {
				times := uint64(i%3 + 2)
				for range times {
					r := from.AskUDP(c.to, lab.Timeout(300*time.Millisecond))
					if (r.Verdict == lab.Answered) != (c.counter == "") {
						t.Fatalf("%s asks %s, %s: %s", from.name, c.to, c.name, r)
					}
				}
				want := map[string]uint64{}
				if c.counter != "" {
					want[c.counter] = times
				}
				after := refusals(t, node)
				if got := grown(before, after); !maps.Equal(got, want) {
					t.Errorf("%s asks %s %d times, %s: counters grew by %v, want %v", from.name, c.to, times, c.name, got, want)
				}
				before = after
			}
		}
		// TCP is counted as well: a refused connection is one packet.
		wantRefused(t, s.clients()[0], at(empty, family, 80))
		if got := grown(before, refusals(t, node)); got[counter("refused", "IPX0302")] == 0 || len(got) != 1 {
			t.Errorf("a TCP connection without endpoints: counters grew by %v", got)
		}
	})
}

// refusals reads a node's counters of what is refused and dropped, no earlier than a reading is renewed.
func refusals(t testing.TB, n *lab.Node) map[string]uint64 {
	t.Helper()
	time.Sleep(1100 * time.Millisecond) // a reading is good for a second
	found := mustMetrics(t, n, "ipvsproxy_refused_total{")
	for name, v := range mustMetrics(t, n, "ipvsproxy_dropped_total{") {
		found[name] = v
	}
	if len(found) != 8 {
		t.Fatalf("%s has the counters %v, want two reasons of each kind in both families", n.Name, found)
	}
	return found
}

// grown is by how much which counters have grown.
func grown(before, after map[string]uint64) map[string]uint64 {
	by := map[string]uint64{}
	for name, v := range after {
		if v != before[name] {
			by[name] = v - before[name]
		}
	}
	return by
}
