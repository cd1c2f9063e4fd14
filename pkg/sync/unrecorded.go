package sync

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// recordAgain is how long an address stays while one of its virtual servers could not be recorded.
const recordAgain = 50 * time.Millisecond

// unrecorded are the addresses of virtual servers that another proxy left, that are to go, and of which there is no record yet
// that they are ours. Their address alone says so: a process that dies once that is off the interface would leave them for good.
func (a *act) unrecorded() map[netip.Addr]bool {
	addrs := map[netip.Addr]bool{}
	if a.mirror.Adopted() {
		return addrs
	}
	for k := range a.mirror.Unowned() {
		if have := a.mirror.Known(k); have != nil && !have.Server.Exists() && !a.mirror.Doubted(k) {
			continue // there is none
		}
		if wish := a.want(k); wish.Frontend == nil && !wish.Spared {
			addrs[k.Addr] = true
		}
	}
	return addrs
}

// untilRecorded are the steps before the one that takes such an address off the interface. Few turns have one: unrecorded, which
// looks at all Keys, is asked by these alone.
func untilRecorded(ops []ipvs.Op, unrecorded func() map[netip.Addr]bool) []ipvs.Op {
	if i := slices.IndexFunc(ops, func(op ipvs.Op) bool { is, off := op.(ipvs.Unbind); return off && unrecorded()[is.Addr] }); i >= 0 {
		return ops[:i:i]
	}
	return ops
}
