package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	mobyipvs "github.com/moby/ipvs"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// F8: an endpoint moves from one slice to another and back, in either order and in one, under load; then it leaves while
// connections are kept to it, and its address comes back as another pod's while it drains. No connection is lost, and of
// datagrams no more than one of a flow when its endpoint leaves (B31); a move writes nothing where the endpoint is in one of both
// all the time, and the drain is taken back in place.
func TestF8EndpointMoves(t *testing.T) {
	s, svc := busyStage(t)
	n, b, c := s.w.Node(1), s.w.Pod("pod-b"), s.w.Pod("pod-c")
	agent := s.w.StartAgent(t, n, s.cluster)
	programmed(t, agent)
	on := s.goesOn(t, svc)
	tap := tapWrites(t, n)
	at80 := at(svc, 4, 80)
	both := []string{netip.AddrPortFrom(b.V4, 8080).String() + " 1", netip.AddrPortFrom(c.V4, 8080).String() + " 1"}
	slicesOf := func(name string, pods ...*lab.Pod) []lab.Object {
		v4, v6 := s.w.SlicesFor(svc, pods...)
		if name != "" {
			v4.Name, v6.Name = svc.Name+"-"+name+"-4", svc.Name+"-"+name+"-6"
		}
		return []lab.Object{v4, v6}
	}
	moves := formOf(3, 100)
	for range moves {
		s.cluster.Apply(slicesOf("other", b)...) // there twice
		s.cluster.Apply(slicesOf("", c)...)
		s.cluster.Apply(slicesOf("", b, c)...)
		s.cluster.Delete(slicesOf("other")...)
	}
	s.changes(t, n, 2) // all of it was taken in
	if wrote := ofReals(tap.take(time.Second, 0)); slices.Contains(wrote, "DEL_DEST") || slices.Contains(wrote, "SET_DEST") {
		t.Errorf("%d moves wrote %q", moves, wrote)
	}
	// It is nowhere for a moment: it drains, and is back in place.
	for range moves {
		s.cluster.Apply(slicesOf("", c)...)
		takesNoMore(t, n, at80, netip.AddrPortFrom(b.V4, 8080))
		s.cluster.Apply(slicesOf("other", b)...)
		wantReals(t, n, at80, both...)
		s.cluster.Apply(slicesOf("", b, c)...)
		s.cluster.Delete(slicesOf("other")...)
	}
	on.more(2)
	lab.Figure(t, "moves", 2*moves)
	on.wantLostInRemovals(t, moves)
	wouldNotice(t, s.w.Pod("pod-a").Host, n, at80)
}

// ofReals leaves the writes that are about real servers.
func ofReals(writes []string) []string {
	return slices.DeleteFunc(writes, func(w string) bool { return !strings.HasSuffix(w, "_DEST") })
}

