package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// linkName is the interface that holds the virtual IPs. kube-proxy uses the same, and Calico's Felix looks
// for it when it starts.
const linkName = "kube-ipvs0"

// linkDoor keeps the interface and its addresses.
type linkDoor struct {
	h     *netlink.Handle
	index int // of the interface; 0 while it is not known
}

func openLink() (*linkDoor, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	if err := h.SetSocketTimeout(requestTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set the time limit of rtnetlink: %w", err)
	}
	return &linkDoor{h: h}, nil
}

func (l *linkDoor) close() { l.h.Close() }

// ensure makes the interface and sets it up: IPv6 routes need it up.
func (l *linkDoor) ensure() (wrote []string, created bool, err error) {
	link, err := l.h.LinkByName(linkName)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = linkName
		if err := l.h.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) {
				return nil, false, fmt.Errorf("add interface %s: the kernel has no dummy interfaces: %w", linkName, missingModule("dummy", err))
			}
			return nil, false, fmt.Errorf("add interface %s: %w", linkName, err)
		}
		wrote, created = append(wrote, "ip link add "+linkName+" type dummy"), true
		link, err = l.h.LinkByName(linkName)
	}
	if err != nil {
		return wrote, created, fmt.Errorf("find interface %s: %w", linkName, err)
	}
	if link.Type() != "dummy" {
		return wrote, created, fmt.Errorf("interface %s is of type %s, not dummy: it belongs to somebody else", linkName, link.Type())
	}
	created = created || l.index != 0 && l.index != link.Attrs().Index
	l.index = link.Attrs().Index
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := l.h.LinkSetUp(link); err != nil {
			return wrote, created, fmt.Errorf("set interface %s up: %w", linkName, err)
		}
		wrote = append(wrote, "ip link set "+linkName+" up")
	}
	return wrote, created, nil
}

// onLink is what the netlink library takes for "this interface".
func (l *linkDoor) onLink() netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index = linkName, l.index
	return &netlink.Dummy{LinkAttrs: attrs}
}

func hostAddr(a netip.Addr) *netlink.Addr {
	n := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
	if a.Is6() {
		n.Flags = unix.IFA_F_NODAD // usable at once; nobody else may have it
	}
	return n
}

// write binds or unbinds an address.
func (l *linkDoor) write(op ipvs.Op) ipvs.Outcome {
	var err error
	switch o := op.(type) {
	case ipvs.Bind:
		err = l.h.AddrAdd(l.onLink(), hostAddr(o.Addr))
	case ipvs.Unbind:
		err = l.h.AddrDel(l.onLink(), hostAddr(o.Addr))
	default:
		panic(fmt.Sprintf("no operation on addresses: %T", op))
	}
	if err != nil {
		return ipvs.Outcome{Err: fmt.Errorf("%s: %w", op, err), Unknown: isTimeout(err)}
	}
	return ipvs.Outcome{}
}

// isTimeout: the library's socket gave up waiting, so the write may have happened.
func isTimeout(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS)
}

// addresses lists what stands on the interface, without the link-local ones that the kernel adds itself.
func (l *linkDoor) addresses() (map[netip.Addr]bool, error) {
	list, err := l.h.AddrList(l.onLink(), netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", linkName, err)
	}
	found := make(map[netip.Addr]bool, len(list))
	for _, n := range list {
		if a, ok := netip.AddrFromSlice(n.IP); ok && !a.Unmap().IsLinkLocalUnicast() {
			found[a.Unmap()] = true
		}
	}
	return found, nil
}
