package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// wantedSysctls are what the traffic needs, on every node.
var wantedSysctls = map[string]string{
	"net/ipv4/vs/conntrack":                 "1",
	"net/ipv4/vs/expire_nodest_conn":        "1",
	"net/ipv4/vs/expire_quiescent_template": "1",
	"net/ipv4/ip_forward":                   "1",
	"net/ipv6/conf/all/forwarding":          "1",
}

// foreignSysctls are the business of others; a value that the kernel does not have by itself shows who writes.
var foreignSysctls = map[string]string{
	"net/ipv4/vs/conn_reuse_mode":      "0",
	"net/ipv4/conf/all/route_localnet": "0",
	"net/ipv4/conf/all/arp_ignore":     "0",
	"net/ipv4/conf/all/arp_announce":   "0",
}

// untuned has the agent leave connection tracking as the kernel has it.
var untuned = []string{"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"}

func setSysctls(t *testing.T, n *lab.Node, values map[string]string) {
	t.Helper()
	for name, value := range values {
		if err := n.Sysctl(name, value); err != nil {
			t.Fatal(err)
		}
	}
}

// wrongSysctls says which settings of a node are not as they should be.
func wrongSysctls(n *lab.Node, want map[string]string) error {
	var wrong []error
	for name, value := range want {
		if have, err := n.ReadSysctl(name); err != nil || have != value {
			wrong = append(wrong, fmt.Errorf("%s is %q, want %q (%v)", name, have, value, err))
		}
	}
	return errors.Join(wrong...)
}

// zero gives every setting the value 0.
func zero(of map[string]string) map[string]string {
	out := map[string]string{}
	for name := range of {
		out[name] = "0"
	}
	return out
}

// B40: on a node where everything is wrong the agent sets right what traffic needs and nothing else, and a
// start puts right what somebody changed. That it looks again each minute is a unit test of pkg/sync.
func TestB40SysctlsSetRight(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	setSysctls(t, n, zero(wantedSysctls))
	setSysctls(t, n, foreignSysctls)
	agent := s.w.StartAgent(t, n, s.cluster)
	svc := web(40)
	s.apply(svc, s.w.Pod("pod-b"))
	answers(t, n.Host, at(svc, 4, 80))
	answers(t, n.Host, at(svc, 6, 80))
	if err := wrongSysctls(n, wantedSysctls); err != nil {
		t.Errorf("the agent left them wrong: %v", err)
	}
	for name := range wantedSysctls {
		if err := agent.Stop(); err != nil {
			t.Fatal(err)
		}
		setSysctls(t, n, map[string]string{name: "0"})
		agent = s.w.StartAgent(t, n, s.cluster)
		lab.Eventually(t, soon, "a start puts "+name+" right", func() error { return wrongSysctls(n, wantedSysctls) })
	}
	if err := wrongSysctls(n, foreignSysctls); err != nil {
		t.Errorf("the agent wrote what is not its business: %v", err)
	}
}

// B40: an agent that may not write says what is wrong, what it should be and what follows, says nothing of
// what is right, and serves.
func TestB40ReadOnlySysctls(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	setSysctls(t, n, wantedSysctls)
	wrong := map[string]string{"net/ipv4/vs/expire_nodest_conn": "0"}
	setSysctls(t, n, wrong)
	n.ReadOnlySysctls = true
	agent := s.w.StartAgent(t, n, s.cluster, untuned...)
	svc := web(41)
	s.apply(svc, s.w.Pod("pod-b"))
	each(t, func(t *testing.T, family int) {
		for _, c := range []*lab.Host{s.w.Pod("pod-a").Host, n.Host, s.w.Client} {
			answers(t, c, at(svc, family, 80))
		}
	})
	var warnings []string
	for line := range strings.Lines(agent.Log()) {
		if strings.Contains(line, "node set-up is incomplete") {
			warnings = append(warnings, line)
		}
	}
	if len(warnings) != 1 {
		t.Fatalf("%d warnings, want one:\n%s", len(warnings), agent.Log())
	}
	for _, want := range []string{"net/ipv4/vs/expire_nodest_conn is 0, should be 1", "read-only file system", "clients of a removed endpoint hang"} {
		if !strings.Contains(warnings[0], want) {
			t.Errorf("the warning does not say %q: %s", want, warnings[0])
		}
	}
	if err := wrongSysctls(n, wrong); err != nil {
		t.Errorf("the lab let it write: %v", err)
	}
}

