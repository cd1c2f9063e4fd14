package traffic

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// weigh applies a Service with a slice a pod and family, each with the weight that is given for its pod.
func (s *stage) weigh(svc lab.Service, weights map[string]int) {
	s.t.Helper()
	objs := []lab.Object{svc}
	for _, p := range s.pods() {
		v4, v6 := s.w.SlicesFor(svc, p)
		for _, sl := range []lab.Slice{v4, v6} {
			sl.Name = fmt.Sprintf("%s-%s-ipv%d", svc.Name, p.Name, sl.Family)
			if w, weighed := weights[p.Name]; weighed {
				sl.Annotations = map[string]string{"ipvs-proxy.io/weight": strconv.Itoa(w)}
			}
			objs = append(objs, sl)
		}
	}
	s.cluster.Apply(objs...)
}

// asking gives a Service annotations of ours.
func annotated(svc lab.Service, pairs ...string) lab.Service {
	svc.Annotations = map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		svc.Annotations["ipvs-proxy.io/"+pairs[i]] = pairs[i+1]
	}
	return svc
}

// wantScheduled waits until a frontend of a node has a scheduler, flags of the kernel, and weights by pod.
func (s *stage) wantScheduled(t testing.TB, n *lab.Node, to netip.AddrPort, scheduler string, flags uint32, weights map[string]int) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s on %s has scheduler %s, flags %#x, weights %v", to, n.Name, scheduler, flags, weights), func() error {
		servers, err := n.VirtualServers()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(servers, func(v lab.VirtualServer) bool { return v.Addr == to })
		if i < 0 {
			return fmt.Errorf("there is none")
		}
		got := map[string]int{}
		for _, r := range servers[i].Reals {
			for _, p := range s.pods() {
				if p.Addr(familyOf(to)) == r.Addr.Addr() {
					got[p.Name] = r.Weight
				}
			}
		}
		if v := servers[i]; v.Scheduler != scheduler || v.Flags != flags || !maps.Equal(got, weights) {
			return fmt.Errorf("it has %s, weights %v", v, got)
		}
		if len(got) > 0 && !isOpen(t, n, to) { // last of all: until then whoever asks is refused
			return fmt.Errorf("nobody is let in yet")
		}
		return nil
	})
}

// isOpen reports whether a node's guard lets packets to a frontend in.
func isOpen(t testing.TB, n *lab.Node, to netip.AddrPort) bool {
	t.Helper()
	is := regexp.MustCompile(regexp.QuoteMeta(to.Addr().String()) + fmt.Sprintf(` \. \w+ \. %d\b`, to.Port()))
	return is.MatchString(nftTool(t, n, "-n", "list", "set", "inet", "ipvs-proxy", fmt.Sprintf("open%d", familyOf(to))))
}

// The kernel's flags (include/uapi/linux/ip_vs.h).
const (
	onePacket   = 0x4
	fallback    = 0x8
	clientPorts = 0x10
)

