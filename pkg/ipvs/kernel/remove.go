package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Yield lets another proxy's rules, where there are any, come first from here on: they serve when ours goes. It finds
// what Base would make, makes nothing, and reports whether our table is there: with it, the record of what is ours.
func (k *Kernel) Yield(ctx context.Context) (table bool, err error) {
	link, err := k.link.find()
	if err != nil {
		return false, err
	}
	k.link.index = 0
	if link != nil {
		k.link.index = link.Attrs().Index
	}
	table, err = tableStands(k.nft)
	if err != nil || !table {
		return false, err
	}
	return true, k.Shield(ctx, false)
}

// Remove takes away what Base made: the interface, where nothing is left on it, then the table. Done are the
// writes, as a person would type them, stays says why the interface is still there. Of the sysctls the reserved ports that
// are recorded as ours go. The others stay as they are: somebody may rely on them by now, and nobody knows what they were.
func (k *Kernel) Remove(ctx context.Context) (done []string, stays string, err error) {
	link, err := k.link.find()
	if err != nil {
		return nil, "", err
	}
	if link != nil {
		if stays, err = k.link.inUse(ctx, link.Attrs().Index); err != nil {
			return nil, "", err
		}
		if stays == "" {
			if err := k.link.h.LinkDel(link); err != nil {
				return nil, "", fmt.Errorf("delete interface %s: %w", linkName, err)
			}
			k.link.index = 0
			done = append(done, "ip link del "+linkName)
		}
	}
	more, err := removeTable(ctx, k.nft)
	return append(done, more...), stays, err
}

const tableText = "table inet " + tableName

// RemoveTable removes our nftables table and the reserved ports that it records as ours, and nothing else, and says how a
// person would type that; nothing: there was none. It needs no IPVS. With the table goes the record of what is ours.
func RemoveTable(ctx context.Context) (done []string, err error) {
	if err := MayAdminister(); err != nil {
		return nil, err
	}
	n, err := newNFT(Config{})
	if err != nil {
		return nil, err
	}
	defer n.close()
	return removeTable(ctx, n)
}

func tableStands(n *nftDoor) (bool, error) {
	c, err := n.conn()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT):
		return false, nil // no nftables, no tables
	case err != nil:
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName }), nil
}

// removeTable gives back the ports that are recorded as ours, and then removes the table with the record.
func removeTable(ctx context.Context, n *nftDoor) (done []string, err error) {
	if stands, err := tableStands(n); err != nil || !stands {
		return nil, err
	}
	if done, err = n.unreserve(ctx, sysctlRoot); err != nil {
		return nil, err
	}
	c, err := n.conn()
	if err != nil {
		return done, fmt.Errorf("open nftables: %w", err)
	}
	c.DelTable(n.table)
	if err := c.Flush(); err != nil {
		return done, fmt.Errorf("delete nftables %s: %w", tableText, err)
	}
	return append(done, "nft delete "+tableText), nil
}

// find looks for our interface; nil: there is none. One of another type is somebody else's, whatever its name.
func (l *linkDoor) find() (netlink.Link, error) {
	link, err := l.h.LinkByName(linkName)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("find interface %s: %w", linkName, err)
	case link.Type() != "dummy":
		return nil, nil
	}
	return link, nil
}

// inUse says what stands on the interface beside what the kernel puts there, and our anchor; empty: nothing.
func (l *linkDoor) inUse(ctx context.Context, index int) (what string, err error) {
	addrs, err := l.addresses(ctx, index)
	if err != nil {
		return "", err
	}
	for _, s := range addrs {
		if s.addr != anchorAddr && !s.addr.IsLinkLocalUnicast() {
			return fmt.Sprintf("address %s stands on it", s.addr), nil
		}
	}
	// Table 0 is every table.
	var routes []netlink.Route
	err = again(func() (err error) {
		routes, err = l.h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: index}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("list routes of %s: %w", linkName, err)
	}
	for _, r := range routes {
		if r.Protocol != unix.RTPROT_KERNEL {
			return fmt.Sprintf("a route to %s leads there", r.Dst), nil
		}
	}
	return "", nil
}
