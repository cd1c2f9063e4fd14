package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	_ "unsafe" // for a name of moby's

	"github.com/moby/ipvs"
	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func init() {
	// The library tries modprobe and complains where there is none; the module is in the kernel already.
	logrus.SetLevel(logrus.ErrorLevel)
}

// VirtualServer is a virtual server of a node's IPVS table with what is behind it, as a library reads it that
// is not the agent's own. Address, port and protocol are its key, or the mark of the firewall in their place.
type VirtualServer struct {
	Addr        netip.AddrPort
	Protocol    string // "TCP", "UDP" or "SCTP", as of a Port
	Mark        uint32
	Scheduler   string
	Flags       uint32 // of the kernel, without the one that every virtual server in its table has
	Timeout     uint32 // of persistence, in seconds
	Connections uint32 // so far; the kernel adds up every 2 s
	Reals       []RealServer
}

// RealServer is a real server. Active and Inactive are its connections now, Connections those so far.
type RealServer struct {
	Addr             netip.AddrPort
	Weight           int
	Forward          uint32 // the forwarding method, ipvs.ConnFwdMasq or another
	Active, Inactive int
	Connections      uint32
}

// flagHashed is on every virtual server that the kernel can find (IP_VS_SVC_F_HASHED).
const flagHashed = 0x2

func (s VirtualServer) String() string {
	key := fmt.Sprintf("-A %s %s", strings.ToLower(s.Protocol), s.Addr)
	if s.Mark != 0 {
		key = fmt.Sprintf("-A mark %d", s.Mark)
	}
	return fmt.Sprintf("%s -s %s flags %#x timeout %d conns %d", key, s.Scheduler, s.Flags, s.Timeout, s.Connections)
}

func (r RealServer) String() string {
	return fmt.Sprintf("-r %s -w %d forward %#x active %d inactive %d conns %d",
		r.Addr, r.Weight, r.Forward, r.Active, r.Inactive, r.Connections)
}

// VirtualServers reads the node's IPVS table: virtual servers in the order of their keys, real servers in that
// of the kernel, which some schedulers go by. With an error come those that were read before it.
func (n *Node) VirtualServers() (list []VirtualServer, err error) {
	err = n.Do(func() (err error) {
		list, err = virtualServers()
		return err
	})
	if err != nil {
		err = fmt.Errorf("IPVS table of %s: %w", n.Name, err)
	}
	return list, err
}

// DeleteVirtualServer deletes a virtual server for TCP, as another program would, or a naive agent.
func (h *Host) DeleteVirtualServer(at netip.AddrPort) error {
	svc := &ipvs.Service{AddressFamily: unix.AF_INET, Protocol: unix.IPPROTO_TCP, Address: at.Addr().AsSlice(), Port: at.Port()}
	if at.Addr().Is6() {
		svc.AddressFamily = unix.AF_INET6
	}
	err := h.Do(func() error {
		door, err := OpenIPVS()
		if err != nil {
			return err
		}
		defer door.Close()
		return door.DelService(svc)
	})
	if err != nil {
		return fmt.Errorf("delete the virtual server %s of %s: %w", at, h.Name, err)
	}
	return nil
}

// OpenIPVS opens moby's door to IPVS in this thread's namespace. That asks the kernel once in a process for the
// number of the family IPVS and keeps it for good; a test that loads the module anew gives it another number.
func OpenIPVS() (*ipvs.Handle, error) {
	h, err := ipvs.New("")
	if err != nil {
		return nil, err
	}
	family, err := netlink.GenlFamilyGet("IPVS")
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("netlink family IPVS: %w", err)
	}
	mobyMu.Lock()
	defer mobyMu.Unlock()
	if mobyFamily != int(family.ID) {
		mobyFamily = int(family.ID)
	}
	return h, nil
}

//go:linkname mobyFamily github.com/moby/ipvs.ipvsFamily
var mobyFamily int

var mobyMu sync.Mutex

// virtualServers reads the table of this thread's namespace.
func virtualServers() (list []VirtualServer, err error) {
	if _, err := os.Stat("/proc/thread-self/net/ip_vs"); err != nil {
		return nil, fmt.Errorf("no IPVS in this kernel: %w", err)
	}
	h, err := OpenIPVS()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	services, err := h.GetServices()
	if err != nil {
		return nil, fmt.Errorf("virtual servers: %w", err)
	}
	slices.SortFunc(services, compareServices)
	for _, svc := range services {
		s := VirtualServer{Addr: addrPort(svc.Address, svc.Port), Protocol: strings.ToUpper(protocol(svc.Protocol)), Mark: svc.FWMark,
			Scheduler: svc.SchedName, Flags: svc.Flags &^ flagHashed, Timeout: svc.Timeout, Connections: svc.Stats.Connections}
		if s.Mark != 0 {
			s.Protocol = "" // and no address
		}
		dests, err := h.GetDestinations(svc)
		if err != nil {
			return list, fmt.Errorf("real servers of %s: %w", s, err)
		}
		for _, d := range dests {
			s.Reals = append(s.Reals, RealServer{Addr: addrPort(d.Address, d.Port), Weight: d.Weight, Forward: d.ConnectionFlags & ipvs.ConnFwdMask,
				Active: d.ActiveConnections, Inactive: d.InactiveConnections, Connections: d.Stats.Connections})
		}
		list = append(list, s)
	}
	return list, nil
}

func compareServices(a, b *ipvs.Service) int {
	return cmp.Or(cmp.Compare(a.FWMark, b.FWMark), addrPort(a.Address, a.Port).Compare(addrPort(b.Address, b.Port)),
		cmp.Compare(a.Protocol, b.Protocol))
}

// addrPort has no address where there is none: that of a mark.
func addrPort(ip []byte, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

func protocol(p uint16) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	default:
		return fmt.Sprintf("protocol %d", p)
	}
}