// B70: each scheduler that a Service can ask for serves as it is known to, switched live, beside a Service that asks for
// nothing and stays as it is.
func TestB70Schedulers(t *testing.T) {
	s := newStage(t).start()
	for _, p := range s.pods() {
		if _, err := p.ServeLines(p.Name, 8081); err != nil {
			t.Fatal(err)
		}
	}
	plain := web(69)
	s.apply(plain, s.pods()...)
	n := s.w.Node(1)
	alike := map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1}
	uneven := map[string]int{"pod-a": 1, "pod-b": 2, "pod-c": 3}
	third := func(got map[string]int) bool {
		return maps.Equal(got, map[string]int{"pod-a": 4, "pod-b": 4, "pod-c": 4})
	}
	byWeight := func(got map[string]int) bool {
		return maps.Equal(got, map[string]int{"pod-a": 2, "pod-b": 4, "pod-c": 6})
	}
	one := func(got map[string]int) bool { return len(got) == 1 }
	heaviest := func(got map[string]int) bool { return maps.Equal(got, map[string]int{"pod-c": 12}) }
	every := func(got map[string]int) bool { return len(got) > 0 }
	for _, c := range []struct {
		annotations []string
		weights     map[string]int // of slices
		scheduler   string
		flags       uint32
		shown       map[string]int
		right       func(got map[string]int) bool // of twelve requests from one client
	}{
		{[]string{"scheduler", "rr"}, nil, "rr", 0, alike, third},
		{[]string{"scheduler", "rr"}, uneven, "wrr", 0, uneven, byWeight},
		{[]string{"scheduler", "wrr"}, uneven, "wrr", 0, uneven, byWeight},
		{[]string{"scheduler", "lc"}, uneven, "wlc", 0, uneven, every},
		{[]string{"scheduler", "lc"}, nil, "lc", 0, alike, every},
		{[]string{"scheduler", "wlc"}, uneven, "wlc", 0, uneven, every},
		{[]string{"scheduler", "sed"}, uneven, "sed", 0, uneven, every},
		{[]string{"scheduler", "nq"}, uneven, "nq", 0, uneven, every},
		{[]string{"scheduler", "fo"}, uneven, "fo", 0, uneven, heaviest},
		{[]string{"scheduler", "ovf"}, uneven, "ovf", 0, uneven, heaviest},
		{[]string{"scheduler", "dh"}, nil, "dh", 0, alike, one},
		{[]string{"scheduler", "lblc"}, nil, "lblc", 0, alike, one},
		{[]string{"scheduler", "lblcr"}, nil, "lblcr", 0, alike, one},
		{[]string{"scheduler", "sh"}, nil, "sh", fallback, alike, one},
		{[]string{"scheduler", "sh", "scheduler-flags", "sh-port"}, nil, "sh", fallback | clientPorts, alike, every},
		{[]string{"scheduler", "mh"}, nil, "mh", fallback, alike, one},
		{[]string{"scheduler", "mh", "scheduler-flags", "mh-port,mh-fallback"}, nil, "mh", fallback | clientPorts, alike, every},
		{[]string{"scheduler", "nonesuch"}, nil, "rr", 0, alike, third},
		{nil, nil, "rr", 0, alike, third},
	} {
		t.Run(fmt.Sprint(c.annotations, c.weights), func(t *testing.T) {
			svc := annotated(web(70), c.annotations...)
			s.weigh(svc, c.weights)
			each(t, func(t *testing.T, family int) {
				to := at(svc, family, 80)
				s.wantScheduled(t, n, to, c.scheduler, c.flags, c.shown)
				answers(t, n.Host, to)
				for range 11 { // the whole of a turn of wrr, so that it begins anew
					n.Ask(to)
				}
				got, lost := n.Spread(to, 12)
				if len(lost) > 0 || !c.right(got) {
					t.Errorf("12 requests were answered by %v, lost %v", got, lost)
				}
				s.wantScheduled(t, n, at(plain, family, 80), "rr", 0, alike)
			})
		})
	}
	wantSaid(t, s.agents[0], "default/web70", "ipvs-proxy.io/scheduler", "nonesuch", "is not a scheduler")
}

// B70: a client that hashes to an endpoint which takes no new connection is served by another one, and is back when it
// does again.
func TestB70Fallback(t *testing.T) {
	s := newStage(t).start()
	for i, scheduler := range []string{"sh", "mh"} {
		svc := annotated(web(71+i), "scheduler", scheduler)
		s.weigh(svc, nil)
		s.ready(svc)
		each(t, func(t *testing.T, family int) {
			to := at(svc, family, 80)
			c := client{"pod", s.w.Pod("pod-a").Host}
			was := pinned(t, c, to, asks[0])
			weights := map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1}
			weights[was] = 0
			s.weigh(svc, weights)
			s.wantScheduled(t, s.w.Node(1), to, scheduler, fallback, weights)
			if is := pinned(t, c, to, asks[0]); is == was {
				t.Errorf("%s: %s has weight 0 and is asked all the same", scheduler, was)
			}
			s.weigh(svc, nil)
			s.wantScheduled(t, s.w.Node(1), to, scheduler, fallback, map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1})
			if is := pinned(t, c, to, asks[0]); is != was {
				t.Errorf("%s: %s answers now, and %s before", scheduler, is, was)
			}
		})
	}
}

