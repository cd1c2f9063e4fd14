package kernel

import (
	"context"
	"errors"
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

var update = flag.Bool("update", false, "write the golden files anew")

func testNFT(t *testing.T) *nftDoor {
	t.Helper()
	inNetns(t)
	n, err := newNFT(Config{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd10:244::/32")}, ForeignMarks: 1 << 14})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	if _, _, err := n.ensure(context.Background()); err != nil {
		t.Fatal(err)
	}
	return n
}

func key(addr string, port uint16) ipvs.Key {
	return ipvs.Key{Addr: netip.MustParseAddr(addr), Port: port, Proto: ipvs.TCP}
}

// TestTableListsWithNft: what we write over netlink is what the nft tool shows a person.
func TestTableListsWithNft(t *testing.T) {
	n := testNFT(t)
	var ops []ipvs.Element
	for _, k := range []ipvs.Key{key("10.96.0.10", 80), key("fd00:96::10", 80)} {
		ops = append(ops, ipvs.Element{Set: ipvs.SetOwned, Key: k}, ipvs.Element{Set: ipvs.SetOpen, Key: k},
			ipvs.Element{Set: ipvs.SetVIPs, Key: ipvs.AddrKey(k.Addr)})
	}
	for from, k := range map[netip.Prefix]ipvs.Key{
		netip.MustParsePrefix("198.51.100.0/25"): key("203.0.113.10", 80), netip.MustParsePrefix("2001:db8:7::/48"): key("fd20:113::10", 80)} {
		clusterIP := netip.AddrPortFrom(netip.MustParseAddr("10.96.0.10"), 80)
		if k.Addr.Is6() {
			clusterIP = netip.AddrPortFrom(netip.MustParseAddr("fd00:96::10"), 80)
		}
		for _, s := range []ipvs.Set{ipvs.SetKept, ipvs.SetInside, ipvs.SetDropped, ipvs.SetLimited} {
			ops = append(ops, ipvs.Element{Set: s, Key: k})
		}
		ops = append(ops, ipvs.Element{Set: ipvs.SetRedirect, Key: k, To: clusterIP}, ipvs.Element{Set: ipvs.SetRanges, Key: k, From: ipvs.RangeOf(from)})
	}
	for _, k := range []ipvs.Key{key("203.0.113.10", 32000), key("fd20:113::10", 32000)} {
		ops = append(ops, ipvs.Element{Set: ipvs.SetOwned, Key: k}, ipvs.Element{Set: ipvs.SetOpen, Key: k}, ipvs.Element{Set: ipvs.SetAnswered, Key: k})
	}
	for _, pod := range []string{"10.244.1.10", "fd10:244:1::10"} {
		ops = append(ops, ipvs.Element{Set: ipvs.SetHairpin, Key: ipvs.AddrKey(netip.MustParseAddr(pod))})
	}
	for i, o := range n.write(context.Background(), ops) {
		if o.Err != nil {
			t.Fatalf("%s: %v", ops[i], o.Err)
		}
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs the nft tool (Debian package nftables)")
	}
	got, err := exec.Command(nft, "-n", "list", "table", "inet", tableName).CombinedOutput()
	if err != nil {
		t.Fatalf("nft list: %v\n%s", err, got)
	}
	const golden = "testdata/table.nft"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("nft lists\n%s\nwant\n%s", got, want)
	}
}

// TestTableIsMended: what somebody removes is put back, and what is right is not written.
func TestTableIsMended(t *testing.T) {
	n := testNFT(t)
	ctx := context.Background()
	if wrote, created, err := n.ensure(ctx); err != nil || created || len(wrote) > 0 {
		t.Fatalf("second time: wrote %v, created %v, %v; want nothing", wrote, created, err)
	}
	for _, tamper := range []struct {
		name string
		do   func(b *batch)
	}{
		{"rules of a chain", func(b *batch) {
			b.begin(nftType(unix.NFT_MSG_DELRULE), 0, nfgen(unix.NFPROTO_INET, 0))
			b.attrString(unix.NFTA_RULE_TABLE, tableName)
			b.attrString(unix.NFTA_RULE_CHAIN, chainPost)
		}},
		{"table", func(b *batch) {
			b.begin(nftType(unix.NFT_MSG_DELTABLE), 0, nfgen(unix.NFPROTO_INET, 0))
			b.attrString(unix.NFTA_TABLE_NAME, tableName)
		}},
	} {
		if _, err := n.transaction(ctx, tamper.do); err != nil {
			t.Fatalf("remove the %s: %v", tamper.name, err)
		}
		wrote, created, err := n.ensure(ctx)
		if err != nil || len(wrote) == 0 || created != (tamper.name == "table") {
			t.Errorf("%s: wrote %v, created %v, %v", tamper.name, wrote, created, err)
		}
		if wrote, _, err := n.ensure(ctx); err != nil || len(wrote) > 0 {
			t.Errorf("%s: wrote %v a second time, %v", tamper.name, wrote, err)
		}
	}
}

// TestElements: single reads, listing and the errors of writes.
func TestElements(t *testing.T) {
	n := testNFT(t)
	ctx := context.Background()
	there, missing := key("10.96.0.10", 80), key("10.96.0.10", 81)
	add := ipvs.Element{Set: ipvs.SetOpen, Key: there}
	if o := n.write(ctx, []ipvs.Element{add}); o[0].Err != nil {
		t.Fatal(o[0].Err)
	}
	has, err := n.has(ctx, ipvs.SetOpen, []ipvs.Key{missing, there})
	if err != nil || !slices.Equal(has, []ipvs.Element{{Set: ipvs.SetOpen, Key: there}}) {
		t.Errorf("has %v, %v; want only %s", has, err, there)
	}
	var all []ipvs.Key
	if err := n.all(ctx, ipvs.SetOpen, func(e ipvs.Element) { all = append(all, e.Key) }); err != nil || !slices.Equal(all, []ipvs.Key{there}) {
		t.Errorf("all %v, %v; want %s", all, err, there)
	}
	out := n.write(ctx, []ipvs.Element{{Set: ipvs.SetOpen, Key: key("10.96.0.11", 80)}, {Set: ipvs.SetOpen, Key: missing, Remove: true}})
	if !errors.Is(out[1].Err, unix.ENOENT) || out[1].Unknown {
		t.Errorf("removing what is not there: %v, want ENOENT", out[1].Err)
	}
	if out[0].Err == nil {
		t.Error("a part of a transaction that failed is said to be done")
	}
	if has, err := n.has(ctx, ipvs.SetOpen, []ipvs.Key{key("10.96.0.11", 80)}); err != nil || len(has) > 0 {
		t.Errorf("a part of a transaction that failed was done: %v, %v", has, err)
	}
}

// Source ranges of a frontend that is in no set that limits it are seen once a pass has been there, and are asked for
// no more when they are gone.
func TestStrayRanges(t *testing.T) {
	k := &Kernel{nft: testNFT(t), detector: newDetector(), ranged: map[ipvs.Key]bool{}}
	vip := key("203.0.113.10", 80)
	r := ipvs.Range{First: netip.MustParseAddr("198.51.100.0"), Last: netip.MustParseAddr("198.51.100.127")}
	add := ipvs.Element{Set: ipvs.SetRanges, Key: vip, From: r}
	if out := k.nft.write(t.Context(), []ipvs.Element{add}); out[0].Err != nil {
		t.Fatal(out[0].Err)
	}
	seen := func() int {
		t.Helper()
		as := newAssembly()
		if err := k.addRanges(t.Context(), as, []ipvs.Key{vip}); err != nil {
			t.Fatal(err)
		}
		return len(as.at(vip).Guard.Ranges)
	}
	if done, err := k.detectSet(t.Context(), ipvs.SetRanges, func(ipvs.Key, *ipvs.Frontend, uint32) {}); err != nil || !done {
		t.Fatal(done, err)
	}
	if n := seen(); n != 1 {
		t.Errorf("%d ranges seen, want 1", n)
	}
	add.Remove = true
	if out := k.nft.write(t.Context(), []ipvs.Element{add}); out[0].Err != nil {
		t.Fatal(out[0].Err)
	}
	if n := seen(); n != 0 || len(k.ranged) > 0 {
		t.Errorf("%d ranges seen and %v to be asked for again, want none", n, k.ranged)
	}
}
