package traffic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// ground is what packets are asked of on a node, as the command explain has it: its objects and its kernel, read here and
// now. Starting a process for each of a thousand questions would take most of an emulated machine's time.
func (s *stage) ground(n *lab.Node) (g preview.Ground, err error) {
	ctx, stop := context.WithTimeout(context.Background(), soon)
	defer stop()
	model := cluster.NewModel(cluster.Options{NodeName: n.Name})
	read, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- cluster.NewDirectory(s.cluster.Dir, model, nil).Run(read) }()
	for !model.Complete() {
		select {
		case <-model.Changed():
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
	}
	cancel()
	if err = <-ended; err != nil {
		return g, err
	}
	cidrs := []netip.Prefix{lab.ClusterCIDR4, lab.ClusterCIDR6}
	cfg := kernel.Config{ClusterCIDRs: cidrs, ReadOnly: true}
	routes := strings.Contains(os.Getenv("LAB_AGENT_ARGS"), "--vip-binding=route")
	if routes {
		cfg.Binding = kernel.BindRoute
	}
	opt := sync.Options{Desk: desk.Options{Scheduler: "rr", Pods: cidrs, ExternalIPs: []netip.Prefix{lab.ExternalCIDR4, lab.ExternalCIDR6}}}
	err = n.Do(func() error {
		k, err := kernel.Open(ctx, cfg)
		if err != nil {
			return err
		}
		defer k.Close()
		start, err := sync.Rehearse(ctx, k, model, opt)
		if err != nil {
			return err
		}
		start.Base.Wrote = nil // connection tracking is not tuned here, as the agent tunes it
		g = preview.Input{Node: n.Name, Start: start, Services: model.Services(), Clients: preview.Clients{Pods: cidrs, Routes: routes}, Asking: model.Asking}.Ground()
		return nil
	})
	return g, err
}

// asked is a question, with who asks it by packets, of the node that takes them.
type asked struct {
	client
	through *lab.Node
	to      ipvs.Key
}

// question is it as explain takes it.
func (a asked) question() preview.Question {
	q := preview.Question{To: a.to}
	if a.Host != a.through.Host {
		q.Client = a.Addr(map[bool]int{true: 4, false: 6}[a.to.Addr.Is4()])
	}
	return q
}

// said asks explain all of some questions, once the kernel agrees with all of the answers.
func (s *stage) said(t *testing.T, qs []asked) (answers []*preview.Answer) {
	t.Helper()
	grounds := map[*lab.Node]preview.Ground{}
	lab.Eventually(t, soon, "explain says that the kernels agree", func() (err error) {
		answers = nil
		clear(grounds)
		for _, q := range qs {
			g, known := grounds[q.through]
			if !known {
				if g, err = s.ground(q.through); err != nil {
					return err
				}
				grounds[q.through] = g
			}
			a := preview.AnswerPacket(g, q.question())
			if answers = append(answers, a); !a.Kernel.Agrees {
				return fmt.Errorf("on %s: %s", q.through.Name, a.Text())
			}
		}
		return nil
	})
	return answers
}

// bySaid is the command itself, which must say the same.
func (s *stage) bySaid(t *testing.T, q asked, want *preview.Answer) {
	t.Helper()
	asking := strings.Fields(q.question().String())
	args := slices.Concat([]string{"explain"}, asking, s.diffArgs(q.through, append([]string{"-o", "json"}, s.args...)...)[1:])
	out, stderr, exit := q.through.Command(t, 0, args...)
	var got preview.Answer
	if err := json.Unmarshal([]byte(out), &got); err != nil || stderr != "" {
		t.Fatalf("%s: exit status %d, %v\n%s%s", asking, exit, err, out, stderr)
	}
	if a, b := got.Text(), want.Text(); a != b {
		t.Errorf("the command says\n%s\nand for the test it is\n%s", a, b)
	}
	if inOrder := exit == 0; inOrder != want.InOrder() || exit > 1 {
		t.Errorf("%s: exit status %d of %s", asking, exit, want.Verdict)
	}
}

// servers are who answers at an address and port, by name.
func (s *stage) servers() map[string]string {
	names := map[string]string{}
	add := func(name string, h *lab.Host) {
		for _, a := range []netip.Addr{h.V4, h.V6} {
			for _, port := range []uint16{8080, 5353} {
				names[netip.AddrPortFrom(a, port).String()] = name
			}
		}
	}
	for _, p := range s.pods() {
		add(p.Name, p.Host)
	}
	for _, n := range s.w.Nodes {
		add("host-"+n.Name, n.Host)
	}
	return names
}

// packetIsTrue holds an answer against what packets meet.
func (s *stage) packetIsTrue(t *testing.T, q asked, a *preview.Answer, servers map[string]string) {
	t.Helper()
	to, by := netip.AddrPortFrom(q.to.Addr, q.to.Port), asks[0]
	if q.to.Proto == ipvs.UDP {
		by = asks[1]
	}
	backends := map[string]preview.Backend{}
	for _, b := range a.Backends {
		backends[servers[b.Addr]] = b
	}
	if err := lab.Until(soon/3, func() error {
		seen := map[string]bool{}
		for range max(1, len(backends)) { // each has its turn
			timeout := lab.Patience(lab.DefaultTimeout)
			if a.Verdict == preview.Dropped {
				timeout = 300 * time.Millisecond
			}
			r := by.ask(q.Host, to, lab.Timeout(timeout))
			if err := s.meets(q, a, r, backends); err != nil {
				return err
			}
			seen[r.Pod] = true
		}
		want := slices.Sorted(maps.Keys(backends))
		if a.AffinitySeconds > 0 {
			want = want[:min(len(want), 1)] // whichever it was, see meets
		}
		if names := slices.Sorted(maps.Keys(seen)); a.Verdict == preview.Served && (len(names) != len(want) || a.AffinitySeconds == 0 && !slices.Equal(names, want)) {
			return fmt.Errorf("answered by %v", names)
		}
		return nil
	}); err != nil {
		t.Errorf("%s %s asks %s: %v, but on %s explain says\n%s", q.name, q.Addr(4), q.to, err, q.through.Name, a.Text())
	}
}