// B71: endpoints weigh by where they are, times what their slice says; live; and where all weigh nothing all are asked.
func TestB71Weights(t *testing.T) {
	s := newStage(t).start()
	n, far := s.w.Node(1), s.w.Node(2) // pod-a and pod-b stand on node1, pod-c on node2
	for _, c := range []struct {
		weights    string
		slices     map[string]int
		here, away map[string]int
		shares     map[string]int // of twelve requests from node1; nil: not asked
	}{
		{"same-node=2", nil, map[string]int{"pod-a": 2, "pod-b": 2, "pod-c": 1}, map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 2}, nil},
		{"same-node=5,other=2", nil, map[string]int{"pod-a": 5, "pod-b": 5, "pod-c": 2}, map[string]int{"pod-a": 2, "pod-b": 2, "pod-c": 5}, map[string]int{"pod-a": 5, "pod-b": 5, "pod-c": 2}},
		{"same-node=1,other=0", nil, map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 0}, map[string]int{"pod-a": 0, "pod-b": 0, "pod-c": 1}, map[string]int{"pod-a": 6, "pod-b": 6}},
		{"same-node=1,other=0", map[string]int{"pod-a": 0, "pod-b": 0}, map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1}, map[string]int{"pod-a": 0, "pod-b": 0, "pod-c": 1}, map[string]int{"pod-a": 4, "pod-b": 4, "pod-c": 4}},
		{"same-node=3", map[string]int{"pod-a": 2, "pod-c": 6}, map[string]int{"pod-a": 6, "pod-b": 3, "pod-c": 6}, map[string]int{"pod-a": 2, "pod-b": 1, "pod-c": 18}, nil},
		{"same-node=65535", map[string]int{"pod-a": 65535}, map[string]int{"pod-a": 65535, "pod-b": 1, "pod-c": 1}, map[string]int{"pod-a": 65535, "pod-b": 1, "pod-c": 65535}, nil},
	} {
		t.Run(fmt.Sprint(c.weights, c.slices), func(t *testing.T) {
			svc := annotated(web(74), "weights", c.weights)
			s.weigh(svc, c.slices)
			each(t, func(t *testing.T, family int) {
				to := at(svc, family, 80)
				s.wantScheduled(t, n, to, "wrr", 0, c.here)
				s.wantScheduled(t, far, to, "wrr", 0, c.away)
				if c.shares == nil {
					return
				}
				answers(t, n.Host, to)
				for range 11 {
					n.Ask(to)
				}
				if got, lost := n.Spread(to, 12); len(lost) > 0 || !maps.Equal(got, c.shares) {
					t.Errorf("12 requests were answered by %v, lost %v; want %v", got, lost, c.shares)
				}
			})
		})
	}
	s.weigh(annotated(web(74), "weights", "same-node=many"), nil)
	s.wantScheduled(t, n, at(web(74), 4, 80), "rr", 0, map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1})
	wantSaid(t, s.agents[0], "default/web74", "ipvs-proxy.io/weights", "has no weight")
}

// B71: how long an endpoint that leaves keeps its connections is the Service's to say; another Service's stay.
func TestB71DrainDeadline(t *testing.T) {
	s := newStage(t).start()
	a, b := s.w.Pod("pod-a"), s.w.Pod("pod-b")
	for _, p := range s.pods() {
		if _, err := p.ServeLines(p.Name, 8081); err != nil {
			t.Fatal(err)
		}
	}
	lines := func(n int) lab.Service {
		svc := web(n)
		svc.Ports[0].TargetPort = 8081
		return svc
	}
	each(t, func(t *testing.T, family int) {
		at0, plain := annotated(lines(80+family), "drain-deadline", "0s"), lines(90+family)
		var kept [2]*lab.Kept
		for i, svc := range []lab.Service{at0, plain} {
			s.apply(svc, a)
			to := at(svc, family, 80)
			lab.Eventually(t, soon, "a connection is kept", func() (err error) {
				kept[i], err = s.w.Client.StartKept(to, 100*time.Millisecond)
				return err
			})
			defer kept[i].Stop()
			lab.Eventually(t, soon, "it is answered", func() error {
				if r := kept[i].Report(); r.Pod != "pod-a" {
					return fmt.Errorf("%+v", r)
				}
				return nil
			})
			s.apply(svc, b)
		}
		lab.Eventually(t, soon, "the real server goes at once, and the connection with it", func() error {
			if r := kept[0].Report(); r.Err == nil {
				return fmt.Errorf("the connection goes on: %+v", r)
			}
			return nil
		})
		wantReals(t, s.w.Node(1), at(at0, family, 80), netip.AddrPortFrom(b.Addr(family), 8081).String()+" 1")
		if r := kept[1].Report(); r.Err != nil {
			t.Errorf("the control, a Service with the node's deadline: %v", r.Err)
		}
	})
}

