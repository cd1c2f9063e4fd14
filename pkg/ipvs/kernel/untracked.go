package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Untracked is a rule of somebody's that keeps packets to an address out of connection tracking.
type Untracked struct {
	Addr  netip.Addr
	Chain string // family, table and name
}

// UntrackedVIPs lists the rules that keep packets to a virtual IP out of connection tracking, once for each chain and address:
// to one that stands on our interface, that our table records, or that more names. IPVS then takes the packets, and nobody
// masquerades or follows them.
func UntrackedVIPs(ctx context.Context, more []netip.Addr) (found []Untracked, err error) {
	n, err := newNFT(Config{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer n.close()
	all, err := n.untracked(ctx)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	vips := map[netip.Addr]bool{}
	for _, a := range more {
		vips[a] = true
	}
	if stands, err := tableStands(n); err != nil {
		return nil, err
	} else if stands {
		if err := n.all(ctx, ipvs.SetVIPs, func(e ipvs.Element) { vips[e.Key.Addr] = true }); err != nil {
			return nil, err
		}
	}
	on, err := LinkAddrs(ctx, linkName)
	if err != nil {
		return nil, err
	}
	for _, a := range on {
		vips[a] = true
	}
	return slices.DeleteFunc(all, func(u Untracked) bool { return !vips[u.Addr] }), nil
}

// LinkAddrs lists the addresses of an interface, without those that are for its link alone; none where it is not there.
func LinkAddrs(ctx context.Context, name string) (addrs []netip.Addr, err error) {
	l, err := openLink("")
	if err != nil {
		return nil, err
	}
	defer l.close()
	link, err := l.h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	stands, err := l.addresses(ctx, link.Attrs().Index)
	for _, s := range stands {
		if !s.addr.IsLinkLocalUnicast() {
			addrs = append(addrs, s.addr)
		}
	}
	return addrs, err
}

// untracked lists all such rules that name one destination.
func (n *nftDoor) untracked(ctx context.Context) (found []Untracked, err error) {
	err = again(func() error {
		found = found[:0]
		n.b.reset()
		n.b.begin(nftType(unix.NFT_MSG_GETRULE), unix.NLM_F_DUMP, nfgen(unix.NFPROTO_UNSPEC, 0))
		return n.sock.dump(ctx, &n.b, func(msg []byte) error {
			u, is, err := parseUntracked(msg)
			if err == nil && is && !slices.Contains(found, u) {
				found = append(found, u)
			}
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list nftables rules: %w", err)
	}
	return found, nil
}

// parseUntracked reads a rule as far as it matters here.
func parseUntracked(msg []byte) (u Untracked, is bool, err error) {
	if len(msg) < nfgenLen {
		return u, false, nil
	}
	r := rulePieces{family: msg[0]}
	p := place{family: msg[0]}
	err = eachAttr(msg[nfgenLen:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.NFTA_RULE_TABLE:
			p.table = cString(v)
		case unix.NFTA_RULE_CHAIN:
			p.chain = cString(v)
		case unix.NFTA_RULE_EXPRESSIONS:
			return eachAttr(v, func(_ uint16, expression []byte) error { return r.read(expression) })
		}
		return nil
	})
	u.Addr, u.Chain = r.destination, p.in()+" "+p.chain
	return u, err == nil && r.notrack && u.Addr.IsValid() && p.table != tableName, err
}

// rulePieces is what a rule says of where packets go and whether they are tracked.
type rulePieces struct {
	family      byte
	loaded      bool // the destination is in a register
	destination netip.Addr
	notrack     bool
}

func (r *rulePieces) read(expression []byte) error {
	var name string
	var data []byte
	if err := eachAttr(expression, func(typ uint16, v []byte) error {
		switch typ {
		case unix.NFTA_EXPR_NAME:
			name = cString(v)
		case unix.NFTA_EXPR_DATA:
			data = v
		}
		return nil
	}); err != nil {
		return err
	}
	fields := map[uint16][]byte{}
	if err := eachAttr(data, func(typ uint16, v []byte) error { fields[typ] = v; return nil }); err != nil {
		return err
	}
	switch name {
	case "payload":
		r.loaded = r.isDestination(word(fields[unix.NFTA_PAYLOAD_BASE]), word(fields[unix.NFTA_PAYLOAD_OFFSET]), word(fields[unix.NFTA_PAYLOAD_LEN]))
	case "bitwise": // a range, and not one address
		r.loaded = false
	case "cmp":
		r.compare(word(fields[unix.NFTA_CMP_OP]), fields[unix.NFTA_CMP_DATA])
	case "notrack":
		r.notrack = true
	case "target": // of iptables
		target, info := cString(fields[unix.NFTA_TARGET_NAME]), fields[unix.NFTA_TARGET_INFO]
		r.notrack = r.notrack || target == "NOTRACK" || target == "CT" && len(info) >= 2 && binary.NativeEndian.Uint16(info)&ctNoTrack != 0
	}
	return nil
}

// ctNoTrack is XT_CT_NOTRACK of include/uapi/linux/netfilter/xt_CT.h.
const ctNoTrack = 1

// word is a number of an attribute; one that is missing is none of those that are asked for.
func word(v []byte) uint32 {
	if len(v) < 4 {
		return ^uint32(0)
	}
	return binary.BigEndian.Uint32(v)
}

func (r *rulePieces) isDestination(base, offset, size uint32) bool {
	return base == unix.NFT_PAYLOAD_NETWORK_HEADER && slices.ContainsFunc(families, func(f fam) bool {
		return offset == f.dstOff && size == f.size && (r.family == f.nfproto || r.family == unix.NFPROTO_INET)
	})
}

func (r *rulePieces) compare(op uint32, data []byte) {
	if !r.loaded || op != unix.NFT_CMP_EQ {
		return
	}
	_ = eachAttr(data, func(typ uint16, v []byte) error {
		if a, is := netip.AddrFromSlice(v); typ == unix.NFTA_DATA_VALUE && is {
			r.destination = a
		}
		return nil
	})
}
