package kernel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// wires are links of this host whose other ends the test holds: to pods, and out of the cluster.
type wires struct {
	t    *testing.T
	fds  [2]int
	port uint16
}

// The wires, and an address of this host on each.
const (
	pods = iota
	out
)

var wireAddrs = [2]string{"10.244.1.1", "198.51.100.1"}

// lay makes both. Packets are forwarded between them.
func lay(t *testing.T) *wires {
	t.Helper()
	w := &wires{t: t, port: 20000}
	for i, name := range [2]string{"pods", "out"} {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Skipf("no tun devices here: %v", err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		req, err := unix.NewIfreq(name)
		must(t, err)
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		must(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, req))
		w.fds[i] = fd
		link, err := netlink.LinkByName(name)
		must(t, err)
		must(t, netlink.LinkSetUp(link))
		must(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(wireAddrs[i]).To4(), Mask: net.CIDRMask(24, 32)}}))
		must(t, os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("0"), 0))
	}
	for _, key := range []string{"ip_forward=1", "conf/all/rp_filter=0"} {
		name, value := key[:len(key)-2], key[len(key)-1:]
		must(t, os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0))
	}
	return w
}

// segment is what matters of a TCP segment over IPv4.
type segment struct {
	from, to netip.AddrPort
	flags    byte
}

const flagSYN, flagRST, flagACK = 2, 4, 16

// sum is the internet checksum.
func sum(parts ...[]byte) uint16 {
	var n uint32
	for _, b := range parts { // of even lengths
		for i := 0; i < len(b); i += 2 {
			n += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return ^uint16(n)
}

func (s segment) encode() []byte {
	b := make([]byte, 40)
	b[0], b[3], b[8], b[9] = 0x45, 40, 64, unix.IPPROTO_TCP
	src, dst := s.from.Addr().As4(), s.to.Addr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[10:], sum(b[:20]))
	tcp := b[20:]
	binary.BigEndian.PutUint16(tcp, s.from.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.to.Port())
	tcp[7], tcp[12], tcp[13], tcp[14] = 1, 5<<4, s.flags, 0x20
	binary.BigEndian.PutUint16(tcp[16:], sum(b[12:20], []byte{0, unix.IPPROTO_TCP, 0, 20}, tcp))
	return b
}

// read gives the next TCP segment from a wire within a time, if there is one.
func (w *wires) read(wire int, within time.Duration) (s segment, there bool) {
	w.t.Helper()
	b := make([]byte, 2000)
	for until := time.Now().Add(within); ; {
		left := time.Until(until)
		if left <= 0 {
			return s, false
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fds[wire]), Events: unix.POLLIN}}, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			w.t.Fatal(err)
		}
		n, err := unix.Read(w.fds[wire], b)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		must(w.t, err)
		if n < 40 || b[0] != 0x45 || b[9] != unix.IPPROTO_TCP {
			continue
		}
		at := func(addr, port int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[addr:addr+4])), binary.BigEndian.Uint16(b[port:]))
		}
		return segment{at(12, 20), at(16, 22), b[33]}, true
	}
}

// send puts a SYN onto a wire, from a port of its own.
func (w *wires) send(wire int, from string, to netip.AddrPort) segment {
	w.t.Helper()
	w.port++
	s := segment{netip.AddrPortFrom(netip.MustParseAddr(from), w.port), to, flagSYN}
	_, err := unix.Write(w.fds[wire], s.encode())
	must(w.t, err)
	return s
}

const (
	aPod     = "10.244.1.10"
	anyPod   = "10.244.1.11"
	stranger = "198.51.100.7"
)

func opened(k ipvs.Key, more ...ipvs.Set) (es []ipvs.Element) {
	for _, s := range append([]ipvs.Set{ipvs.SetOwned, ipvs.SetOpen}, more...) {
		es = append(es, ipvs.Element{Set: s, Key: k})
	}
	return es
}

// answer says what becomes of a SYN to this host: a listener answers, it is refused, or there is silence.
func (w *wires) answer(wire int, from string, to netip.AddrPort) string {
	w.t.Helper()
	sent := w.send(wire, from, to)
	for {
		// Half a second is silence: on this host an answer is there before write returns, and the rows with one are the control.
		got, there := w.read(wire, 500*time.Millisecond)
		switch {
		case !there:
			return "dropped"
		case got.to != sent.from:
			continue // to another one of before
		case got.flags&flagRST != 0:
			return "refused"
		case got.flags&(flagSYN|flagACK) == flagSYN|flagACK:
			return "served"
		}
	}
}

