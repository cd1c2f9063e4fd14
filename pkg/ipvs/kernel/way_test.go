package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// aWire gives this host 192.0.2.1 on an interface whose packets go nowhere (a bridge without ports), and a way to see them.
func aWire(t *testing.T) (seen func() (udpSource uint16)) {
	t.Helper()
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "wire"}}))
	link, err := netlink.LinkByName("wire")
	must(t, err)
	must(t, netlink.LinkSetARPOff(link))
	must(t, netlink.LinkSetUp(link))
	must(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}}))
	ip := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)) // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, int(ip))
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ip, Ifindex: link.Attrs().Index}))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	return func() uint16 {
		for b := make([]byte, 2000); ; {
			n, _, err := unix.Recvfrom(fd, b, 0)
			must(t, err)
			if n >= 28 && b[0] == 0x45 && b[9] == unix.IPPROTO_UDP {
				return binary.BigEndian.Uint16(b[20:])
			}
		}
	}
}

// A process of the node that sends again to a frontend which has lost its endpoints meanwhile is refused as at first: what
// output lets pass unasked is what came in from elsewhere, and not what the node sends, whether it has an entry in the
// connection table or not (row B15).
func TestGuardMeetsWhatTheNodeRepeats(t *testing.T) {
	n := testNFT(t)
	seen := aWire(t)
	to := ipvs.Key{Addr: netip.MustParseAddr("192.0.2.9"), Port: 53, Proto: ipvs.UDP}
	writes(t, n, []ipvs.Element{{Set: ipvs.SetOwned, Key: to}, {Set: ipvs.SetOpen, Key: to}})
	closed := ipvs.Key{Addr: to.Addr, Port: 54, Proto: ipvs.UDP}
	writes(t, n, []ipvs.Element{{Set: ipvs.SetOwned, Key: closed}})
	c, err := net.Dial("udp", "192.0.2.9:54")
	must(t, err)
	_, _ = c.Write([]byte("only"))
	c.Close()
	if got := countersOf(t); len(got) != 1 || got["no-endpoint4"] != 1 {
		t.Errorf("counted %v, want one packet to a frontend without endpoints", got)
	}
	c, err = net.Dial("udp", "192.0.2.9:53")
	must(t, err)
	defer c.Close()
	if _, err := c.Write([]byte("first")); err != nil {
		t.Fatalf("to a frontend that is open: %v", err)
	}
	seen() // its entry is confirmed
	writes(t, n, []ipvs.Element{{Set: ipvs.SetOpen, Key: to, Remove: true}})
	_, _ = c.Write([]byte("again"))
	if got := countersOf(t); len(got) != 1 || got["no-endpoint4"] != 2 {
		t.Errorf("counted %v, want one packet more to a frontend without endpoints", got)
	}
}

// What the node sends to others keeps its source, and what it sends to a frontend does not (row B26).
func TestPostLeavesOthersAlone(t *testing.T) {
	n := testNFT(t)
	seen := aWire(t)
	frontend := ipvs.Key{Addr: netip.MustParseAddr("192.0.2.9"), Port: 53, Proto: ipvs.UDP}
	writes(t, n, []ipvs.Element{{Set: ipvs.SetOwned, Key: frontend}, {Set: ipvs.SetOpen, Key: frontend}})
	for _, row := range []struct {
		to    string
		keeps bool
	}{{"192.0.2.8:53", true}, {"192.0.2.9:54", true}, {"192.0.2.9:53", false}} {
		c, err := net.Dial("udp", row.to)
		must(t, err)
		_, err = c.Write([]byte("word"))
		must(t, err)
		port, own := seen(), c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		c.Close()
		if keeps := port == own; keeps != row.keeps {
			t.Errorf("to %s: sent from port %d, leaves from %d; keeps its own: want %t", row.to, own, port, row.keeps)
		}
	}
}

// load asks in a namespace without a pause until it is stopped, and counts.
type load struct {
	asked, lost, leaked atomic.Int64
	ended               chan error
	stop                atomic.Bool
}

// begin asks open, which must answer, and closed, which must be refused though somebody listens there.
func begin(t *testing.T, open, closed netip.AddrPort) *load {
	t.Helper()
	ns, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	l := &load{ended: make(chan error, 1)}
	asks := func(to netip.AddrPort) (answered bool) {
		c, err := net.DialTimeout("tcp", to.String(), 500*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			l.ended <- fmt.Errorf("enter the namespace: %w", err)
			return
		}
		for !l.stop.Load() {
			if !asks(open) {
				l.lost.Add(1)
			}
			if asks(closed) {
				l.leaked.Add(1)
			}
			l.asked.Add(1)
		}
		l.ended <- nil
	}()
	return l
}