// B70: an endpoint with as many connections as it may have gets no new one; where all are full, clients are turned away.
func TestB70MaxConnections(t *testing.T) {
	s := newStage(t).start()
	a, b := s.w.Pod("pod-a"), s.w.Pod("pod-b")
	for _, p := range []*lab.Pod{a, b} {
		if _, err := p.ServeLines(p.Name, 8081); err != nil {
			t.Fatal(err)
		}
	}
	each(t, func(t *testing.T, family int) {
		svc := annotated(web(77+family), "max-connections", "1")
		svc.Ports[0].TargetPort = 8081
		s.apply(svc, a, b)
		to := at(svc, family, 80)
		s.wantScheduled(t, s.w.Node(1), to, "rr", 0, map[string]int{"pod-a": 1, "pod-b": 1})
		var list []*lab.Kept
		served := map[string]bool{}
		for range 2 {
			var k *lab.Kept
			lab.Eventually(t, soon, "a connection is kept", func() (err error) {
				k, err = s.w.Node(1).StartKept(to, 100*time.Millisecond)
				return err
			})
			defer k.Stop()
			list = append(list, k)
			lab.Eventually(t, soon, "it is answered", func() error {
				r := k.Report()
				if r.Answered == 0 {
					return fmt.Errorf("%+v", r)
				}
				served[r.Pod] = true
				return nil
			})
		}
		if len(served) != 2 {
			t.Errorf("two connections to %v: one pod has both", served)
		}
		if r := s.w.Node(1).Connect(to, lab.Timeout(2*time.Second)); r.Verdict == lab.Answered {
			t.Errorf("a third connection: %s, where each pod may have one", r)
		}
		s.apply(annotated(svc), a, b) // without a limit, in place
		lab.Eventually(t, soon, "without a limit it is served", func() error {
			if r := s.w.Node(1).Connect(to, lab.Timeout(2*time.Second)); r.Verdict != lab.Answered {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
		for _, k := range list {
			if r := k.Report(); r.Err != nil {
				t.Errorf("a connection from before: %v", r.Err)
			}
		}
	})
}

// B70: with one-packet the datagrams of one pod and port go to all endpoints in turn; without it to one. They must be such
// that want no answer, and come from pods: the kernel translates no answer back and no source (ip_vs_nfct.c: "no reply is
// expected"), so that they carry the client's own address to the endpoint.
func TestB70OnePacket(t *testing.T) {
	s := newStage(t).start()
	svc := web(79)
	svc.Ports = []lab.Port{{Name: "syslog", Protocol: "UDP", Port: 514, TargetPort: 5514}}
	taken := map[string]*atomic.Int64{}
	behind := []*lab.Pod{s.w.Pod("pod-b"), s.w.Pod("pod-c")}
	for _, p := range behind {
		taken[p.Name] = swallow(t, p.Host, 5514)
	}
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 514)
		send := func(what string, want map[string]int64) {
			t.Helper()
			before := map[string]int64{}
			for pod, n := range taken {
				before[pod] = n.Load()
			}
			datagrams(t, s.w.Pod("pod-a").Host, to, 30)
			lab.Eventually(t, soon, what, func() error {
				got := map[string]int64{}
				for pod, n := range taken {
					if more := n.Load() - before[pod]; more > 0 {
						got[pod] = more
					}
				}
				if want == nil && len(got) == 1 && slices.Collect(maps.Values(got))[0] == 30 || maps.Equal(got, want) {
					return nil
				}
				return fmt.Errorf("30 datagrams arrived at %v", got)
			})
		}
		alike := map[string]int{"pod-b": 1, "pod-c": 1}
		s.apply(annotated(svc, "one-packet", "true"), behind...)
		s.wantScheduled(t, s.w.Node(1), to, "rr", onePacket, alike)
		send("one-packet: each pod has half", map[string]int64{"pod-b": 15, "pod-c": 15})
		s.apply(svc, behind...)
		s.wantScheduled(t, s.w.Node(1), to, "rr", 0, alike)
		send("the control: one pod has all", nil)
	})
}

// swallow takes datagrams and counts them.
func swallow(t *testing.T, h *lab.Host, port int) *atomic.Int64 {
	t.Helper()
	var conn net.PacketConn
	if err := h.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n := &atomic.Int64{}
	go func() {
		for buf := make([]byte, 64); ; n.Add(1) {
			if _, _, err := conn.ReadFrom(buf); err != nil {
				return
			}
		}
	}()
	return n
}

// datagrams sends some from one port.
func datagrams(t *testing.T, h *lab.Host, to netip.AddrPort, n int) {
	t.Helper()
	var conn net.Conn
	if err := h.Do(func() (err error) {
		conn, err = net.Dial("udp", to.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range n {
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Errorf("a datagram to %s: %v", to, err)
		}
	}
}
