package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A goroutine that entered a namespace for good ends with its thread locked, and the runtime then ends the
// thread and with it the hold on the namespace. The process's first thread alone cannot end: it would wait in
// that namespace for ever. So the main goroutine keeps it, and no other runs on it.
func init() { runtime.LockOSThread() }

// Host is a network namespace: a node, a pod, the client or the wire.
type Host struct {
	Name   string
	V4, V6 netip.Addr

	mu      sync.RWMutex
	ns      netns.NsHandle // closed: netns.None()
	nl      *netlink.Handle
	closers map[*closer]struct{}

	asked atomic.Uint32 // how many ports were taken to ask from
}

// closer is something that must end before the namespace is let go.
type closer struct{ f func() }

// newHost makes an empty namespace with lo up.
func newHost(name string) (*Host, error) {
	h := &Host{Name: name, ns: netns.None(), closers: map[*closer]struct{}{}}
	if err := h.unshare(); err != nil {
		return nil, fmt.Errorf("new network namespace for %s: %w", name, err)
	}
	nl, err := netlink.NewHandleAt(h.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("netlink socket in %s: %w", name, err), h.close())
	}
	h.nl = nl
	if err := h.prepare(); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// prepare does what every namespace needs before its first link: addresses
// usable at once (no duplicate address detection), no router advertisements,
// and lo, without which the kernel takes its own addresses for foreign.
func (h *Host) prepare() error {
	for _, key := range []string{"all", "default"} {
		// Redirects: a node that forwards what no Service takes would tell the client of a better way, and
		// the client would not come back when a Service does.
		for _, s := range []string{"ipv6/conf/" + key + "/accept_dad", "ipv6/conf/" + key + "/accept_ra",
			"ipv6/conf/" + key + "/accept_redirects", "ipv4/conf/" + key + "/accept_redirects"} {
			if err := h.sysctl("net/"+s, "0"); err != nil {
				return err
			}
		}
	}
	lo, err := h.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo of %s: %w", h.Name, err)
	}
	if err := h.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo of %s up: %w", h.Name, err)
	}
	return nil
}

// unshare gives h a new namespace and this thread its old one back.
func (h *Host) unshare() error {
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("this thread's namespace: %w", err)
	}
	defer old.Close()
	ns, err := netns.New()
	if err != nil {
		// A failed unshare leaves the thread where it was; a failed open of
		// the new namespace does not, so go back in any case.
		err = fmt.Errorf("unshare: %w", err)
	}
	if backErr := netns.Set(old); backErr != nil {
		// The thread stays locked: it must not serve other goroutines.
		return errors.Join(err, fmt.Errorf("back to the thread's namespace: %w", backErr))
	}
	runtime.UnlockOSThread()
	if err != nil {
		return err
	}
	h.ns = ns
	return nil
}

// Do runs f on this goroutine with its thread inside the namespace. Sockets
// that f opens stay in the namespace, processes that it starts live in it, and
// /proc/sys/net is that of the namespace. Goroutines that f starts are outside.
func (h *Host) Do(f func() error) (err error) {
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering %s: this thread's namespace: %w", h.Name, err)
	}
	if err := h.enter(); err != nil {
		old.Close()
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		backErr := netns.Set(old)
		old.Close()
		if backErr != nil {
			// The thread stays locked to this goroutine and dies with it:
			// unlocked, it would run anything else in the wrong namespace.
			err = errors.Join(err, fmt.Errorf("leaving %s: %w", h.Name, backErr))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// enter moves the locked thread into the namespace for good.
func (h *Host) enter() error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if !h.ns.IsOpen() {
		return fmt.Errorf("entering %s: %w", h.Name, errGone)
	}
	if err := netns.Set(h.ns); err != nil {
		return fmt.Errorf("entering %s: %w", h.Name, err)
	}
	return nil
}

var errGone = errors.New("the namespace is gone: its pod was removed or its world closed")

// alive tells whether the host can still be worked on.
func (h *Host) alive() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.nl != nil && h.ns.IsOpen()
}

// Addr is the address of a family, 4 or 6.
func (h *Host) Addr(family int) netip.Addr {
	if family == 6 {
		return h.V6
	}
	return h.V4
}