// What arrives at the guard from a pod and from outside: let in, refused or dropped, by all that there can be of a frontend
// (rows B13, B15, B16, B20, B21). A listener of this host has the part of IPVS.
func TestGuardMeetsWhatArrives(t *testing.T) {
	n := testNFT(t)
	w := lay(t)
	ownAddress(t, "203.0.113.10")
	vip := func(port uint16) ipvs.Key { return key("203.0.113.10", port) }
	nodePort := func(port uint16) ipvs.Key { return key(wireAddrs[out], port) }
	range_ := ipvs.RangeOf(netip.MustParsePrefix("198.51.100.0/24"))
	es := []ipvs.Element{{Set: ipvs.SetVIPs, Key: ipvs.AddrKey(vip(0).Addr)}, {Set: ipvs.SetOwned, Key: vip(81)}, {Set: ipvs.SetOwned, Key: nodePort(30001)},
		{Set: ipvs.SetRanges, Key: vip(82), From: range_}, {Set: ipvs.SetOwned, Key: vip(85)}, {Set: ipvs.SetDropped, Key: vip(85)},
		{Set: ipvs.SetRedirect, Key: vip(86), To: netip.AddrPortFrom(vip(0).Addr, 80)}}
	for k, more := range map[ipvs.Key][]ipvs.Set{vip(80): nil, vip(82): {ipvs.SetLimited}, vip(83): {ipvs.SetDropped}, vip(84): {ipvs.SetInside},
		vip(86): {ipvs.SetLimited}, nodePort(30000): nil, nodePort(30002): {ipvs.SetInside}} {
		es = append(es, opened(k, more...)...)
	}
	writes(t, n, es)
	for _, addr := range []string{"203.0.113.10", wireAddrs[out]} {
		for _, port := range []uint16{80, 81, 82, 83, 84, 85, 86, 90, 30000, 30001, 30002, 30003} {
			l, err := net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr(addr), port).String())
			must(t, err)
			t.Cleanup(func() { l.Close() })
		}
	}
	for _, row := range []struct {
		to               ipvs.Key
		byPod, byOutside string
	}{
		{vip(80), "served", "served"}, {vip(81), "refused", "refused"}, {vip(90), "refused", "refused"},
		{vip(82), "dropped", "served"}, {vip(83), "dropped", "dropped"}, {vip(84), "served", "dropped"}, {vip(85), "dropped", "dropped"},
		{vip(86), "dropped", "dropped"}, // a pod is sent on to a frontend without ranges, and limited by those of the first
		{nodePort(30000), "served", "served"}, {nodePort(30001), "refused", "refused"}, {nodePort(30002), "served", "dropped"},
		{nodePort(30003), "served", "served"}, // a process of the node
	} {
		to := netip.AddrPortFrom(row.to.Addr, row.to.Port)
		if got := w.answer(pods, anyPod, to); got != row.byPod {
			t.Errorf("a pod asks %s: %s, want %s", to, got, row.byPod)
		}
		if got := w.answer(out, stranger, to); got != row.byOutside {
			t.Errorf("from outside to %s: %s, want %s", to, got, row.byOutside)
		}
	}
}

// As whom a pod behind a frontend is asked (rows B17, B20, B26). Destination NAT after ours has the part of IPVS.
func TestSourcesOfWhatArrives(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs the nft tool (Debian package nftables)")
	}
	n := testNFT(t)
	w := lay(t)
	vip := func(port uint16) ipvs.Key { return key("203.0.113.10", port) }
	nodePort := key(wireAddrs[out], 30000)
	es := []ipvs.Element{{Set: ipvs.SetVIPs, Key: ipvs.AddrKey(vip(0).Addr)}, {Set: ipvs.SetHairpin, Key: ipvs.AddrKey(netip.MustParseAddr(aPod))}}
	for k, more := range map[ipvs.Key][]ipvs.Set{vip(80): nil, vip(81): {ipvs.SetMasqueraded}, vip(82): {ipvs.SetKept}, nodePort: {ipvs.SetMasqueraded},
		key(wireAddrs[out], 30001): {ipvs.SetKept}} {
		es = append(es, opened(k, more...)...)
	}
	writes(t, n, es)
	const otherNodes = "10.244.1.99" // a pod for which no hairpin is
	dnat := exec.Command(nft, fmt.Sprintf(`table ip standin { chain pre { type nat hook prerouting priority -90;
		tcp dport 30001 dnat to %s:8080
		ip daddr { 203.0.113.10, 203.0.113.99, %s } tcp dport { 80-99, 30000 } dnat to %s:8080
	}; }`, otherNodes, wireAddrs[out], aPod))
	if said, err := dnat.CombinedOutput(); err != nil {
		t.Fatalf("the stand-in for IPVS: %v\n%s", err, said)
	}
	const asNode = "10.244.1.1"
	for _, row := range []struct {
		what, to, pod, itself, outside string
	}{
		{"ClusterIP", "203.0.113.10:80", anyPod, asNode, asNode},
		{"an external frontend", "203.0.113.10:81", asNode, asNode, asNode},
		{"externalTrafficPolicy Local", "203.0.113.10:82", anyPod, asNode, stranger},
		{"a node port", wireAddrs[out] + ":30000", asNode, asNode, asNode},
		{"externalTrafficPolicy Local, a node port and a pod of another node", wireAddrs[out] + ":30001", asNode, asNode, asNode},
		{"another program's", "203.0.113.99:80", anyPod, aPod, stranger},
	} {
		for from, want := range map[string]string{anyPod: row.pod, aPod: row.itself, stranger: row.outside} {
			wire := pods
			if from == stranger {
				wire = out
			}
			w.send(wire, from, netip.MustParseAddrPort(row.to))
			got, there := w.read(pods, 10*time.Second)
			if !there || got.from.Addr().String() != want || got.flags != flagSYN {
				t.Errorf("%s, from %s: the pod sees %v (%t), want %s", row.what, from, got, there, want)
			}
		}
	}
}
