package contract

import (
	"net/netip"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// ManyElements runs the part of the contract that takes a real kernel seconds: both families, TCP, many elements.
func ManyElements(t *testing.T, open func(t *testing.T) Kernel) {
	for _, c := range suites() {
		if c.key.Proto == ipvs.TCP {
			t.Run(c.family, func(t *testing.T) { c.manyElements(t, open(t)) })
		}
	}
}

// manyElements (row B91): a frontend with more source ranges, and more pods of this node, than the kernel takes in one netlink
// message is written and removed as any other, and so is another one on the same address.
func (c *suite) manyElements(t *testing.T, k Kernel) {
	if _, err := k.Base(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	const many = 1500 // 270 KB in IPv4, 380 KB in IPv6
	want := c.frontend("rr", 0, 0, c.real(0, 1))
	want.Guard.Limited, want.Guard.Hairpin = true, nil
	for i := range many {
		a, b := c.pods[0].Addr().AsSlice(), c.pods[0].Addr().AsSlice()
		a[1], a[2], b[1], b[2], b[len(b)-1] = 0x80|byte(i>>7), byte(i<<1), byte(i>>8), byte(i), 1
		source, _ := netip.AddrFromSlice(a)
		pod, _ := netip.AddrFromSlice(b)
		want.Guard.Ranges = append(want.Guard.Ranges, ipvs.RangeOf(netip.PrefixFrom(source, 24)))
		want.Guard.Hairpin = append(want.Guard.Hairpin, pod)
	}
	neighbour := c.key
	neighbour.Port++
	plan := planOf(c.key, ipvs.Diff(c.key, nil, want))
	plan = append(plan, planOf(neighbour, ipvs.Diff(neighbour, nil, c.frontend("rr", 0, 0, c.real(0, 1))))...)
	done(t, k, plan)
	observes(t, k, c.key, &ipvs.Frontend{Server: want.Server, Guard: want.Guard.Own()})
	observes(t, k, neighbour, &ipvs.Frontend{Server: want.Server, Guard: ipvs.Guard{Owned: true, Open: true}})
	observes(t, k, ipvs.AddrKey(want.Guard.Hairpin[many-1]), &ipvs.Frontend{Guard: ipvs.Guard{Hairpin: want.Guard.Hairpin[many-1:]}})
	done(t, k, append(planOf(c.key, ipvs.Diff(c.key, want, nil)), planOf(neighbour, []ipvs.Op{
		ipvs.Element{Set: ipvs.SetOwned, Key: neighbour, Remove: true}, ipvs.Element{Set: ipvs.SetOpen, Key: neighbour, Remove: true}, ipvs.DelServer{Key: neighbour}})...))
	wants(t, k, c.key, nil)
	wants(t, k, ipvs.AddrKey(want.Guard.Hairpin[0]), nil)
}