// onClose has f run before the namespace is let go; the returned function
// takes that back.
func (h *Host) onClose(f func()) (forget func()) {
	c := &closer{f}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closers[c] = struct{}{}
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.closers, c)
	}
}

// closeSockets ends servers and loads, as the end of their processes would.
func (h *Host) closeSockets() {
	h.mu.Lock()
	closers := h.closers
	h.closers = map[*closer]struct{}{}
	h.mu.Unlock()
	for c := range closers {
		c.f()
	}
}

func (h *Host) close() error {
	h.closeSockets()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nl != nil {
		h.nl.Close()
		h.nl = nil
	}
	if !h.ns.IsOpen() {
		return nil
	}
	if err := h.ns.Close(); err != nil {
		return fmt.Errorf("closing the namespace of %s: %w", h.Name, err)
	}
	return nil
}

// sysctl writes one setting, named as under /proc/sys.
func (h *Host) sysctl(key, value string) error {
	return h.Do(func() error {
		// The mode is that of an existing file; O_CREATE would only change
		// the message about one that is missing.
		f, err := os.OpenFile("/proc/sys/"+key, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("sysctl %s=%s in %s: %w", key, value, h.Name, err)
		}
		defer f.Close()
		if _, err := f.WriteString(value); err != nil {
			return fmt.Errorf("sysctl %s=%s in %s: %w", key, value, h.Name, err)
		}
		return nil
	})
}

// Sysctl writes one setting of the namespace, named as under /proc/sys
// ("net/ipv4/vs/conntrack").
func (h *Host) Sysctl(key, value string) error { return h.sysctl(key, value) }

// ReadSysctl reads one setting of the namespace.
func (h *Host) ReadSysctl(key string) (string, error) {
	var value string
	err := h.Do(func() error {
		b, err := os.ReadFile("/proc/sys/" + key)
		value = strings.TrimSpace(string(b))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("reading sysctl %s in %s: %w", key, h.Name, err)
	}
	return value, nil
}

// Netlink is a handle whose requests go to the namespace; it is closed with
// the host.
func (h *Host) Netlink() *netlink.Handle { return h.nl }

// addAddr gives an interface of the namespace an address.
func (h *Host) addAddr(link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.nl.AddrAdd(link, a); err != nil {
		return fmt.Errorf("address %s on %s of %s: %w", p, link.Attrs().Name, h.Name, err)
	}
	return nil
}

// addRoute adds a route via a gateway.
func (h *Host) addRoute(link netlink.Link, dst netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst), Gw: via.AsSlice()}
	if err := h.nl.RouteAdd(r); err != nil {
		return fmt.Errorf("route %s via %s in %s: %w", dst, via, h.Name, err)
	}
	return nil
}

// up finds an interface of the namespace and sets it up.
func (h *Host) up(name string) (netlink.Link, error) {
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s of %s: %w", name, h.Name, err)
	}
	if err := h.nl.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("interface %s of %s up: %w", name, h.Name, err)
	}
	return link, nil
}

// addBridge makes a bridge that is up. Its hardware address is fixed: else it
// follows the ports, and neighbours would keep a stale one when pods come and
// go.
func (h *Host) addBridge(name string, mac net.HardwareAddr) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	if err := h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, fmt.Errorf("bridge %s in %s: %w", name, h.Name, err)
	}
	return h.up(name)
}

// plug connects peer's new eth0 to a new port of a bridge of h.
func (h *Host) plug(bridge netlink.Link, port string, peer *Host, hw net.HardwareAddr) (eth0, end netlink.Link, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = port, bridge.Attrs().Index
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace, veth.PeerHardwareAddr = "eth0", netlink.NsFd(peer.ns), hw
	if err := h.nl.LinkAdd(veth); err != nil {
		return nil, nil, fmt.Errorf("link %s of %s to %s: %w", port, h.Name, peer.Name, err)
	}
	if end, err = h.up(port); err != nil {
		return nil, nil, err
	}
	if eth0, err = peer.up("eth0"); err != nil {
		return nil, nil, err
	}
	return eth0, end, nil
}

// unplug removes a link, if there is one.
func (h *Host) unplug(port string) error {
	link, err := h.nl.LinkByName(port)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = h.nl.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("removing %s of %s: %w", port, h.Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