// meets says in what a reply is not what was said.
func (s *stage) meets(q asked, a *preview.Answer, r lab.Reply, backends map[string]preview.Backend) error {
	switch a.Verdict {
	case preview.Served:
		b, is := backends[r.Pod]
		if r.Verdict != lab.Answered || !is {
			return fmt.Errorf("%s", r)
		}
		if q.to.Proto == ipvs.UDP { // its answers do not say whom they go to
			return nil
		}
		if !b.Masqueraded && r.Source.String() != b.Sees {
			return fmt.Errorf("%s, which is not what it is said to see", r)
		}
		if b.Masqueraded && !slices.Contains(s.addrsOf(q.through), r.Source) {
			return fmt.Errorf("%s, which is no address of %s", r, q.through.Name)
		}
	case preview.Refused:
		if r.Verdict != lab.Refused {
			return fmt.Errorf("%s", r)
		}
	case preview.Dropped:
		own := q.to.Proto == ipvs.UDP && errors.Is(r.Err, unix.EPERM) // what becomes of the node's own datagrams
		if r.Verdict != lab.TimedOut && !own {
			return fmt.Errorf("%s", r)
		}
	case preview.Passes:
		if _, taken := backends[r.Pod]; taken || r.Verdict == lab.Answered && r.Pod != "host-"+q.through.Name && r.Pod != "daemon of "+q.through.Name {
			return fmt.Errorf("%s", r)
		}
	}
	return nil
}

// addrsOf are a node's own addresses, with which its masqueraded packets leave.
func (s *stage) addrsOf(n *lab.Node) []netip.Addr {
	return []netip.Addr{n.V4, n.V6, n.Gateway4, n.Gateway6}
}

// quickRefusals has the nodes refuse as often as they are asked: of UDP the kernel limits that to one a second.
func (s *stage) quickRefusals(t *testing.T) {
	t.Helper()
	for _, n := range s.w.Nodes {
		for _, key := range []string{"net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"} {
			if err := n.Sysctl(key, "0"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// B73: what explain says of a packet is what it meets: for each pair of policies, with endpoints here and elsewhere,
// elsewhere only, and none, for clients outside, pods and nodes, by ClusterIP, load balancer's address, external IP and node
// port, over TCP and UDP, in both families: who answers, whose address they see, whether it is refused or dropped.
func TestB73PacketIsTrue(t *testing.T) {
	s := newStage(t).start(allowExternalIPs)
	s.serveUDP(5353, s.pods()...)
	s.quickRefusals(t)
	for _, n := range s.w.Nodes {
		daemon(t, n, notServed) // whom nobody reaches by a virtual IP
	}
	compared := map[preview.Verdict]int{}
	servers, r := s.servers(), rand.New(rand.NewPCG(73, 78))
	for _, p := range []policies{{externalLocal: true}, {internalLocal: true, externalLocal: true}, {internalLocal: true}, {}} {
		svc := p.with(everywhere(78))
		for _, eps := range [][]*lab.Pod{s.pods(), {s.w.Pod("pod-c")}, {}} {
			t.Run(fmt.Sprintf("%s, %d endpoints", p, len(eps)), func(t *testing.T) {
				s.apply(svc, eps...)
				qs := s.matrix(svc)
				answers := s.said(t, qs)
				for j, q := range qs {
					if s.packetIsTrue(t, q, answers[j], servers); t.Failed() {
						return
					}
					compared[answers[j].Verdict]++
				}
				for range 3 {
					j := r.IntN(len(qs))
					s.bySaid(t, qs[j], answers[j])
				}
				t.Logf("compared so far: %v", compared)
			})
			if t.Failed() {
				return
			}
		}
	}
	for _, v := range []preview.Verdict{preview.Served, preview.Refused, preview.Dropped} {
		if compared[v] < 40 {
			t.Errorf("%d are %s: the test shows little", compared[v], v)
		}
	}
}

// notServed is a port that no Service has.
const notServed = 81

// matrix is who asks for what of a Service that has a frontend of each kind.
func (s *stage) matrix(svc lab.Service) (qs []asked) {
	for _, family := range []int{4, 6} {
		for _, w := range s.ways(svc, family) {
			closed := netip.AddrPortFrom(w.tcp.Addr(), notServed)
			for _, a := range s.askers(w.kind) {
				if !a.inside && w.kind == "ClusterIP" && a.Host != s.w.Client {
					continue
				}
				for _, to := range []ipvs.Key{{Addr: w.tcp.Addr(), Port: w.tcp.Port(), Proto: ipvs.TCP}, {Addr: w.udp.Addr(), Port: w.udp.Port(), Proto: ipvs.UDP},
					{Addr: closed.Addr(), Port: closed.Port(), Proto: ipvs.TCP}} {
					if to.Port == notServed && a.Host != s.w.Client {
						continue
					}
					qs = append(qs, asked{a.client, a.through, to})
				}
			}
		}
	}
	return qs
}
