package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// show is a demo under way.
type show struct {
	*scene
	out   io.Writer
	step  int
	kubia []*lab.Pod // its endpoints now
	rolls []roll     // the rolling updates so far
}

func run(out io.Writer) error {
	scene, err := newScene()
	if err != nil {
		return err
	}
	s := &show{scene: scene, out: out, kubia: []*lab.Pod{scene.w.Pod("pod-a"), scene.w.Pod("pod-b"), scene.w.Pod("pod-c")}}
	defer func() { s.close() }() // the last scene has worlds of its own
	for _, part := range []func() error{
		s.world, s.manifests, s.agents, s.balance, s.nodePort, s.resolver, s.refuse, s.update, s.stop, s.naive, s.beside,
	} {
		if err := part(); err != nil {
			return err
		}
	}
	s.say("\nAll as it should be.\n\n" + next)
	return nil
}

const next = `Next: make demo-shell               the same three nodes, and you at a shell of node1: ipvs-proxy show, ipvsadm, nft
      docs/install.md               into a cluster of yours
      docs/replace-kube-proxy.md    in place of kube-proxy, and the way back`

func (s *show) title(format string, args ...any) {
	s.step++
	fmt.Fprintf(s.out, "\n== %d. %s\n\n", s.step, fmt.Sprintf(format, args...))
}

func (s *show) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "an unknown kernel"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}

func (s *show) world() error {
	s.title("A cluster in network namespaces on %s", kernelRelease())
	for _, n := range s.w.Nodes {
		s.say("%-8s %-15s %-20s pods %s, %s", n.Name, n.V4, n.V6, n.PodCIDR4, n.PodCIDR6)
	}
	for _, p := range s.kubia {
		s.say("%-8s %-15s %-20s on %s, answers HTTP on %d with its name and the client that it saw", p.Name, p.V4, p.V6, p.Node.Name, httpPort)
	}
	p := s.w.Pod("dns-a")
	s.say("%-8s %-15s %-20s on %s, answers UDP on %d", p.Name, p.V4, p.V6, p.Node.Name, dnsPort)
	s.say("%-8s %-15s %-20s outside of the cluster, its way to the cluster IPs is node1", s.w.Client.Name, s.w.Client.V4, s.w.Client.V6)
	return nil
}

func (s *show) manifests() error {
	text, err := s.apply("kubia.yaml")
	if err != nil {
		return err
	}
	if _, err := s.apply("resolver.yaml"); err != nil {
		return err
	}
	service, _, _ := strings.Cut(text, "---\n")
	s.title("What the cluster wants: examples/kubia.yaml and examples/resolver.yaml")
	s.say("%s", strings.TrimSpace(service))
	s.say("... and its EndpointSlices with pod-a, pod-b and pod-c; the Service resolver, %s over UDP, with dns-a", resolver4)
	return nil
}

func (s *show) agents() error {
	s.title("An agent on each node: ipvs-proxy run --source-dir DIR --hostname-override NODE --cluster-cidr ...")
	for _, n := range s.w.Nodes {
		_, took, err := s.start(n, nil)
		if err != nil {
			return err
		}
		servers, err := n.VirtualServers()
		if err != nil {
			return err
		}
		s.say("%s: programmed %s after the start of the process, %d virtual servers", n.Name, took.Round(time.Millisecond), len(servers))
	}
	return nil
}

func (s *show) balance() error {
	s.title("Requests to the cluster IPs, balanced: 12 from each client to each")
	for _, c := range []struct {
		name string
		host *lab.Host
	}{{"from pod-a", s.w.Pod("pod-a").Host}, {"from node2 itself", s.w.Node(2).Host}, {"from outside", s.w.Client}} {
		for _, vip := range []netip.AddrPort{kubia4, kubia6} {
			if _, err := s.spread(c.name, c.host, vip); err != nil {
				return err
			}
		}
	}
	s.say("\nThese two in the IPVS table of node1, with the kernel's own counts:\n")
	return s.table(s.w.Node(1), 2*asks, kubia4, kubia6) // pod-a is on node1, and from outside it is the way
}

// asks is how often spread asks: once to see as whom.
const asks = 13

// spread asks 12 times, wants 4 answers of each pod and returns as whom they saw the client.
func (s *show) spread(name string, c *lab.Host, to netip.AddrPort) (seen netip.Addr, err error) {
	seen = c.Ask(to).Source
	byPod, lost := c.Spread(to, asks-1)
	text := ""
	for _, p := range s.kubia {
		text += fmt.Sprintf("%s %d, ", p.Name, byPod[p.Name])
	}
	s.say("%-18s to %-22s %s  seen as %s", name, to, strings.TrimSuffix(text, ", "), seen)
	for _, p := range s.kubia {
		if len(lost) > 0 || byPod[p.Name] != 4 {
			return seen, fmt.Errorf("%s to %s: %v, lost %v; want 4 of each pod", name, to, byPod, lost)
		}
	}
	return seen, nil
}

func (s *show) nodePort() error {
	n := s.w.Node(3)
	s.title("The node port %d of node3, which has none of the Service's pods", nodePort)
	for _, family := range []int{4, 6} {
		to := netip.AddrPortFrom(n.Addr(family), nodePort)
		seen, err := s.spread("from outside", s.w.Client, to)
		if err != nil {
			return err
		}
		if seen != n.Addr(family) {
			return fmt.Errorf("asked at %s, the pods saw %s; want node3's address, as the answer must come back by it", to, seen)
		}
	}
	s.say("\nThe pods see node3: it masquerades the client, so that their answers come back by it. In its IPVS table:\n")
	return s.table(n, asks, netip.AddrPortFrom(n.V4, nodePort))
}

func (s *show) refuse() error {
	s.title("A port that no Service serves is refused, though a daemon of the node listens on it")
	stop, err := s.w.Node(1).ServeHTTP("daemon", 9999)
	if err != nil {
		return err
	}
	defer stop()
	pod := s.kubia[0]
	for _, vip := range []netip.AddrPort{kubia4, kubia6} {
		closed := netip.AddrPortFrom(vip.Addr(), 9999)
		r := pod.Connect(closed)
		s.say("%s connects to %s: %s after %s", pod.Name, closed, r.Verdict, r.Took.Round(100*time.Microsecond))
		if r.Verdict != lab.Refused {
			return fmt.Errorf("%s: %s, want refused", closed, r)
		}
	}
	own := netip.AddrPortFrom(s.w.Node(1).V4, 9999)
	r := pod.Ask(own)
	s.say("%s asks the node's own address %s: %s", pod.Name, own, r)
	if r.Verdict != lab.Answered {
		return fmt.Errorf("the daemon itself: %s", r)
	}
	return nil
}

func (s *show) stop() error {
	s.title("The agents stop, the Services go on")
	for _, a := range s.running {
		if err := a.Stop(); err != nil {
			return err
		}
	}
	for _, to := range []netip.AddrPort{kubia4, netip.AddrPortFrom(s.w.Node(3).V6, nodePort)} {
		if _, err := s.spread("from outside", s.w.Client, to); err != nil {
			return err
		}
	}
	return nil
}