// some waits until so many more were asked.
func (l *load) some(t *testing.T) {
	t.Helper()
	const more, limit = 50, time.Minute
	want, until := l.asked.Load()+more, time.Now().Add(limit)
	for l.asked.Load() < want {
		if time.Now().After(until) {
			t.Fatalf("%d asked, not %d within %s", l.asked.Load(), want, limit)
		}
		runtime.Gosched()
	}
}

func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop.Store(true)
	must(t, <-l.ended)
}

// olderTable makes the table with its sets and counters, and with the chains and rules that it once had.
func olderTable(t *testing.T, n *nftDoor, nft string) {
	t.Helper()
	c, err := n.conn()
	must(t, err)
	c.AddTable(n.table)
	for _, s := range n.sets() {
		must(t, c.AddSet(s, nil))
	}
	must(t, c.Flush())
	_, err = n.ensureCounters(t.Context(), false)
	must(t, err)
	if out, err := exec.Command(nft, "-f", "testdata/older.nft").CombinedOutput(); err != nil {
		t.Fatalf("the older chains: %v\n%s", err, out)
	}
}

// The table that agents had before frontends had chains of their own is changed over under load: who is served goes on being
// served, who is refused is refused all the while, also where somebody listens, and connections live, also when their
// frontend loses its endpoints (rows B15, F40). The control is a table that goes before the new one comes.
func TestOlderTableIsChangedOver(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs the nft tool (Debian package nftables)")
	}
	inNetns(t)
	n, err := newNFT(Config{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd10:244::/32")}})
	must(t, err)
	t.Cleanup(n.close)
	olderTable(t, n, nft)
	ownAddress(t, "203.0.113.10")
	open, closed := key("203.0.113.10", 80), key("203.0.113.10", 81)
	all := []ipvs.Element{{Set: ipvs.SetOwned, Key: open}, {Set: ipvs.SetOpen, Key: open}, {Set: ipvs.SetOwned, Key: closed}}
	writes(t, n, all)
	speaks := connection(t, n, key("203.0.113.10", 8080))
	for _, k := range []ipvs.Key{open, closed} {
		listener, err := net.Listen("tcp", netip.AddrPortFrom(k.Addr, k.Port).String())
		must(t, err)
		t.Cleanup(func() { listener.Close() })
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
	}
	l := begin(t, netip.AddrPortFrom(open.Addr, open.Port), netip.AddrPortFrom(closed.Addr, closed.Port))
	l.some(t)
	wrote, created, err := n.ensure(t.Context())
	if err != nil || created || len(wrote) == 0 {
		t.Errorf("wrote %q, created %t, %v; want new rules in the old table", wrote, created, err)
	}
	l.some(t)
	if wrote, _, err := n.ensure(t.Context()); err != nil || len(wrote) > 0 {
		t.Errorf("wrote %q a second time, %v", wrote, err)
	}
	if l.lost.Load() > 0 || l.leaked.Load() > 0 {
		t.Errorf("of %d: %d not served, %d not refused", l.asked.Load(), l.lost.Load(), l.leaked.Load())
	}
	if err := speaks(); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	writes(t, n, []ipvs.Element{{Set: ipvs.SetOpen, Key: key("203.0.113.10", 8080), Remove: true}})
	if err := speaks(); err != nil {
		t.Errorf("a connection through a frontend that has lost its endpoints: %v", err)
	}

	if _, err := n.transaction(t.Context(), func(b *batch) {
		b.begin(nftType(unix.NFT_MSG_DELTABLE), 0, nfgen(unix.NFPROTO_INET, 0))
		b.attrString(unix.NFTA_TABLE_NAME, tableName)
	}); err != nil {
		t.Fatal(err)
	}
	l.some(t)
	if _, created, err = n.ensure(t.Context()); err != nil || !created {
		t.Fatal(created, err)
	}
	writes(t, n, all)
	if l.end(t); l.leaked.Load() == 0 {
		t.Error("the control lost nothing: this test cannot fail")
	}
	if _, err := net.DialTimeout("tcp", "203.0.113.10:81", time.Second); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the frontend without endpoints in the end: %v", err)
	}
}
