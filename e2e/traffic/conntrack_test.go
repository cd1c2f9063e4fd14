package traffic

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// tracked is where connection tracking has its settings.
const tracked = "net/netfilter/nf_conntrack_"

// sysctlsOf reads settings of a node.
func sysctlsOf(t *testing.T, n *lab.Node, names ...string) map[string]string {
	t.Helper()
	values := map[string]string{}
	for _, name := range names {
		value, err := n.ReadSysctl(name)
		if err != nil {
			t.Fatal(err)
		}
		values[name] = value
	}
	return values
}

// B41: connection tracking is tuned as kube-proxy's configuration says, seen in what a datagram leaves behind;
// what is 0 is left alone; and a room that cannot be had on this node is a warning, no more.
func TestB41ConntrackTuned(t *testing.T) {
	s := newStage(t)
	n, pod := s.w.Node(1), s.w.Pod("pod-b")
	untouched := sysctlsOf(t, n, tracked+"max", tracked+"tcp_be_liberal", tracked+"udp_timeout_stream")
	agent := s.w.StartAgent(t, n, s.cluster, "--conntrack-min=2000000000", "--conntrack-tcp-timeout-established=1000s",
		"--conntrack-udp-timeout=17s")
	svc := web(47)
	svc.Ports = append(svc.Ports, lab.Port{Name: "udp", Port: 53, TargetPort: 5353, Protocol: "UDP"})
	s.apply(svc, pod)
	answers(t, n.Host, at(svc, 4, 80))
	wantReals(t, n, at(svc, 4, 53), netip.AddrPortFrom(pod.V4, 5353).String()+" 1")
	want := map[string]string{tracked + "tcp_timeout_established": "1000", tracked + "tcp_timeout_close_wait": "3600", tracked + "udp_timeout": "17"}
	for name, value := range untouched {
		want[name] = value
	}
	if err := wrongSysctls(n, want); err != nil {
		t.Error(err)
	}
	for _, say := range []string{"node set-up is incomplete", tracked + "max is " + untouched[tracked+"max"] + ", should be at least 2000000000", "new connections are dropped"} {
		if !strings.Contains(agent.Log(), say) {
			t.Errorf("the agent does not say %q:\n%s", say, agent.Log())
		}
	}
	if left := leftOfDatagram(t, n, at(svc, 4, 53)); left < 10 || left > 17 {
		t.Errorf("the entry of a datagram lives for %d s, want 17", left)
	}
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	// Again, with other wishes.
	s.w.StartAgent(t, n, s.cluster, append(untuned, "--conntrack-tcp-be-liberal", "--conntrack-udp-timeout-stream=77s")...)
	want[tracked+"tcp_be_liberal"], want[tracked+"udp_timeout_stream"] = "1", "77"
	lab.Eventually(t, soon, "tuned, and nothing else", func() error { return wrongSysctls(n, want) })
}

// leftOfDatagram sends a datagram that nobody answers from the node and says how many seconds its entry in the
// node's table has left.
func leftOfDatagram(t *testing.T, n *lab.Node, to netip.AddrPort) (left int) {
	t.Helper()
	const port = 4711
	err := n.Do(func() error {
		if err := sendDatagrams(to, n.V4, port, 1); err != nil {
			return err
		}
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		for _, f := range flows {
			if f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.SrcPort == port && f.Forward.DstPort == to.Port() {
				left = int(f.TimeOut)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// B41: in the machine's first network namespace the table's room is raised, and never made smaller.
func TestB41RoomIsOnlyRaised(t *testing.T) {
	lab.New(t) // a machine with connection tracking
	const file = "/proc/sys/" + tracked + "max"
	before := readFile(t, file)
	setRoom := func(to int) error { return os.WriteFile(file, []byte(strconv.Itoa(to)), 0) }
	had, err := strconv.Atoi(before)
	if err != nil {
		t.Fatal(err)
	}
	first := setRoom(had) == nil // the same value as before
	if first {
		t.Cleanup(func() {
			if err := setRoom(had); err != nil {
				t.Error(err)
			}
		})
	}
	for _, c := range []struct{ have, want, then int }{{40000, 50000, 50000}, {50000, 40000, 50000}, {50000, 50000, 50000}} {
		if first {
			if err := setRoom(c.have); err != nil {
				t.Fatal(err)
			}
		}
		out := initHere(t, "--conntrack-max-per-core=1", fmt.Sprintf("--conntrack-min=%d", c.want))
		switch now := readFile(t, file); {
		case first && now != strconv.Itoa(c.then):
			t.Errorf("room for %d, %d wanted: became %s\n%s", c.have, c.want, now, out)
		case !first && now != before: // somebody else's machine: its limit is not to be had from here
			t.Errorf("room for %s became %s", before, now)
		}
	}
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// initHere runs `ipvs-proxy init` where this process is.
func initHere(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(os.Getenv("LAB_AGENT"), append([]string{"init"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}
