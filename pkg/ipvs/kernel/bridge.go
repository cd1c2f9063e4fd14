package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// bridgeFamily is what decides whether a bridge hands the packets of an IP family to netfilter.
type bridgeFamily struct {
	name   string // of the family
	sysctl string // for all bridges
	attr   uint16 // a bridge's own
}

var bridgeFamilies = []bridgeFamily{
	{"IPv4", "net/bridge/bridge-nf-call-iptables", unix.IFLA_BR_NF_CALL_IPTABLES},
	{"IPv6", "net/bridge/bridge-nf-call-ip6tables", unix.IFLA_BR_NF_CALL_IP6TABLES},
}

// BridgeTrouble names the bridges with pods on them that keep packets between their ports from netfilter, once for both
// families where it is the same. A connection from one of those pods through a Service to another one hangs: the reply
// takes the short way through the bridge, IPVS does not see it, and the client gets it from an address that it
// never asked. Where all is right this reads two files.
func BridgeTrouble(ctx context.Context) ([]error, error) { return bridgeTrouble(ctx, sysctlRoot) }

func bridgeTrouble(ctx context.Context, root string) (found []error, err error) {
	off, err := bridgeSwitches(root)
	if err != nil || len(off.families) == 0 {
		return nil, err
	}
	bridges, err := podBridges(ctx)
	if err != nil {
		return nil, fmt.Errorf("list bridges: %w", err)
	}
	for len(off.families) > 0 {
		names := off.families[0].keptBy(bridges)
		same := bridgesOff{missing: off.missing}
		off.families = slices.DeleteFunc(slices.Clone(off.families), func(f bridgeFamily) bool {
			is := slices.Equal(f.keptBy(bridges), names)
			if is {
				same.families = append(same.families, f)
			}
			return is
		})
		if len(names) > 0 {
			found = append(found, fmt.Errorf("%w, and pods stand on bridge %s: %s connections between two pods of this node through a Service hang; %s",
				same.state(), strings.Join(names, ", "), same.names(), same.do()))
		}
	}
	return found, nil
}

// ErrNoBridgeNetfilter: bridges cannot hand packets to netfilter. The kernel never loads the module by itself.
var ErrNoBridgeNetfilter = errors.New("br_netfilter is not loaded")

// BridgeNetfilter is nil where bridges that come hand their packets to netfilter. Otherwise it says what is missing
// (ErrNoBridgeNetfilter, or a sysctl that is 0), what follows, and what to do.
func BridgeNetfilter() error { return bridgeNetfilter(sysctlRoot) }

func bridgeNetfilter(root string) error {
	off, err := bridgeSwitches(root)
	if err != nil || len(off.families) == 0 {
		return err
	}
	return fmt.Errorf("%w: once pods stand on a bridge, %s connections between two pods of this node through a Service hang; %s",
		off.state(), off.names(), off.do())
}

// bridgesOff are the families whose packets bridges keep from netfilter, but for those with a switch of their own.
type bridgesOff struct {
	families []bridgeFamily
	missing  bool // the module is
}

// bridgeSwitches reads the switches that are for all bridges. A family that is switched off on the node needs none.
func bridgeSwitches(root string) (off bridgesOff, err error) {
	for _, f := range bridgeFamilies {
		b, err := os.ReadFile(root + f.sysctl)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			off.missing = true
		case err != nil:
			return off, fmt.Errorf("sysctl %s: %w", f.sysctl, err)
		case strings.TrimSpace(string(b)) != "0":
			continue
		}
		if _, err := os.Stat(root + "net/ipv6"); f.name == "IPv6" && errors.Is(err, fs.ErrNotExist) {
			continue // IPv6 is switched off
		}
		off.families = append(off.families, f)
	}
	return off, nil
}

// each joins what is said of each family.
func (o bridgesOff) each(sep string, say func(bridgeFamily) string) string {
	var words []string
	for _, f := range o.families {
		words = append(words, say(f))
	}
	return strings.Join(words, sep)
}

func (o bridgesOff) names() string {
	return o.each(" and ", func(f bridgeFamily) string { return f.name })
}

