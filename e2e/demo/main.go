// Command demo shows the agent at work, for a person to read: a Service and its endpoints in YAML files, two
// nodes whose kernels the agent programs, and packets that arrive. It ends with an error when anything it
// shows is not as it should be.
package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// Addresses of the Service in examples/kubia.yaml.
var (
	vip4 = netip.MustParseAddrPort("10.96.0.80:80")
	vip6 = netip.MustParseAddrPort("[fd00:96::80]:80")
)

// patience is how long a step may take in an emulated machine.
const patience = 20 * time.Second

// show is a demo under way.
type show struct {
	out     io.Writer
	w       *lab.World
	cluster *lab.Cluster
	running []*lab.Agent
	step    int
}

func run(out io.Writer) error {
	w, err := lab.Build(lab.Config{})
	if err != nil {
		return err
	}
	defer w.Close()
	dir, err := os.MkdirTemp("", "ipvs-proxy-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &show{out: out, w: w}
	if s.cluster, err = w.NewCluster(dir); err != nil {
		return err
	}
	for _, part := range []func() error{s.world, s.manifests, s.agents, s.balance, s.replace, s.refuse, s.stop} {
		if err := part(); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "\nAll as it should be.")
	return nil
}

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
	for _, name := range []string{"pod-a", "pod-b", "pod-c"} {
		p := s.w.Pod(name)
		if _, err := p.ServeHTTP(8080); err != nil {
			return err
		}
		s.say("%-8s %-15s %-20s on %s, HTTP on 8080: answers with its name and the client that it saw", p.Name, p.V4, p.V6, p.Node.Name)
	}
	s.say("%-8s %-15s %-20s outside of the cluster", s.w.Client.Name, s.w.Client.V4, s.w.Client.V6)
	return nil
}

func (s *show) manifests() error {
	text, err := os.ReadFile(filepath.Join(os.Getenv("LAB_DIR"), "examples", "kubia.yaml"))
	if err != nil {
		return err
	}
	s.title("The Service and its endpoints: examples/kubia.yaml")
	s.say("%s", strings.TrimSpace(string(text)))
	return s.cluster.Write("kubia.yaml", string(text))
}

func (s *show) agents() error {
	s.title("An agent on each node: ipvs-proxy run --source-dir DIR --hostname-override NODE --cluster-cidr ...")
	for _, n := range s.w.Nodes {
		began := time.Now()
		a, err := s.w.RunAgent(n, s.cluster, nil)
		if err != nil {
			return err
		}
		s.running = append(s.running, a)
		if err := eventually(n.Name+" is programmed", func() error {
			if !strings.Contains(a.Log(), "all Services are programmed") {
				return fmt.Errorf("not said in the log:\n%s", a.Log())
			}
			return nil
		}); err != nil {
			return err
		}
		s.say("%s: programmed %s after the start of the process", n.Name, time.Since(began).Round(time.Millisecond))
		if n == s.w.Nodes[0] {
			s.say("%s\n", indent(a.Log()))
		}
	}
	return nil
}

func (s *show) balance() error {
	s.title("Requests, balanced: 12 from each client to each address")
	for _, c := range []struct {
		name string
		host *lab.Host
	}{{"from pod-a", s.w.Pod("pod-a").Host}, {"from node2 itself", s.w.Node(2).Host}, {"from outside", s.w.Client}} {
		for _, vip := range []netip.AddrPort{vip4, vip6} {
			seen := c.host.Ask(vip)
			byPod, lost := c.host.Spread(vip, 12)
			s.say("%-18s to %-19s pod-a %d, pod-b %d, pod-c %d   seen as %s", c.name, vip, byPod["pod-a"], byPod["pod-b"], byPod["pod-c"], seen.Source)
			if len(lost) > 0 || byPod["pod-a"] != 4 || byPod["pod-b"] != 4 || byPod["pod-c"] != 4 {
				return fmt.Errorf("%s to %s: %v, lost %v; want 4 of each pod", c.name, vip, byPod, lost)
			}
		}
	}
	s.say("\nThe IPVS table of node1, with its counts:\n")
	if err := s.counted(s.w.Node(1)); err != nil {
		return err
	}
	return s.table(s.w.Node(1))
}

