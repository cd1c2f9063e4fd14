package traffic

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// peers are the remote ends of a host's established TCP connections of a local port, over IPv4 to a socket of both
// families.
func peers(t testing.TB, h *lab.Host, port uint16) (list []netip.AddrPort) {
	t.Helper()
	err := h.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/tcp6")
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != "01" || !strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				continue
			}
			addr, remote, _ := strings.Cut(f[2], ":")
			raw, err := hex.DecodeString(addr)
			if err != nil || len(raw) != 16 {
				return fmt.Errorf("%q: %v", line, err)
			}
			raw = raw[12:]
			slices.Reverse(raw) // the kernel prints words
			n, err := strconv.ParseUint(remote, 16, 16)
			if err != nil {
				return err
			}
			a, _ := netip.AddrFromSlice(raw)
			list = append(list, netip.AddrPortFrom(a, uint16(n)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// segment sends a TCP segment of the host's making: data and an acknowledgement.
func segment(t testing.TB, h *lab.Host, from, to netip.AddrPort, sequence uint32) {
	t.Helper()
	tcp := make([]byte, 24)
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], sequence)
	binary.BigEndian.PutUint32(tcp[8:], 1)
	tcp[12], tcp[13] = 5<<4, 0x18 // five words of header; PSH, ACK
	binary.BigEndian.PutUint16(tcp[14:], 1000)
	copy(tcp[20:], "lost")
	pseudo := slices.Concat(from.Addr().AsSlice(), to.Addr().AsSlice(), []byte{0, unix.IPPROTO_TCP, 0, byte(len(tcp))}, tcp)
	sum := uint32(0)
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, tcp, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
	})
	if err != nil {
		t.Fatalf("send a segment from %s to %s: %v", from, to, err)
	}
}

// invalid counts the packets of which connection tracking of a host's namespace made nothing.
func invalid(t testing.TB, h *lab.Host) (n uint64) {
	t.Helper()
	err := h.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		at := slices.Index(strings.Fields(lines[0]), "invalid")
		for _, line := range lines[1:] { // one a processor
			f := strings.Fields(line)
			if at < 0 || at >= len(f) {
				return fmt.Errorf("no count of invalid packets in\n%s", text)
			}
			count, err := strconv.ParseUint(f[at], 16, 64)
			if err != nil {
				return err
			}
			n += count
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A segment of the server's that lies outside of the window is none of any connection for connection tracking, which
// would leave it untranslated: a client that gets it from the pod's own address resets the connection. IPVS translates
// it by its own table, so the client takes it for what it is, a stray one. (kube-proxy's iptables mode drops such
// segments by a rule; its ipvs mode has none.) Nothing of ours does this: the test documents why there is no such rule,
// on every kernel, and has no mutant.
func TestSegmentOutOfWindow(t *testing.T) {
	s := newStage(t).start()
	c := s.w.Pod("pod-c")
	svc := balanced(web(29), 29)
	s.apply(svc, c)
	for _, x := range []struct {
		from client
		kind string
	}{
		{client{"pod", s.w.Pod("pod-a").Host}, "ClusterIP"},
		{client{"node", s.w.Node(1).Host}, "ClusterIP"},
		{client{"outside", s.w.Client}, "LoadBalancer"},
		{client{"outside", s.w.Client}, "NodePort"},
	} {
		t.Run(x.from.name+" "+x.kind, func(t *testing.T) {
			to := s.frontends(svc, 4)[x.kind]
			answers(t, x.from.Host, to)
			before := peers(t, c.Host, 8080)
			done := make(chan lab.Reply, 1)
			go func() { done <- x.from.Ask(to, lab.Wait(3*time.Second), lab.Timeout(patient)) }()
			var peer netip.AddrPort
			lab.Eventually(t, soon, "the connection stands", func() error {
				for _, p := range peers(t, c.Host, 8080) {
					if !slices.Contains(before, p) {
						peer = p
						return nil
					}
				}
				return fmt.Errorf("not at the pod")
			})
			strays := invalid(t, s.w.Node(1).Host)
			// All over the sequence space, since nobody here knows where the connection is. Those behind it may be
			// taken for retransmissions, those ahead are invalid.
			for i := range uint32(8) {
				segment(t, c.Host, netip.AddrPortFrom(c.V4, 8080), peer, i<<29|1<<28)
			}
			lab.Eventually(t, soon, "the client's node takes the segments for stray ones", func() error {
				if n := invalid(t, s.w.Node(1).Host) - strays; n < 3 {
					return fmt.Errorf("%d of 8", n)
				}
				return nil
			})
			if r := <-done; r.Verdict != lab.Answered {
				t.Errorf("%s through %s, after stray segments of the server: %s", x.from.name, to, r)
			}
		})
	}
}
