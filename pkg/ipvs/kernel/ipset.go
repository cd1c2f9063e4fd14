package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kubeproxy"
)

// ipset over netlink: include/uapi/linux/netfilter/ipset/ip_set.h.
const (
	ipsetProtocol = 6 // the oldest that all kernels speak

	ipsetCmdDestroy = 3
	ipsetCmdList    = 7

	ipsetAttrProtocol = 1
	ipsetAttrSetName  = 2
	ipsetAttrFlags    = 6
	ipsetAttrData     = 7
	ipsetAttrElements = 24

	ipsetFlagListHeader = 1 << 2

	// errSetBusy is IPSET_ERR_BUSY: something refers to the set.
	errSetBusy = unix.Errno(4096 + 4)
)

// setDoor reads and destroys ipsets.
type setDoor struct {
	sock *socket
	b    batch
}

func newSetDoor() *setDoor { return &setDoor{sock: newSocket(unix.NETLINK_NETFILTER)} }

func ipsetType(cmd int) uint16 { return uint16(unix.NFNL_SUBSYS_IPSET<<8 | cmd) }

// foreignSet is a set of kube-proxy's.
type foreignSet struct {
	name     string
	elements uint32
}

// list lists kube-proxy's sets. Asking would make the kernel load what it does not use, so it is looked for first.
func (d *setDoor) list(ctx context.Context) (sets []foreignSet, err error) {
	if _, err := os.Stat("/sys/module/ip_set"); err != nil {
		return nil, nil
	}
	err = again(func() error {
		sets = sets[:0]
		d.b.reset()
		d.b.begin(ipsetType(ipsetCmdList), unix.NLM_F_DUMP, nfgen(unix.AF_UNSPEC, 0))
		d.b.attr(ipsetAttrProtocol, []byte{ipsetProtocol})
		d.b.attr(ipsetAttrFlags|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint32(nil, ipsetFlagListHeader))
		return d.sock.dump(ctx, &d.b, func(msg []byte) error {
			s, err := parseSet(msg)
			if err == nil && kubeproxy.IsSet(s.name) {
				sets = append(sets, s)
			}
			return err
		})
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) { // this part of the module is not there
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	slices.SortFunc(sets, func(a, b foreignSet) int { return strings.Compare(a.name, b.name) })
	return sets, nil
}

// parseSet reads the header of a set.
func parseSet(msg []byte) (s foreignSet, err error) {
	err = eachAttr(skip(msg, nfgenLen), func(typ uint16, v []byte) error {
		switch typ {
		case ipsetAttrSetName:
			s.name = cString(v)
		case ipsetAttrData:
			return eachAttr(v, func(typ uint16, v []byte) error {
				if typ == ipsetAttrElements && len(v) == 4 {
					s.elements = binary.BigEndian.Uint32(v)
				}
				return nil
			})
		}
		return nil
	})
	return s, err
}

// left lists kube-proxy's sets as what is left.
func (d *setDoor) left(ctx context.Context) (list []ipvs.Leaving, err error) {
	sets, err := d.list(ctx)
	for _, s := range sets {
		list = append(list, ipvs.Leaving{Text: "ipset destroy " + s.name, Apart: true, Take: func(ctx context.Context) error { return d.destroy(ctx, s.name) }})
	}
	return list, err
}

// destroy destroys a set. One that a rule refers to is refused, and the kernel lets go of a rule's reference some
// milliseconds after the rule has gone.
func (d *setDoor) destroy(ctx context.Context, name string) error {
	d.b.reset()
	d.b.begin(ipsetType(ipsetCmdDestroy), 0, nfgen(unix.AF_UNSPEC, 0))
	d.b.attr(ipsetAttrProtocol, []byte{ipsetProtocol})
	d.b.attrString(ipsetAttrSetName, name)
	d.b.acknowledge()
	replies, err := d.sock.exchange(ctx, &d.b)
	if err == nil {
		err = replies[0].err
	}
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, errSetBusy):
		err = unix.EBUSY
	}
	return fmt.Errorf("ipset destroy %s: %w", name, err)
}
