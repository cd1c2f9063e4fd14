package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Local reads the addresses of the node's other interfaces, and whether it has IPv6.
func (k *Kernel) Local(ctx context.Context) (local ipvs.Local, err error) {
	ours, err := k.link.findIndex()
	if err != nil {
		return local, err
	}
	all, err := k.link.addresses(ctx, 0)
	if err != nil {
		return local, err
	}
	if err := k.link.sort(all, ours, &local); err != nil {
		return local, err
	}
	if k.link.index == 0 {
		k.link.index = ours
	}
	v4, v6, err := k.link.sourcesAmong(ctx, all)
	if err != nil {
		return local, err
	}
	for _, a := range []netip.Addr{v4, v6} {
		if a.IsValid() {
			local.Sources = append(local.Sources, a)
		}
	}
	local.NoIPv6, err = noIPv6()
	return local, err
}

// sort puts what stands on the node's other interfaces in its place. An interface that was ours and has another name now
// is not the node's, whatever stands there: these are virtual IPs (B61).
func (l *linkDoor) sort(all []standing, ours int, local *ipvs.Local) (err error) {
	names := map[int]string{ours: ""}
	for _, s := range all {
		if s.index == ours || s.addr.IsLoopback() || s.addr.IsLinkLocalUnicast() {
			continue
		}
		name, asked := names[s.index]
		if !asked {
			if name, err = l.renamed(s.index); err != nil {
				return err
			}
			names[s.index] = name
		}
		if name != "" {
			local.Renamed = name
			continue
		}
		if s.usable {
			local.Addrs = append(local.Addrs, s.addr)
		}
		if s.usable && !s.subnet.IsSingleIP() {
			local.Subnets = append(local.Subnets, s.subnet)
			if s.first {
				local.Own = append(local.Own, s.addr)
			}
		}
	}
	local.Addrs, local.Own = ipvs.SortAddrs(local.Addrs), ipvs.SortAddrs(local.Own)
	slices.SortFunc(local.Subnets, netip.Prefix.Compare)
	local.Subnets = slices.Compact(local.Subnets)
	return nil
}

// whereabouts are what of Local may become another without a notification.
type whereabouts struct {
	index   int // of our interface
	noIPv6  bool
	sources [len(somewhere)]netip.Addr
}

// moved reports whether they are others than when they were last asked for, or cannot be read. It is some 10 us, where what
// stands on all interfaces, every virtual IP among it, is some ms.
func (k *Kernel) moved(ctx context.Context) bool {
	var err error
	is := whereabouts{index: k.link.index}
	if is.noIPv6, err = noIPv6(); err != nil {
		return true
	}
	for i, to := range somewhere {
		if is.sources[i], err = k.link.sourceTo(ctx, to); err != nil {
			return true
		}
	}
	was := k.whereabouts
	k.whereabouts = is
	return was != is
}

// LocalChanged has a token when what Local gives may have changed.
func (k *Kernel) LocalChanged() <-chan struct{} { return k.watch.changed }

// findIndex looks for our interface; 0: there is none yet.
func (l *linkDoor) findIndex() (int, error) {
	link, err := l.h.LinkByName(linkName)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
		l.tell(0, false)
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("find interface %s: %w", linkName, err)
	}
	l.tell(link.Attrs().Index, link.Attrs().Flags&net.FlagUp != 0)
	return link.Attrs().Index, nil
}

// tell says where the interface is, and whether it is up.
func (l *linkDoor) tell(index int, up bool) {
	if l.found != nil {
		l.found(index, up)
	}
}

// noIPv6 reports whether the node has IPv6 switched off: not in the kernel at all, or disabled everywhere.
func noIPv6() (bool, error) {
	off, err := os.ReadFile(sysctlRoot + "net/ipv6/conf/all/disable_ipv6")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("is IPv6 switched on: %w", err)
	}
	return strings.TrimSpace(string(off)) != "0", nil
}

// SetPods takes the ranges of addresses whose clients keep theirs on the way to a ClusterIP, in place of those
// of Config. They take effect with the next Base.
func (k *Kernel) SetPods(pods []netip.Prefix) error {
	cfg := k.nft.cfg
	cfg.ClusterCIDRs, cfg.PodsFollow = pods, false
	rs, err := rules(cfg, k.nft.uncounted)
	if err != nil {
		return err
	}
	k.nft.cfg, k.nft.rules = cfg, rs
	return nil
}
