package traffic

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// diffReport is what `ipvs-proxy diff -o json` says.
type diffReport struct {
	Kernel  string
	Agent   bool `json:"agentRunning"`
	SetUp   []string
	Foreign struct{ VirtualServers, RealServers int }
	Counts  []struct {
		Kind                   string
		Stay, Come, Change, Go int
	}
	Writes []struct{ Verb, Service, Line, Code string }
	// Services are those that behave otherwise.
	Services  []struct{ Service string }
	Leftovers *struct {
		Mode   string
		Writes []string
	}
}

// diffArgs are a command's on a node, with what all agents of the lab are given.
func (s *stage) diffArgs(n *lab.Node, args ...string) []string {
	return slices.Concat([]string{"diff", "--source-dir", s.cluster.Dir, "--hostname-override", n.Name,
		"--cluster-cidr", fmt.Sprintf("%s,%s", lab.ClusterCIDR4, lab.ClusterCIDR6)}, untuned, args, strings.Fields(os.Getenv("LAB_AGENT_ARGS")))
}

// diff runs the command and wants its exit status; nothing may have been written. An agent beside it writes one thing
// once a minute, and not twice in a row: that the shield is up.
func (s *stage) diff(n *lab.Node, exit int) (d diffReport, text string) {
	s.t.Helper()
	var out, stderr string
	var got int
	changes := rtnetlinkChanges(s.t, n)
	for again := range 2 {
		before := kernelState(s.t, n)
		out, stderr, got = n.Command(s.t, 0, s.diffArgs(n, "-o", "json")...)
		text, _, _ = n.Command(s.t, 0, s.diffArgs(n)...)
		after := kernelState(s.t, n)
		if after == before {
			break
		}
		if again == 1 {
			s.t.Errorf("diff wrote:\n%s\nwas:\n%s", after, before)
		}
	}
	if told := changes(); told != 0 {
		s.t.Errorf("while diff looked, the kernel told %d times of a change of kube-ipvs0 or its addresses", told)
	}
	if err := json.Unmarshal([]byte(out), &d); err != nil || got != exit || stderr != "" {
		s.t.Fatalf("exit status %d, want %d, %v:\n%s%s", got, exit, err, out, stderr)
	}
	return d, text
}

