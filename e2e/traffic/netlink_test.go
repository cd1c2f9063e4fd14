package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// tap sees every netlink message of a node, whoever sends it: the agent is counted from outside.
type tap struct {
	t    testing.TB
	fd   int
	ipvs uint16 // the number of IPVS's generic netlink family
	done chan struct{}

	mu     sync.Mutex
	writes []string
	last   time.Time // when the last write was seen
	err    error
}

// tapWrites begins to count the writes to a node's kernel.
func tapWrites(t testing.TB, n *lab.Node) *tap {
	t.Helper()
	p := &tap{t: t, done: make(chan struct{})}
	err := n.Do(func() error {
		monitor, err := addMonitor(n)
		if err != nil {
			return err
		}
		family, err := netlink.GenlFamilyGet("IPVS")
		if err != nil {
			return fmt.Errorf("find IPVS's netlink family: %w", err)
		}
		p.ipvs = family.ID
		p.fd, err = openTap(monitor.Attrs().Index)
		return err
	})
	if err != nil {
		t.Fatalf("watching the netlink of %s: %v", n.Name, err)
	}
	go p.read()
	t.Cleanup(func() { close(p.done) })
	return p
}

// addMonitor makes the device on which the kernel shows a namespace's netlink messages.
func addMonitor(n *lab.Node) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "nlmon0"
	if err := n.Netlink().LinkAdd(&netlink.GenericLink{LinkAttrs: attrs, LinkType: "nlmon"}); err != nil {
		return nil, fmt.Errorf("add a device of kind nlmon (is the module there?): %w", err)
	}
	link, err := n.Netlink().LinkByName(attrs.Name)
	if err != nil {
		return nil, err
	}
	return link, n.Netlink().LinkSetUp(link)
}

func openTap(device int) (fd int, err error) {
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8 // in network order
	// Without a protocol until it is bound: else it would hear all devices meanwhile.
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 128<<20), // a start comes in bursts
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: device}))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// read files the writes until the tap is closed.
func (p *tap) read() {
	defer unix.Close(p.fd)
	buf := make([]byte, 1<<20)
	for {
		select {
		case <-p.done:
			return
		default:
		}
		n, from, err := unix.Recvfrom(p.fd, buf, unix.MSG_TRUNC)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		switch {
		case err != nil:
			p.fail(err)
			return
		case !ok || n > len(buf):
			p.fail(fmt.Errorf("a datagram of %d bytes from %T", n, from))
			continue
		}
		p.datagram(int(ll.Protocol>>8|ll.Protocol<<8), buf[:n])
	}
}

func (p *tap) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = errors.Join(p.err, err)
}

// nlmsgHeader is the size of a netlink message's header.
const nlmsgHeader = 16

// datagram takes one datagram apart. What the kernel says itself, answers and news, is no request.
func (p *tap) datagram(protocol int, data []byte) {
	for len(data) >= nlmsgHeader {
		size := int(binary.NativeEndian.Uint32(data))
		typ, flags := binary.NativeEndian.Uint16(data[4:]), binary.NativeEndian.Uint16(data[6:])
		if size < nlmsgHeader || size > len(data) {
			p.fail(fmt.Errorf("netlink protocol %d: a message of %d bytes in %d", protocol, size, len(data)))
			return
		}
		if flags&unix.NLM_F_REQUEST != 0 {
			p.file(writesOf(protocol, typ, p.ipvs, data[nlmsgHeader:size]))
		}
		data = data[min((size+3)&^3, len(data)):]
	}
}

func (p *tap) file(writes []string) {
	if len(writes) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writes = append(p.writes, writes...)
	p.last = time.Now()
}

// quiet is how long nothing more must have come after the last write that was expected.
const quiet = 500 * time.Millisecond

