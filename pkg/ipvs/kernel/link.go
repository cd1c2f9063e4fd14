package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkName is the interface that holds the virtual IPs. kube-proxy uses the same, and Calico's Felix looks
// for it when it starts.
const linkName = "kube-ipvs0"

// Binding is how virtual IPs stand on the interface.
type Binding string

const (
	// BindAddress gives the interface the addresses, as kube-proxy does. Their cost grows with their number.
	BindAddress Binding = "address"
	// BindRoute adds local routes instead: 30 times cheaper at 10,000, and the node's own connections carry
	// the node's address.
	BindRoute Binding = "route"
)

// linkDoor keeps the interface and what is bound to it.
type linkDoor struct {
	h       *netlink.Handle // for the interface itself
	sock    *socket
	b       batch
	binding Binding
	index   int // of the interface; 0 while it is not known
	// readOnly: the interface is neither made nor set up.
	readOnly bool
	// unbinding is told of what the kernel will not say that we did it; nil: nobody listens.
	unbinding *expected
	// found, where set, is told where the interface is when it is looked for, and whether it was up.
	found func(index int, up bool)
	// other are the addresses that stood in the form that is not configured when the interface was last read.
	// Nil means that nobody looked.
	other map[netip.Addr]bool
}

func openLink(binding Binding) (*linkDoor, error) {
	switch binding {
	case "":
		binding = BindAddress
	case BindAddress, BindRoute:
	default:
		return nil, fmt.Errorf("binding of virtual IPs is %q, want %q or %q", binding, BindAddress, BindRoute)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	if err := h.SetSocketTimeout(requestTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set the time limit of rtnetlink: %w", err)
	}
	return &linkDoor{h: h, sock: newSocket(unix.NETLINK_ROUTE), binding: binding}, nil
}

func (l *linkDoor) close() {
	l.h.Close()
	l.sock.close()
}

// linkAlias is how the interface is known to be ours when somebody has given it another name.
const linkAlias = "virtual IPs of ipvs-proxy"

// How the interface is made, as a person would type it.
const (
	linkAdd = "ip link add " + linkName + " type dummy"
	linkUp  = "ip link set " + linkName + " up"
	linkTag = "ip link set " + linkName + " alias '" + linkAlias + "'"
)

// ensure makes the interface and sets it up: IPv6 routes need it up.
func (l *linkDoor) ensure(ctx context.Context) (wrote []string, created bool, err error) {
	link, err := l.h.LinkByName(linkName)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		if l.readOnly {
			return []string{linkAdd, linkUp}, true, nil
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = linkName
		if err := withoutStray(ctx, func() error { return l.h.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}) }); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) {
				return nil, false, fmt.Errorf("add interface %s: the kernel has no dummy interfaces: %w", linkName, missingModule("dummy", err))
			}
			return nil, false, fmt.Errorf("add interface %s: %w", linkName, err)
		}
		wrote, created = append(wrote, linkAdd), true
		link, err = l.h.LinkByName(linkName)
	}
	if err != nil {
		return wrote, created, fmt.Errorf("find interface %s: %w", linkName, err)
	}
	if err := isDummy(link); err != nil {
		return wrote, created, err
	}
	tagged, err := l.tag(link)
	if wrote = append(wrote, tagged...); err != nil {
		return wrote, created, err
	}
	created = created || l.index != 0 && l.index != link.Attrs().Index
	if created {
		l.other = map[netip.Addr]bool{}
	}
	l.index = link.Attrs().Index
	up := link.Attrs().Flags&net.FlagUp != 0
	l.tell(l.index, up)
	if !up {
		if !l.readOnly {
			if err := l.h.LinkSetUp(link); err != nil {
				return wrote, created, fmt.Errorf("set interface %s up: %w", linkName, err)
			}
		}
		// When it went down, its IPv6 addresses and routes went for good.
		wrote, created = append(wrote, linkUp), true
	}
	return wrote, created, nil
}

// isDummy says why virtual IPs cannot stand on what has the name of our interface.
func isDummy(link netlink.Link) error {
	if link.Type() == "dummy" {
		return nil
	}
	return fmt.Errorf("interface %[1]s is of type %[2]s, not dummy: somebody else made it, and virtual IPs cannot stand there; "+
		"give it another name, or delete it: ip link delete %[1]s", linkName, link.Type())
}

// InterfaceTrouble says why virtual IPs could not stand on kube-ipvs0; nil: they could, or it is not there yet.
func InterfaceTrouble() error {
	l, err := openLink("")
	if err != nil {
		return err
	}
	defer l.close()
	link, err := l.h.LinkByName(linkName)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
		return nil
	case err != nil:
		return fmt.Errorf("find interface %s: %w", linkName, err)
	}
	return isDummy(link)
}

// tag marks the interface as ours.
func (l *linkDoor) tag(link netlink.Link) (wrote []string, err error) {
	if link.Attrs().Alias == linkAlias {
		return nil, nil
	}
	if !l.readOnly {
		if err := l.h.LinkSetAlias(link, linkAlias); err != nil {
			return nil, fmt.Errorf("set the alias of interface %s: %w", linkName, err)
		}
	}
	return []string{linkTag}, nil
}

// renamed gives the name that an interface of ours has by now; empty: it is none of ours, or gone.
func (l *linkDoor) renamed(index int) (string, error) {
	link, err := l.h.LinkByIndex(index)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("find interface %d: %w", index, err)
	case link.Attrs().Alias != linkAlias || link.Type() != "dummy":
		return "", nil
	}
	return link.Attrs().Name, nil
}