// F44: the agent is replaced again and again by one of another configuration, under load: binding, drain deadline, masquerade.
// Nothing is lost, and what it was told is what the kernel has.
func TestF44Configurations(t *testing.T) {
	s, svc := busyStage(t)
	n := s.w.Node(1)
	agent := s.w.StartAgent(t, n, s.cluster)
	programmed(t, agent)
	before, on := usageOf(t, agent), s.goesOn(t, svc)
	usual := "--vip-binding=address"
	configs := [][]string{{"--vip-binding=route"}, {"--config", ownFile(t, "drainDeadline: 30s"), usual}, {"--vip-binding=route", "--masquerade-all"}, {usual}}
	rounds := formOf(1, 20)
	for i := range rounds {
		for _, args := range configs {
			end := agent.Stop
			if i%2 == 1 {
				end = agent.Kill
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			agent = s.w.StartAgent(t, n, s.cluster, args...)
			programmed(t, agent)
			address := strings.Contains(said(t, n, "ip -o address show dev kube-ipvs0"), " "+svc.ClusterIPs[0]+"/")
			if want := slices.Contains(args, usual) && binding() == "ADDR"; address != want {
				t.Errorf("%q: %s stands there as an address: %t, want %t", args, svc.ClusterIPs[0], address, want)
			}
		}
	}
	on.more(2)
	lab.Figure(t, "configurations", rounds*len(configs))
	before.figures(t, "before")
	usageOf(t, agent).figures(t, "after")
	on.wantNothingLost(t)
	wouldNotice(t, s.w.Pod("pod-a").Host, n, at(svc, 4, 80))
}

// F44: another scheduler for virtual servers that stand. The kernel takes the old one away and waits before it puts the new
// one there (ip_vs_edit_service): new connections of that moment may be refused, which is counted; none is lost in another
// way, and those that stand go on.
func TestF44AnotherScheduler(t *testing.T) {
	s, svc := busyStage(t)
	n := s.w.Node(1)
	agent := s.w.StartAgent(t, n, s.cluster)
	programmed(t, agent)
	to := at(svc, 4, 80)
	kept, err := s.w.Client.StartKept(at(svc, 4, 81), 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	load := s.w.Client.StartLoad(to, lab.LoadConfig{Rate: 40, Timeout: 20 * time.Second})
	schedulers := slices.Repeat([]string{"wlc", "rr"}, formOf(2, 50))
	for _, scheduler := range schedulers {
		if err := agent.Stop(); err != nil {
			t.Fatal(err)
		}
		agent = s.w.StartAgent(t, n, s.cluster, "--ipvs-scheduler", scheduler)
		programmed(t, agent)
		if _, is, _ := serverOf(t, n, to); is != scheduler {
			t.Errorf("the scheduler is %s, want %s", is, scheduler)
		}
	}
	r, k := load.Stop(), kept.Stop()
	refused := 0
	for _, l := range r.Losses {
		if l.Reply.Verdict == lab.Refused {
			refused++
		}
	}
	lab.Figure(t, "changes of the scheduler", len(schedulers))
	lab.Figure(t, "new connections", r.Sent)
	lab.Figure(t, "new connections refused", refused)
	lab.Figure(t, "new connections lost otherwise", r.Lost-refused)
	if r.Lost > refused || r.Sent == 0 || k.Err != nil {
		t.Errorf("%s; %s", r, k)
	}
}

// serverOf reads a virtual server with its scheduler and flags.
func serverOf(t testing.TB, n *lab.Node, vip netip.AddrPort) (real string, scheduler string, flags uint32) {
	t.Helper()
	if err := n.Do(func() error {
		h, err := lab.OpenIPVS()
		if err != nil {
			return err
		}
		defer h.Close()
		svc, err := h.GetService(serviceAt(vip))
		if err != nil {
			return err
		}
		scheduler, flags = svc.SchedName, svc.Flags
		return nil
	}); err != nil {
		t.Fatalf("virtual server %s: %v", vip, err)
	}
	return strings.Join(reals(t, n, vip), ", "), scheduler, flags
}

func serviceAt(vip netip.AddrPort) *mobyipvs.Service {
	family, mask := uint16(unix.AF_INET), uint32(0xffffffff)
	if vip.Addr().Is6() {
		family, mask = unix.AF_INET6, 128
	}
	return &mobyipvs.Service{AddressFamily: family, Protocol: unix.IPPROTO_TCP, Address: vip.Addr().AsSlice(), Port: vip.Port(), Netmask: mask, SchedName: "rr"}
}

// auditPass is how often the audit comes.
const auditPass = 10 * time.Second

// handChanges are changes inside a virtual server, of which nothing tells.
var handChanges = []struct {
	name string
	do   func(h *mobyipvs.Handle, at netip.AddrPort, real mobyipvs.Destination) error
}{
	{"a real server deleted", func(h *mobyipvs.Handle, at netip.AddrPort, real mobyipvs.Destination) error {
		return h.DelDestination(serviceAt(at), &real)
	}},
	{"a weight", func(h *mobyipvs.Handle, at netip.AddrPort, real mobyipvs.Destination) error {
		real.Weight = 7
		return h.UpdateDestination(serviceAt(at), &real)
	}},
	{"a real server added", func(h *mobyipvs.Handle, at netip.AddrPort, real mobyipvs.Destination) error {
		real.Port = 9999
		return h.NewDestination(serviceAt(at), &real)
	}},
	{"the scheduler", func(h *mobyipvs.Handle, at netip.AddrPort, _ mobyipvs.Destination) error {
		other := serviceAt(at)
		other.SchedName = "wlc"
		return h.UpdateService(other)
	}},
	{"a flag", func(h *mobyipvs.Handle, at netip.AddrPort, _ mobyipvs.Destination) error {
		other := serviceAt(at)
		other.Flags, other.Timeout = 1, 300
		return h.UpdateService(other)
	}},
}

// F21: a real server, a weight, the scheduler and a flag of virtual servers are changed by hand, in both families, each on a
// Service of its own: repaired within a pass of the audit.
func TestF21ChangedByHand(t *testing.T) {
	s := newStage(t).start()
	var services []lab.Service
	for i := range handChanges {
		services = append(services, web(170+i))
		s.apply(services[i], s.pods()...)
	}
	for _, svc := range services {
		s.ready(svc)
	}
	programmed(t, s.agents[0])
	n := s.w.Node(1)
	limit := s.inTime(t, n, auditPass+2*time.Second)
	state := func(to netip.AddrPort) string {
		real, scheduler, flags := serverOf(t, n, to)
		return fmt.Sprintf("%s, %s, %#x", real, scheduler, flags)
	}
	before := map[netip.AddrPort]string{}
	for i, change := range handChanges {
		for _, family := range []int{4, 6} {
			to := at(services[i], family, 80)
			before[to] = state(to)
			real := mobyipvs.Destination{AddressFamily: serviceAt(to).AddressFamily, Address: s.w.Pod("pod-b").Addr(family).AsSlice(), Port: 8080, Weight: 1}
			if err := n.Do(func() error {
				h, err := lab.OpenIPVS()
				if err != nil {
					return err
				}
				defer h.Close()
				return change.do(h, to, real)
			}); err != nil {
				t.Fatalf("%s: %v", change.name, err)
			}
		}
	}
	began := time.Now()
	changed := 0
	for to, was := range before {
		if state(to) != was {
			changed++
		}
	}
	if changed < len(before)/2 { // an audit may be quick
		t.Errorf("the control: %d of %d are not as they were", changed, len(before))
	}
	var took []time.Duration
	for i, change := range handChanges {
		for _, family := range []int{4, 6} {
			to := at(services[i], family, 80)
			lab.Eventually(t, limit, change.name+" of "+to.String()+" is put right", func() error {
				if now := state(to); now != before[to] {
					return errors.New(now + ", was " + before[to])
				}
				return nil
			})
			took = append(took, time.Since(began))
		}
	}
	times(t, "repaired", took)
}

// F25: virtual servers, an nftables table and addresses of somebody else stand beside ours, and are as they were after many
// events. The control is that each shows when it is changed.
func TestF25ForeignStays(t *testing.T) {
	size, rounds := 100, formOf(10, 100)
	s := newStage(t)
	n := s.w.Node(1)
	shell(t, n, "ip link add foreign0 type dummy", "ip link set foreign0 up", "ip address add 192.0.2.77/32 dev foreign0", "ip address add 192.0.2.78/32 dev lo",
		"ipvsadm -A -t 192.0.2.77:80 -s wlc", "ipvsadm -a -t 192.0.2.77:80 -r 10.244.2.10:8080 -m -w 3", "ipvsadm -A -u 192.0.2.78:53 -s sh", "ipvsadm -A -f 7 -s rr")
	fed(t, n, "table inet foreign {\nset s { type ipv4_addr; elements = { 192.0.2.77, 10.97.0.1 } }\nchain c { type filter hook input priority 50; ip daddr @s counter accept; }\n}\ntable ip other { }\n", "nft", "-f", "-")
	theirs := func() string {
		var b strings.Builder
		for _, line := range []string{"ip -o address show dev foreign0", "ip -o address show dev lo", "nft -s -a list table inet foreign", "nft -s list table ip other",
			"ipvsadm -L -n -t 192.0.2.77:80", "ipvsadm -L -n -u 192.0.2.78:53", "ipvsadm -L -n -f 7"} {
			b.WriteString(said(t, n, line))
		}
		return b.String()
	}
	before := theirs()
	many := newCrowd(s.cluster, size)
	many.write()
	agent := s.w.StartAgent(t, n, s.cluster)
	programmedMany(t, agent, size)
	used := usageOf(t, agent)
	for round := range rounds {
		for i := range size {
			if round%2 == 0 {
				many.set(i, remote(2*i), remote(40_000+2*i))
			} else {
				many.set(i, remote(2*i), remote(2*i+1))
			}
		}
		many.write()
		last := netip.AddrPortFrom(crowdIP(size-1), 80)
		lab.Eventually(t, soon, "the round is in the kernel", func() error {
			weights := strings.Join(reals(t, n, last), " ")
			if fresh := strings.Contains(weights, remoteAddr(40_000+2*(size-1))+":8080 1"); fresh != (round%2 == 0) {
				return fmt.Errorf("%s", weights)
			}
			return nil
		})
	}
	if after := theirs(); after != before {
		t.Errorf("after %d events it is\n%s\nand was\n%s", size*rounds, after, before)
	}
	lab.Figure(t, "events", size*rounds)
	used.figures(t, "before")
	usageOf(t, agent).figures(t, "after")
	for _, change := range []string{"ip address del 192.0.2.77/32 dev foreign0", "ipvsadm -e -t 192.0.2.77:80 -r 10.244.2.10:8080 -m -w 4", "nft add element inet foreign s { 192.0.2.1 }"} {
		was := theirs()
		shell(t, n, change)
		if theirs() == was {
			t.Errorf("the control: %q does not show", change)
		}
	}
}