func (o bridgesOff) state() error {
	if o.missing {
		return ErrNoBridgeNetfilter
	}
	return errors.New(o.each(" and ", func(f bridgeFamily) string { return f.sysctl + " is 0" }))
}

func (o bridgesOff) do() string {
	if o.missing {
		return "modprobe br_netfilter, and a line in /etc/modules-load.d for good"
	}
	return o.each(" and ", func(f bridgeFamily) string { return "sysctl -w " + f.sysctl + "=1" }) + ", and a line in /etc/sysctl.d for good"
}

// keptBy names the bridges that keep the family's packets.
func (f bridgeFamily) keptBy(bridges []bridge) (names []string) {
	for _, br := range bridges {
		if !br.calls[f.attr] {
			names = append(names, br.name)
		}
	}
	return names
}

// bridge is one with a port that may be a pod's.
type bridge struct {
	name  string
	calls map[uint16]bool // by attribute: it hands its packets to netfilter whatever the sysctl says
}

// podBridges lists the bridges that have a veth as a port.
func podBridges(ctx context.Context) (found []bridge, err error) {
	masters := map[uint32]bool{}
	if err := eachLink(ctx, "veth", func(l linkMessage) { masters[l.master] = true }); err != nil {
		return nil, err
	}
	err = eachLink(ctx, "bridge", func(l linkMessage) {
		if masters[l.index] {
			found = append(found, bridge{l.name, l.calls})
		}
	})
	slices.SortFunc(found, func(a, b bridge) int { return strings.Compare(a.name, b.name) })
	return found, err
}

// linkMessage is what bridges and their ports are told by.
type linkMessage struct {
	index, master uint32
	name, kind    string
	up            bool
	calls         map[uint16]bool
}

// withoutStatistics is RTEXT_FILTER_SKIP_STATS of include/uapi/linux/rtnetlink.h.
const withoutStatistics = 1 << 3

// eachLink calls f for each interface of a kind.
func eachLink(ctx context.Context, kind string, f func(linkMessage)) error {
	all, err := linksAround(ctx, kind)
	for _, l := range all {
		if l.kind == kind {
			f(l)
		}
	}
	return err
}

// linksAround lists the interfaces of a kind. The kernel sends those alone, but all where the kind's module is not loaded.
func linksAround(ctx context.Context, kind string) (all []linkMessage, err error) {
	err = again(func() error {
		s := newSocket(unix.NETLINK_ROUTE)
		defer s.close()
		var b batch
		b.begin(unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg))
		b.attrU32(unix.IFLA_EXT_MASK, withoutStatistics)
		b.nest(unix.IFLA_LINKINFO, func() { b.attrString(unix.IFLA_INFO_KIND, kind) })
		all = all[:0]
		return s.dump(ctx, &b, func(msg []byte) error {
			l, err := parseLink(msg)
			all = append(all, l)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list interfaces of kind %s: %w", kind, err)
	}
	return all, nil
}

func parseLink(msg []byte) (l linkMessage, err error) {
	if len(msg) < unix.SizeofIfInfomsg {
		return l, fmt.Errorf("interface of %d bytes: %w", len(msg), unix.EBADMSG)
	}
	l.index = binary.NativeEndian.Uint32(msg[4:])
	l.up = binary.NativeEndian.Uint32(msg[8:])&unix.IFF_UP != 0
	err = eachAttr(msg[unix.SizeofIfInfomsg:], func(typ uint16, v []byte) error {
		switch {
		case typ == unix.IFLA_IFNAME:
			l.name = cString(v)
		case typ == unix.IFLA_MASTER && len(v) >= 4:
			l.master = binary.NativeEndian.Uint32(v)
		case typ == unix.IFLA_LINKINFO:
			return eachAttr(v, l.parseInfo)
		}
		return nil
	})
	return l, err
}

func (l *linkMessage) parseInfo(typ uint16, v []byte) error {
	switch {
	case typ == unix.IFLA_INFO_KIND:
		l.kind = cString(v)
	case typ == unix.IFLA_INFO_DATA && l.kind == "bridge": // the kind comes first
		l.calls = map[uint16]bool{}
		return eachAttr(v, func(typ uint16, v []byte) error {
			l.calls[typ] = len(v) > 0 && v[0] != 0
			return nil
		})
	}
	return nil
}
