package traffic

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

const (
	reservedPorts  = "net/ipv4/ip_local_reserved_ports"
	ephemeralPorts = "net/ipv4/ip_local_port_range"
)

// connectOut has a process of a node connect to a server until the kernel has no more ports to give it, or two connections got
// no answer, and says from which ports it was answered and from which it was not.
func connectOut(t *testing.T, n *lab.Node, network string, to netip.AddrPort) (answered, silent []uint16) {
	t.Helper()
	for len(silent) < 2 {
		var conn net.Conn
		err := n.Do(func() (err error) {
			conn, err = net.DialTimeout(network, to.String(), 2*time.Second)
			return err
		})
		if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAGAIN) { // of TCP, and of UDP
			slices.Sort(answered)
			return answered, silent
		}
		if timed := net.Error(nil); errors.As(err, &timed) && timed.Timeout() { // nobody says from which port it was
			silent = append(silent, 0)
			continue
		}
		if err != nil {
			t.Fatalf("%s from %s: %v", to, n.Name, err)
		}
		t.Cleanup(func() {
			if c, is := conn.(*net.TCPConn); is {
				_ = c.SetLinger(0) // its port is free again at once
			}
			conn.Close()
		})
		port := netip.MustParseAddrPort(conn.LocalAddr().String()).Port()
		if err := question(conn, to); err != nil {
			silent = append(silent, port)
		} else {
			answered = append(answered, port)
		}
	}
	return answered, silent
}

// question asks one thing over a connection.
func question(conn net.Conn, to netip.AddrPort) error {
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", to); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 512))
	return err
}

// B81: a process of the node that connects out is given no port that is a served node port, in both families, over TCP and
// UDP, and its connections work. Ports that others have reserved stay so; ours alone go with their Service, also over a
// restart, and at clean-up. The control is the same without the agent's ports in the sysctl: who is given one gets no answer.
func TestB81ReservedPorts(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	s.serveUDP(5353, s.pods()...)
	wants := func(want string) {
		t.Helper()
		lab.Eventually(t, soon, "the reserved ports are "+want, func() error {
			if got, err := n.ReadSysctl(reservedPorts); err != nil || got != want {
				return fmt.Errorf("%q, %v", got, err)
			}
			return nil
		})
	}
	setSysctls(t, n, map[string]string{ephemeralPorts: "30080 30085", reservedPorts: "30085"})
	agent := s.w.StartAgent(t, n, s.cluster)
	svc, second := nodePort(81), nodePort(83)
	s.apply(svc, s.w.Pod("pod-b"))
	s.apply(second, s.w.Pod("pod-b"))
	wants("30081,30083,30085")
	for network, port := range map[string]uint16{"tcp": 8080, "udp": 5353} {
		for _, family := range []int{4, 6} {
			t.Run(fmt.Sprintf("%s IPv%d", network, family), func(t *testing.T) {
				answers(t, s.w.Client, netip.AddrPortFrom(n.Addr(family), 30081))
				to := netip.AddrPortFrom(s.w.Pod("pod-c").Addr(family), port)
				answered, silent := connectOut(t, n, network, to)
				if want := []uint16{30080, 30082, 30084}; !slices.Equal(answered, want) || len(silent) > 0 {
					t.Errorf("answered from %d, not from %d; want %d", answered, silent, want)
				}
			})
		}
	}
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Run("control", func(t *testing.T) {
		setSysctls(t, n, map[string]string{reservedPorts: "30085"})
		for network, port := range map[string]uint16{"tcp": 8080, "udp": 5353} {
			for _, family := range []int{4, 6} {
				t.Run(fmt.Sprintf("%s IPv%d", network, family), func(t *testing.T) {
					to := netip.AddrPortFrom(s.w.Pod("pod-a").Addr(family), port)
					answered, silent := connectOut(t, n, network, to)
					if len(silent) < 2 || slices.Contains(answered, 30081) || slices.Contains(answered, 30083) {
						t.Errorf("answered from %d, not from %d: nobody would be harmed", answered, silent)
					}
				})
			}
		}
	})
	s.cluster.Delete(second)
	agent = s.w.StartAgent(t, n, s.cluster)
	wants("30081,30085")
	s.apply(second, s.w.Pod("pod-b"))
	wants("30081,30083,30085")
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	s.cluster.Delete(second) // while no agent runs
	agent = s.w.StartAgent(t, n, s.cluster)
	wants("30081,30085")
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	cleanup(t, n, 0, []string{"sysctl " + reservedPorts + ": -30081"}, "cleanup", "--keep-ipvs")
	wants("30085")
	agent = s.w.StartAgent(t, n, s.cluster)
	wants("30081,30085")
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	cleanup(t, n, 0, []string{"sysctl " + reservedPorts + ": -30081", "nft delete table inet ipvs-proxy"}, "cleanup")
	wants("30085")
}

// B81: an agent that may not write the sysctl says so where the node gives such a port away, once, and check does; both are
// quiet where it does not, and where somebody else has reserved the node ports.
func TestB81NotWritable(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	n.ReadOnlySysctls = true
	setSysctls(t, n, wantedSysctls)
	svc := nodePort(81)
	s.apply(svc, s.w.Pod("pod-b"))
	const warning = reservedPorts + " has not the node ports 30081 and cannot be written"
	for _, c := range []struct {
		name, ephemeral, reserved string
		says                      bool
	}{
		{"given away", "1024 65535", "", true},
		{"not given away", "32768 60999", "", false},
		{"reserved by others", "1024 65535", "30000-32767", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			setSysctls(t, n, map[string]string{ephemeralPorts: c.ephemeral, reservedPorts: c.reserved + "\n"})
			agent := s.w.StartAgent(t, n, s.cluster, untuned...)
			programmed(t, agent)
			answers(t, s.w.Client, netip.AddrPortFrom(n.V4, 30081))
			if k := strings.Count(agent.Log(), warning); k != map[bool]int{true: 1}[c.says] {
				t.Errorf("said %d times:\n%s", k, agent.Log())
			}
			if f := check(t, n); len(f.of("warning", "may give the ports 30000-32767", "read-only file system", "sysctl -w net.ipv4.ip_local_reserved_ports=30000-32767")) != map[bool]int{true: 1}[c.says] {
				t.Errorf("check:\n%s", strings.Join(f.lines, "\n"))
			}
			if got, err := n.ReadSysctl(reservedPorts); err != nil || got != c.reserved {
				t.Errorf("the reserved ports are %q, %v; want %q", got, err, c.reserved)
			}
			if err := agent.Stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