// B40, strictARP: ARP for a virtual IP is answered on the wire without it and not with it; the node's own
// address is answered for in any case.
func TestB40StrictARP(t *testing.T) {
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprintf("strictARP=%v", strict), func(t *testing.T) {
			s := newStage(t)
			n := s.w.Node(1)
			s.w.StartAgent(t, n, s.cluster, fmt.Sprintf("--ipvs-strict-arp=%v", strict))
			svc := web(42)
			s.apply(svc, s.w.Pod("pod-b"))
			answers(t, n.Host, at(svc, 4, 80))
			want := map[string]string{"net/ipv4/conf/all/arp_ignore": "0", "net/ipv4/conf/all/arp_announce": "0"}
			if strict {
				want = map[string]string{"net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/arp_announce": "2"}
			}
			if err := wrongSysctls(n, want); err != nil {
				t.Error(err)
			}
			if answered := askARP(t, s.w.Client, at(svc, 4, 80).Addr(), n.V4); answered == strict {
				t.Errorf("ARP for the virtual IP answered: %v", answered)
			}
		})
	}
}

// askARP asks the wire for an address, and then for one that is answered for in any case: when that answer is
// there, one for the first would be there, too. Three rounds: a lost frame is no proof of anything.
func askARP(t *testing.T, from *lab.Host, addr, control netip.Addr) (answered bool) {
	t.Helper()
	err := from.Do(func() error {
		eth0, err := from.Netlink().LinkByName("eth0")
		if err != nil {
			return err
		}
		fd, err := openARP(eth0.Attrs().Index)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for range 3 {
			for _, a := range []netip.Addr{addr, control} {
				if err := sendARP(fd, eth0.Attrs().Index, eth0.Attrs().HardwareAddr, from.V4, a); err != nil {
					return err
				}
			}
			for answer := (netip.Addr{}); answer != control; {
				if answer, err = receiveARP(fd); err != nil {
					return fmt.Errorf("waiting for the answer for %s: %w", control, err)
				}
				answered = answered || answer == addr
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return answered
}

const (
	arpRequest = 1
	arpReply   = 2
)

var ethARP = bits.ReverseBytes16(unix.ETH_P_ARP) // in network order

func openARP(device int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(ethARP))
	if err != nil {
		return -1, err
	}
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(soon / time.Second)}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ethARP, Ifindex: device}))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// sendARP asks all on the wire who has an address.
func sendARP(fd, device int, mac []byte, from, who netip.Addr) error {
	b := binary.BigEndian.AppendUint16(nil, 1) // Ethernet
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, 6, 4) // the lengths of the addresses
	b = binary.BigEndian.AppendUint16(b, arpRequest)
	b = append(append(b, mac...), from.AsSlice()...)
	b = append(append(b, make([]byte, 6)...), who.AsSlice()...)
	to := &unix.SockaddrLinklayer{Protocol: ethARP, Ifindex: device, Halen: 6,
		Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	return unix.Sendto(fd, b, 0, to)
}

// receiveARP waits for the next answer and says for whom it is.
func receiveARP(fd int) (netip.Addr, error) {
	b := make([]byte, 64)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return netip.Addr{}, err
		}
		if n >= 28 && binary.BigEndian.Uint16(b[6:]) == arpReply {
			return netip.AddrFrom4([4]byte(b[14:18])), nil
		}
	}
}