// bindings lists what stands on the interface in either form, and whether it stands in the configured form
// alone.
func (l *linkDoor) bindings(ctx context.Context) (map[netip.Addr]bool, error) {
	found := map[netip.Addr]bool{}
	if l.index == 0 {
		return found, nil
	}
	addrs, err := l.addresses(ctx, l.index)
	if err != nil {
		return nil, err
	}
	routes, err := l.routes(ctx)
	if err != nil {
		return nil, err
	}
	l.other = map[netip.Addr]bool{}
	for _, s := range addrs {
		if !s.addr.IsLinkLocalUnicast() && !s.addr.IsLoopback() { // added by the kernel, and the anchor
			found[s.addr] = l.binding == BindAddress && (s.addr.Is4() || s.deprecated)
			if l.binding == BindRoute {
				l.other[s.addr] = true
			}
		}
	}
	if len(routes) == 0 {
		return found, nil
	}
	v4, v6, err := l.sources(ctx)
	if err != nil {
		return nil, err
	}
	for a, source := range routes {
		_, both := found[a]
		if l.binding == BindAddress {
			l.other[a] = true
		}
		found[a] = l.binding == BindRoute && !both && source == sourceFor(a, v4, v6)
	}
	return found, nil
}

// standing is an address of an interface.
type standing struct {
	addr   netip.Addr
	subnet netip.Prefix // of which it is; of all bits where it is in none
	index  int
	usable bool // packets to it are taken
	global bool // usable as a source anywhere
	// deprecated: no source, as long as there is another one.
	deprecated bool
	first      bool // of its subnet and interface, and not about to go
}

// addresses lists the addresses of an interface, or of all with index 0.
func (l *linkDoor) addresses(ctx context.Context, index int) (found []standing, err error) {
	err = l.dump(ctx, func() {
		found = found[:0]
		l.b.begin(unix.RTM_GETADDR, unix.NLM_F_DUMP, ifaddrmsg(unix.AF_UNSPEC, 0, 0, 0, index))
	}, func(msg []byte) error {
		s, err := parseStanding(msg)
		if err == nil && s.addr.IsValid() && (index == 0 || s.index == index) {
			found = append(found, s)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return found, nil
}

func parseStanding(msg []byte) (s standing, err error) {
	if len(msg) < unix.SizeofIfAddrmsg {
		return s, fmt.Errorf("address of %d bytes: %w", len(msg), unix.EBADMSG)
	}
	flags := uint32(msg[2])
	s.index = int(binary.NativeEndian.Uint32(msg[4:]))
	var local, addr netip.Addr
	err = eachAttr(msg[unix.SizeofIfAddrmsg:], func(typ uint16, v []byte) error {
		switch {
		case typ == unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(v)
		case typ == unix.IFA_ADDRESS: // the peer's, where there is a local one
			addr, _ = netip.AddrFromSlice(v)
		case typ == unix.IFA_FLAGS && len(v) >= 4:
			flags = binary.NativeEndian.Uint32(v)
		}
		return nil
	})
	if s.addr = local; !local.IsValid() {
		s.addr = addr
	}
	if s.subnet = netip.PrefixFrom(addr, int(msg[1])).Masked(); !addr.IsValid() {
		s.subnet = netip.PrefixFrom(local, int(msg[1])).Masked()
	}
	s.first = flags&(unix.IFA_F_SECONDARY|unix.IFA_F_DEPRECATED) == 0
	s.usable = flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0
	s.deprecated = flags&unix.IFA_F_DEPRECATED != 0
	s.global = s.usable && msg[3] == unix.RT_SCOPE_UNIVERSE && !s.deprecated
	return s, err
}

// dump lists something. On an interface that is gone stands nothing.
func (l *linkDoor) dump(ctx context.Context, put func(), f func(msg []byte) error) error {
	err := again(func() error {
		l.b.reset()
		put()
		return l.sock.dump(ctx, &l.b, f)
	})
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// each sends a request an address and returns a reply for each.
func (l *linkDoor) each(ctx context.Context, addrs []netip.Addr, put func(netip.Addr)) []reply {
	out := make([]reply, 0, len(addrs))
	for len(addrs) > 0 {
		l.b.reset()
		n := 0
		for n < len(addrs) && len(l.b.data) < batchBytes {
			put(addrs[n])
			n++
		}
		l.b.acknowledge()
		replies, err := l.sock.exchange(ctx, &l.b)
		if err != nil {
			replies = repeat(reply{err: err}, n)
		}
		out, addrs = append(out, replies...), addrs[n:]
	}
	return out
}

func repeat(r reply, n int) []reply {
	out := make([]reply, n)
	for i := range out {
		out[i] = r
	}
	return out
}

// where gives the places of replies with an errno.
func where(rs []reply, e unix.Errno) (places []int) {
	for i, r := range rs {
		if !r.unknown && r.err == e {
			places = append(places, i)
		}
	}
	return places
}

func at[T any](all []T, places []int) []T {
	out := make([]T, len(places))
	for i, p := range places {
		out[i] = all[p]
	}
	return out
}

func assign[T any](all []T, places []int, with []T) {
	for i, p := range places {
		all[p] = with[i]
	}
}