// take gives the writes since the last call, once as many as expected are there and no other has come for a
// while; where none is expected, after the whole time.
func (p *tap) take(within time.Duration, expected int) []string {
	p.t.Helper()
	if expected == 0 {
		time.Sleep(within)
	} else if err := lab.Until(within, func() error { return p.has(expected) }); err != nil {
		p.t.Log(err) // what was seen until then says the rest
	}
	p.mu.Lock()
	writes, err := p.writes, p.err
	p.writes = nil
	p.mu.Unlock()
	if err != nil {
		p.t.Fatalf("counting writes: %v", err)
	}
	// A kernel that had no room to show all must not pass for an agent that wrote little.
	stats, err := unix.GetsockoptTpacketStats(p.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil || stats.Drops > 0 {
		p.t.Fatalf("counting writes: %d datagrams were lost (%v)", stats.Drops, err)
	}
	return writes
}

// has says what is amiss until so many writes were seen, and then none for a while.
func (p *tap) has(expected int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if since := time.Since(p.last); len(p.writes) < expected || since < quiet {
		return fmt.Errorf("%d writes of %d, the last %s ago", len(p.writes), expected, since)
	}
	return nil
}

// writesOf names what a request writes; nothing for one that only reads. What is not known to read writes.
func writesOf(protocol int, typ, ipvs uint16, body []byte) []string {
	switch {
	case typ < unix.NLMSG_MIN_TYPE: // NOOP, ERROR, DONE
		return nil
	case protocol == unix.NETLINK_ROUTE:
		return routeWrite(typ)
	case protocol == unix.NETLINK_NETFILTER:
		return netfilterWrites(typ, body)
	case protocol == unix.NETLINK_GENERIC && typ == ipvs && len(body) > 0:
		return named(ipvsCommands, int(body[0]), "IPVS command")
	case protocol == unix.NETLINK_GENERIC && typ == unix.GENL_ID_CTRL && len(body) > 0 && body[0] == unix.CTRL_CMD_GETFAMILY:
		return nil
	case protocol == unix.NETLINK_SOCK_DIAG && typ == unix.SOCK_DIAG_BY_FAMILY:
		return nil
	}
	return []string{fmt.Sprintf("netlink protocol %d type %d", protocol, typ)}
}

// ipvsCommands by number (IPVS_CMD_*); those that read have no name.
var ipvsCommands = map[int]string{1: "NEW_SERVICE", 2: "SET_SERVICE", 3: "DEL_SERVICE", 4: "", 5: "NEW_DEST", 6: "SET_DEST", 7: "DEL_DEST",
	8: "", 9: "NEW_DAEMON", 10: "DEL_DAEMON", 11: "", 12: "SET_CONFIG", 13: "", 14: "SET_INFO", 15: "", 16: "ZERO", 17: "FLUSH"}

func named(names map[int]string, n int, kind string) []string {
	name, known := names[n]
	switch {
	case !known:
		return []string{fmt.Sprintf("%s %d", kind, n)}
	case name == "":
		return nil
	}
	return []string{name}
}

// routeWrite: rtnetlink's types come in fours, the third of which reads (RTM_NEW, RTM_DEL, RTM_GET, RTM_SET).
func routeWrite(typ uint16) []string {
	verb := []string{"NEW", "DEL", "", "SET"}[(typ-unix.RTM_BASE)%4]
	if verb == "" {
		return nil
	}
	objects := map[uint16]string{unix.RTM_NEWLINK: "LINK", unix.RTM_NEWADDR: "ADDR", unix.RTM_NEWROUTE: "ROUTE", unix.RTM_NEWNEIGH: "NEIGH",
		unix.RTM_NEWRULE: "RULE"}
	object, known := objects[typ-(typ-unix.RTM_BASE)%4]
	if !known {
		object = fmt.Sprintf(" rtnetlink type %d", typ)
	}
	return []string{verb + object}
}

// ipsetReads are the messages that ask: protocol, list, save, test, header, type, and the two of an index (uapi
// ipset/ip_set.h). What another proxy left there is looked for.
var ipsetReads = map[int]bool{1: true, 7: true, 8: true, 11: true, 12: true, 13: true, 14: true, 15: true}

// netfilterWrites: the upper byte is the subsystem. A batch of nftables begins and ends with messages of none.
func netfilterWrites(typ uint16, body []byte) []string {
	const headerOfNetfilter = 4
	subsystem, n := typ>>8, int(typ&0xff)
	switch {
	case typ == unix.NFNL_MSG_BATCH_BEGIN || typ == unix.NFNL_MSG_BATCH_END:
		return nil
	case subsystem == unix.NFNL_SUBSYS_NFTABLES && len(body) >= headerOfNetfilter:
		if ofTrial(body[headerOfNetfilter:]) {
			return nil
		}
		writes := named(nftMessages, n, "nftables message")
		if len(writes) == 1 && strings.HasSuffix(writes[0], "SETELEM") {
			return elementWrites(writes[0], body[headerOfNetfilter:])
		}
		return writes
	case subsystem == unix.NFNL_SUBSYS_CTNETLINK:
		return named(map[int]string{0: "ct NEW", 1: "", 2: "ct DELETE", 4: "", 5: "", 6: "", 7: ""}, n, "ctnetlink message")
	case subsystem == unix.NFNL_SUBSYS_IPSET:
		if ipsetReads[n] {
			return nil
		}
	}
	return []string{fmt.Sprintf("netfilter subsystem %d message %d", subsystem, n)}
}

// ofTrial: the message is of a table that is only tried, in a batch without an end, to see what the kernel can do. The table
// is the first attribute of each kind of message.
func ofTrial(attributes []byte) (is bool) {
	eachAttribute(attributes, func(typ uint16, value []byte) {
		is = is || typ == unix.NFTA_TABLE_NAME && strings.TrimRight(string(value), "\x00") == "ipvs-proxy-try"
	})
	return is
}

// nftMessages by number (NFT_MSG_*); those that read have no name.
var nftMessages = map[int]string{0: "NEWTABLE", 1: "", 2: "DELTABLE", 3: "NEWCHAIN", 4: "", 5: "DELCHAIN", 6: "NEWRULE", 7: "", 8: "DELRULE",
	9: "NEWSET", 10: "", 11: "DELSET", 12: "NEWSETELEM", 13: "", 14: "DELSETELEM", 16: "", 19: "", 21: "", 23: ""}

// elementWrites: one message may hold many elements of a set; each counts.
func elementWrites(verb string, attributes []byte) (writes []string) {
	set, elements := "", 0
	eachAttribute(attributes, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_SET_ELEM_LIST_SET:
			set = strings.TrimRight(string(value), "\x00")
		case unix.NFTA_SET_ELEM_LIST_ELEMENTS:
			eachAttribute(value, func(uint16, []byte) { elements++ })
		}
	})
	if elements == 0 {
		return []string{verb + " " + set + " without elements"} // a flush
	}
	return slices.Repeat([]string{verb + " " + set}, elements)
}

// eachAttribute goes through attributes; the two upper bits of a type are flags.
func eachAttribute(data []byte, f func(typ uint16, value []byte)) {
	for len(data) >= 4 {
		size := int(binary.NativeEndian.Uint16(data))
		if size < 4 || size > len(data) {
			return
		}
		f(binary.NativeEndian.Uint16(data[2:])&0x3fff, data[4:size])
		data = data[min((size+3)&^3, len(data)):]
	}
}
