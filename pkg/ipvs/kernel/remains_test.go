package kernel

import (
	"context"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// B55: where the kernel has no IPVS any more, what is left of the agent's is found and goes all the same: address,
// interface, table.
func TestB55RemainsWithoutIPVS(t *testing.T) {
	needsIPVS(t) // for the interface: other kernels need not have dummy ones
	inNetns(t)
	ctx := context.Background()
	k, err := openRemains(ctx, "NONESUCH")
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if _, _, err := k.link.ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := k.nft.ensure(ctx); err != nil {
		t.Fatal(err)
	}
	if err := k.Shield(ctx, true); err != nil {
		t.Fatal(err)
	}
	vip := netip.MustParseAddr("10.96.0.5")
	key := ipvs.Key{Addr: vip, Port: 80, Proto: ipvs.TCP}
	for _, o := range k.Do(ctx, ipvs.Plan{
		{Key: key, Op: ipvs.Element{Set: ipvs.SetOwned, Key: key}},
		{Key: key, Op: ipvs.Element{Set: ipvs.SetVIPs, Key: ipvs.AddrKey(vip)}},
		{Key: key, Op: ipvs.Bind{Addr: vip}},
	}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
	}
	if table, err := k.Yield(ctx); err != nil || !table {
		t.Fatalf("table %t, %v", table, err)
	}
	if left := k.nft.shieldedBy(t); len(left) > 0 { // B80
		t.Errorf("shielded, %v, after another's rules were let come first", left)
	}
	found := map[ipvs.Key]ipvs.Observed{}
	if err := k.Scan(ctx, func(k ipvs.Key, o ipvs.Observed) { found[k] = o }); err != nil {
		t.Fatal(err)
	}
	if o := found[key]; o.Have == nil || !o.Have.Guard.Owned || o.Have.Server.Exists() {
		t.Errorf("found of %s: %+v", key, o.Have)
	}
	if o := found[ipvs.AddrKey(vip)]; o.Have == nil || !o.Have.Bind {
		t.Errorf("found of %s: %+v", vip, o.Have)
	}
	if o := k.Do(ctx, ipvs.Plan{{Key: key, Op: ipvs.Unbind{Addr: vip}}}); o[0].Err != nil {
		t.Fatal(o[0].Err)
	}
	done, stays, err := k.Remove(ctx)
	if err != nil || stays != "" || len(done) != 2 {
		t.Errorf("removed %q, stays %q, %v", done, stays, err)
	}
	if _, err := netlink.LinkByName(linkName); err == nil {
		t.Error("the interface is left")
	}
}