// rtnetlinkChanges counts what the kernel tells of kube-ipvs0, of its addresses and of new links until it is called.
func rtnetlinkChanges(t *testing.T, n *lab.Node) func() int {
	t.Helper()
	var socket *nl.NetlinkSocket
	others := map[uint32]bool{} // interfaces
	if err := n.Do(func() (err error) {
		links, err := netlink.LinkList()
		for _, l := range links {
			others[uint32(l.Attrs().Index)] = l.Attrs().Name != "kube-ipvs0"
		}
		if err == nil {
			socket, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return func() (count int) {
		defer socket.Close()
		buf := make([]byte, 64<<10)
		for {
			size, _, err := unix.Recvfrom(socket.GetFd(), buf, unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return count
			case err != nil:
				t.Fatal(err)
			}
			// The interface's index has the same place in what is told of links and of addresses.
			if size >= unix.SizeofNlMsghdr+8 && !others[binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr+4:])] {
				count++
			}
		}
	}
}

// asKubeProxy makes what kube-proxy in mode ipvs makes: an interface that is down, addresses on it, virtual servers, and
// chains of iptables-nft.
func asKubeProxy(t *testing.T, n *lab.Node, servers map[netip.AddrPort][]netip.AddrPort) {
	t.Helper()
	shell(t, n, "ip link add kube-ipvs0 type dummy")
	for _, vip := range slices.SortedFunc(maps.Keys(servers), netip.AddrPort.Compare) {
		shell(t, n, fmt.Sprintf("ip addr add %s/%d dev kube-ipvs0", vip.Addr(), vip.Addr().BitLen()), fmt.Sprintf("ipvsadm -A -t %s -s rr", vip))
		for _, real := range servers[vip] {
			shell(t, n, fmt.Sprintf("ipvsadm -a -t %s -r %s -m -w 1", vip, real))
		}
	}
	nft(t, n, `table ip nat { chain KUBE-SERVICES { }; chain KUBE-LOAD-BALANCER { }; }
		table ip filter { chain KUBE-IPVS-FILTER { }; }`)
}

// behind are pods as real servers of a family.
func behind(family int, pods ...*lab.Pod) (list []netip.AddrPort) {
	for _, p := range pods {
		list = append(list, netip.AddrPortFrom(p.Addr(family), 8080))
	}
	return list
}

// B73: beside kube-proxy's state diff says what would stay, come, change and go, in both families, with the reasons, and
// writes nothing. An agent that starts then writes exactly that. Beside the agent nothing is left to do; a real server that
// somebody changes is named.
func TestB73Diff(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	right, legacy := web(73), web(74)
	legacy.Spec = map[string]any{"externalIPs": []string{"203.0.113.74"}}
	s.apply(right, s.pods()...)
	s.apply(legacy, s.w.Pod("pod-b"))
	external := netip.MustParseAddrPort("203.0.113.74:80")
	servers := map[netip.AddrPort][]netip.AddrPort{external: behind(4, s.w.Pod("pod-b"))}
	for _, family := range []int{4, 6} {
		servers[at(right, family, 80)] = behind(family, s.pods()...)
		servers[at(legacy, family, 80)] = behind(family, s.w.Pod("pod-b"), s.w.Pod("pod-c")) // one too many
		servers[at(web(75), family, 80)] = behind(family, s.w.Pod("pod-a"))                  // a Service that is gone
	}
	asKubeProxy(t, n, servers)
	addServer(t, n, netip.MustParseAddrPort("192.0.2.55:80"), "wlc")

	d, text := s.diff(n, 1)
	if d.Kernel != "kube-proxy" || d.Agent || d.Leftovers == nil || d.Leftovers.Mode != "ipvs" || len(d.Leftovers.Writes) == 0 || d.Foreign.VirtualServers != 1 {
		t.Errorf("the kernel is %s's, an agent %t, %+v, foreign %+v", d.Kernel, d.Agent, d.Leftovers, d.Foreign)
	}
	wantCounts(t, d, "virtual servers", 4, 0, 0, 3)
	wantCounts(t, d, "real servers", 8, 0, 0, 5)
	each(t, func(t *testing.T, family int) {
		pod := behind(family, s.w.Pod("pod-c"))[0]
		d.wantWrite(t, "go", "default/web74", fmt.Sprintf("ipvsadm -e -t %s -r %s -m -w 0", at(legacy, family, 80), pod), "")
		d.wantWrite(t, "go", "", "ipvsadm -D -t "+at(web(75), family, 80).String(), "")
		for _, w := range d.Writes {
			if strings.Contains(w.Line, "ipvsadm") && strings.Contains(w.Line, at(right, family, 80).String()) {
				t.Errorf("%s is right, and yet: %s", right.Name, w.Line)
			}
		}
	})
	d.wantWrite(t, "go", "default/web74", "ipvsadm -D -t "+external.String(), "IPX0203")
	if len(d.Services) != 1 || d.Services[0].Service != "default/web74" {
		t.Errorf("Services that behave otherwise: %+v", d.Services)
	}
	for _, want := range []string{"the kernel is as kube-proxy makes it in mode ipvs", "IPX0203", "- ipvsadm -D -t " + external.String(), "+ ip link set kube-ipvs0 up"} {
		if !strings.Contains(text, want) {
			t.Errorf("the table does not say %q:\n%s", want, text)
		}
	}

	agent := s.w.StartAgent(t, n, s.cluster, append(untuned, "-v=4")...)
	lab.Eventually(t, soon, "the adoption is over", func() error {
		if !strings.Contains(agent.Log(), theLastWrite) {
			return errors.New("not said in the log")
		}
		return nil
	})
	did := writesIn(t, agent.Log())
	var would []string
	for _, w := range d.Writes {
		would = append(would, w.Line)
	}
	slices.Sort(would)
	if !slices.Equal(would, did) {
		t.Errorf("said:\n  %s\nand then did:\n  %s", strings.Join(would, "\n  "), strings.Join(did, "\n  "))
	}
	for _, line := range d.SetUp {
		if !strings.Contains(agent.Log(), line) {
			t.Errorf("said, and not done: %s", line)
		}
	}

	lab.Eventually(t, soon, "what kube-proxy left is taken out", func() error {
		_, took, _ := strings.Cut(agent.Log(), "took out what kube-proxy left")
		for _, line := range d.Leftovers.Writes {
			if !strings.Contains(took, line) {
				return fmt.Errorf("not in the log: %s", line)
			}
		}
		return nil
	})
	each(t, func(t *testing.T, family int) { // the agent has taken out what drained
		wantReals(t, n, at(legacy, family, 80), behind(family, s.w.Pod("pod-b"))[0].String()+" 1")
	})
	d, text = s.diff(n, 0)
	if d.Kernel != "ipvs-proxy" || !d.Agent || d.Leftovers != nil || !strings.Contains(text, "nothing to do") {
		t.Errorf("beside the agent: %+v\n%s", d, text)
	}
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	each(t, func(t *testing.T, family int) { // the control
		vip, real := at(right, family, 80), behind(family, s.w.Pod("pod-a"))[0]
		shell(t, n, fmt.Sprintf("ipvsadm -e -t %s -r %s -m -w 7", vip, real))
		d, text := s.diff(n, 1)
		line := fmt.Sprintf("ipvsadm -e -t %s -r %s -m -w 1", vip, real)
		d.wantWrite(t, "change", "default/web73", line, "")
		if len(d.Writes) != 1 || !strings.Contains(text, "~ "+line) || !strings.Contains(text, "Its weight is 7.") {
			t.Errorf("%d writes:\n%s", len(d.Writes), text)
		}
		shell(t, n, line)
	})
	s.diff(n, 0)
	changes := rtnetlinkChanges(t, n)
	shell(t, n, "ip addr add 203.0.113.99/32 dev kube-ipvs0")
	if changes() == 0 {
		t.Error("the control: an address that comes is not counted")
	}
}

// B73: alone beside an agent, diff goes by what the agent goes by, flags and objects, and looks at all of the kernel: there
// is nothing to do, but for what another program did that the agent has not noticed yet. The control is the same question with
// the defaults of all flags: what the agent's own let it serve would go.
func TestB73DiffAlone(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	svc := web(73)
	svc.Spec = map[string]any{"externalIPs": []string{"203.0.113.74"}}
	s.apply(svc, s.pods()...)
	agent := s.w.StartAgent(t, n, s.cluster, append(untuned, "--external-ip-cidrs=203.0.113.0/24")...)
	programmed(t, agent)
	servers := len(virtualServers(t, n))
	ask := func(args ...string) (d diffReport, text string, exit int) {
		t.Helper()
		text, stderr, exit := n.Command(t, 0, append(args, "-o", "json")...)
		if err := json.Unmarshal([]byte(text), &d); err != nil || stderr != "" {
			t.Fatalf("exit status %d, %v:\n%s%s", exit, err, text, stderr)
		}
		return d, text, exit
	}
	lab.Eventually(t, soon, "nothing to do", func() error { // the first audit may have something to write
		d, text, exit := ask("diff")
		if exit != 0 || !d.Agent || d.Kernel != "ipvs-proxy" {
			return fmt.Errorf("exit status %d:\n%s", exit, text)
		}
		wantCounts(t, d, "virtual servers", servers, 0, 0, 0)
		return nil
	})
	if d, text, exit := ask(s.diffArgs(n)...); exit != 1 || !slices.ContainsFunc(d.Writes, func(w struct{ Verb, Service, Line, Code string }) bool {
		return w.Line == "ipvsadm -D -t 203.0.113.74:80"
	}) {
		t.Errorf("the control, exit status %d:\n%s", exit, text)
	}
	each(t, func(t *testing.T, family int) {
		vip, real := at(svc, family, 80), behind(family, s.w.Pod("pod-a"))[0]
		line := fmt.Sprintf("ipvsadm -e -t %s -r %s -m -w 1", vip, real)
		lab.Eventually(t, soon, "what another program did is named", func() error { // unless the agent's audit is quicker
			shell(t, n, fmt.Sprintf("ipvsadm -e -t %s -r %s -m -w 7", vip, real))
			d, text, exit := ask("diff")
			if exit != 1 || len(d.Writes) != 1 || d.Writes[0].Line != line || d.Writes[0].Service != "default/"+svc.Name {
				return fmt.Errorf("exit status %d:\n%s", exit, text)
			}
			return nil
		})
	})
}

// theLastWrite of a first start is the record that it is over.
const theLastWrite = `owned4 { 0.0.0.0 . proto-0 . 0 }"]}`

func wantCounts(t *testing.T, d diffReport, kind string, stay, come, change, gone int) {
	t.Helper()
	for _, c := range d.Counts {
		if c.Kind == kind && (c.Stay != stay || c.Come != come || c.Change != change || c.Go != gone) {
			t.Errorf("%+v, want %d, %d, %d, %d", c, stay, come, change, gone)
		}
	}
}

// wantWrite: it is said once that a write would be done, and so.
func (d diffReport) wantWrite(t *testing.T, verb, service, line, code string) {
	t.Helper()
	found := 0
	for _, w := range d.Writes {
		if w.Line == line && w.Verb == verb && w.Service == service && w.Code == code {
			found++
		}
	}
	if found != 1 {
		t.Errorf("said %d times: %s of %q, code %q: %s\n%+v", found, verb, service, code, line, d.Writes)
	}
}

// writesIn are the writes up to the end of an agent's first start, by its log, sorted, each once; without conntrack's.
func writesIn(t *testing.T, log string) (all []string) {
	t.Helper()
	for line := range strings.Lines(log) {
		_, fields, plan := strings.Cut(line, "\tplan\t")
		if !plan {
			continue
		}
		var of struct{ Ops []string }
		if err := json.Unmarshal([]byte(fields), &of); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, of.Ops...)
		if strings.Contains(line, theLastWrite) {
			break
		}
	}
	all = slices.DeleteFunc(all, func(op string) bool { return strings.HasPrefix(op, "conntrack ") })
	slices.Sort(all)
	return slices.Compact(all)
}

