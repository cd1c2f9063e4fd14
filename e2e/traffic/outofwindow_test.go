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

// Flags of a TCP segment: see RFC 9293.
const (
	flagSYN     = 0x02
	flagPushAck = 0x18
)

// segment sends a TCP segment of the host's making, with data in it.
func segment(t testing.TB, h *lab.Host, from, to netip.AddrPort, flags byte, sequence uint32) {
	t.Helper()
	tcp := make([]byte, 24)
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], sequence)
	binary.BigEndian.PutUint32(tcp[8:], 1)
	tcp[12], tcp[13] = 5<<4, flags // five words of header
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

// held asks a question that a pod answers after 3 s, and gives the pod's peer.
func held(t testing.TB, from *lab.Host, to netip.AddrPort, pod *lab.Pod, opts ...lab.AskOption) (done chan lab.Reply, peer netip.AddrPort) {
	t.Helper()
	before := peers(t, pod.Host, 8080)
	done = make(chan lab.Reply, 1)
	opts = append(opts, lab.Wait(3*time.Second), lab.Timeout(patient))
	go func() { done <- from.Ask(to, opts...) }()
	lab.Eventually(t, soon, "the connection stands", func() error {
		for _, p := range peers(t, pod.Host, 8080) {
			if !slices.Contains(before, p) {
				peer = p
				return nil
			}
		}
		return fmt.Errorf("not at the pod")
	})
	return done, peer
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
			done, peer := held(t, x.from.Host, to, c)
			strays := invalid(t, s.w.Node(1).Host)
			// All over the sequence space, since nobody here knows where the connection is. Those behind it may be
			// taken for retransmissions, those ahead are invalid.
			for i := range uint32(8) {
				segment(t, c.Host, netip.AddrPortFrom(c.V4, 8080), peer, flagPushAck, i<<29|1<<28)
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

// A SYN that a client sent again, since the answer to the first one took more than a second, may come when the connection
// stands. While its real server drains (weight 0, expire_nodest_conn 1) the kernel takes that for a new connection from a
// port that is used again, and forgets the old one (ip_vs_in in ip_vs_core.c): the client's next packet is reset. Nothing
// of ours does this: the test documents why a load in which SYNs are sent again loses some of them in a rolling update, on
// every kernel, and has no mutant. The control: the same SYN while the real server does not drain does no harm.
func TestSYNAgainWhileDraining(t *testing.T) {
	s := newStage(t).start()
	a, c := s.w.Pod("pod-a"), s.w.Pod("pod-c")
	svc := web(30)
	to := at(svc, 4, 80)
	from := s.w.Pod("pod-b").Host
	for _, drains := range []bool{false, true} {
		t.Run(fmt.Sprintf("draining %t", drains), func(t *testing.T) {
			s.apply(svc, c)
			wantReals(t, s.w.Node(1), to, netip.AddrPortFrom(c.V4, 8080).String()+" 1")
			done, _ := held(t, from, to, c, lab.FromPort(42000))
			if drains {
				s.apply(svc, a)
				takesNoMore(t, s.w.Node(1), to, netip.AddrPortFrom(c.V4, 8080))
			}
			segment(t, from, netip.AddrPortFrom(from.V4, 42000), to, flagSYN, 1)
			wantActive(t, s.w.Node(1), to, map[bool]int{false: 1, true: 0}[drains])
			r := <-done
			if answered := r.Verdict == lab.Answered; answered == drains {
				t.Errorf("a SYN that came again: %s", r)
			}
			t.Log(r)
		})
	}
}