func (s *show) replace() error {
	s.title("An endpoint leaves and another joins, while requests go on")
	d, err := s.w.AddPod(lab.PodSpec{Name: "pod-d", Node: 2})
	if err != nil {
		return err
	}
	if _, err := d.ServeHTTP(8080); err != nil {
		return err
	}
	file := filepath.Join(s.cluster.Dir, "kubia.yaml")
	before, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	b := s.w.Pod("pod-b")
	after := string(before)
	for _, family := range []int{4, 6} {
		out, in := endpoint(b, family), endpoint(d, family)
		if !strings.Contains(after, out) {
			return fmt.Errorf("%s has no line with %q", file, out)
		}
		after = strings.Replace(after, out, in, 1)
		s.say("  - %s\n  + %s", out, in)
	}
	var loads []*lab.Load
	for _, vip := range []netip.AddrPort{vip4, vip6} {
		loads = append(loads, s.w.Pod("pod-a").StartLoad(vip, lab.LoadConfig{Rate: 50, Concurrency: 16, Wait: 50 * time.Millisecond}))
	}
	reach := func(n int) func() error {
		return func() error {
			for _, l := range loads {
				if r := l.Report(); r.Sent < n {
					return fmt.Errorf("%s", r)
				}
			}
			return nil
		}
	}
	if err := eventually("requests go", reach(50)); err != nil {
		return err
	}
	if err := s.cluster.Write("kubia.yaml", after); err != nil {
		return err
	}
	if err := eventually("requests go on", reach(200)); err != nil {
		return err
	}
	s.say("\nThe IPVS table of node1: pod-b has weight 0, it takes no new connection and keeps the old ones\n")
	if err := s.table(s.w.Node(1)); err != nil {
		return err
	}
	s.say("")
	for i, vip := range []netip.AddrPort{vip4, vip6} {
		r := loads[i].Stop()
		s.say("requests to %s: %s", vip, r)
		if r.Lost > 0 || r.ByPod["pod-d"] == 0 || r.ByPod["pod-b"] == 0 {
			return fmt.Errorf("requests to %s: %s; want none lost, some to pod-b and some to pod-d", vip, r)
		}
	}
	return nil
}

// endpoint is how an endpoint's line begins in the file.
func endpoint(p *lab.Pod, family int) string {
	addr := p.Addr(family).String()
	if family == 6 {
		addr = `"` + addr + `"`
	}
	return fmt.Sprintf("{addresses: [%s], nodeName: %s", addr, p.Node.Name)
}

func (s *show) refuse() error {
	s.title("A port that no Service serves is refused, though a daemon of the node listens on it")
	stop, err := s.w.Node(1).ServeHTTP("daemon", 9999)
	if err != nil {
		return err
	}
	defer stop()
	for _, vip := range []netip.AddrPort{vip4, vip6} {
		closed := netip.AddrPortFrom(vip.Addr(), 9999)
		r := s.w.Pod("pod-a").Connect(closed)
		s.say("pod-a connects to %s: %s", closed, r)
		if r.Verdict != lab.Refused {
			return fmt.Errorf("%s: %s, want refused", closed, r)
		}
	}
	own := netip.AddrPortFrom(s.w.Node(1).V4, 9999)
	r := s.w.Pod("pod-a").Ask(own)
	s.say("pod-a asks the node's own address %s: %s", own, r)
	if r.Verdict != lab.Answered {
		return fmt.Errorf("the daemon itself: %s", r)
	}
	return nil
}

func (s *show) stop() error {
	s.title("The agents stop, the Service goes on")
	for _, a := range s.running {
		if err := a.Stop(); err != nil {
			return err
		}
	}
	byPod, lost := s.w.Client.Spread(vip4, 12)
	s.say("12 requests from outside: %v, lost %d", byPod, len(lost))
	if len(lost) > 0 {
		return fmt.Errorf("lost %v", lost)
	}
	return nil
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")
}

// eventually waits for a condition.
func eventually(what string, cond func() error) error {
	began := time.Now()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		if time.Since(began) > patience {
			return fmt.Errorf("%s: not within %s: %w", what, patience, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