// B73: where diff cannot look, it ends with one line that says why, and exit status 2.
func TestB73DiffCannotLook(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	s.apply(web(73))
	unreadable := s.w.Cluster(t)
	if err := os.WriteFile(unreadable.Dir+"/broken.yaml", []byte("kind: [\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		uid  uint32
		args []string
		says []string
	}{
		{"no rights", 65534, s.diffArgs(n), []string{"no permission to change the node's network", "CAP_NET_ADMIN"}},
		{"no directory", 0, []string{"diff", "--source-dir=/nonesuch", "--cluster-cidr=10.244.0.0/16"}, []string{"/nonesuch", "no such file"}},
		{"a broken file", 0, []string{"diff", "--source-dir", unreadable.Dir, "--timeout=1s", "--cluster-cidr=10.244.0.0/16"}, []string{"not all of the cluster's objects came within 1s", "broken.yaml"}},
		{"no API server", 0, []string{"diff", "--master=http://127.0.0.1:1", "--timeout=1s", "--cluster-cidr=10.244.0.0/16"}, []string{"127.0.0.1:1", "not all of the cluster's objects came within 1s", "connection refused"}},
		{"no such form", 0, s.diffArgs(n, "-o", "xml"), []string{"--output=xml: want table, json or yaml"}},
		{"no such flag", 0, []string{"diff", "--nonesuch"}, []string{"--nonesuch"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, stderr, exit := n.Command(t, c.uid, c.args...)
			if exit != 2 || out != "" || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit status %d:\n%s%s", exit, out, stderr)
			}
			for _, want := range c.says {
				if !strings.Contains(stderr, want) {
					t.Errorf("it does not say %q:\n%s", want, stderr)
				}
			}
		})
	}
}
