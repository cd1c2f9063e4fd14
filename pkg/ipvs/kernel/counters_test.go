package kernel

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// countersOf reads the counters as a scrape does, by verdict and family; those at 0 are left out.
func countersOf(t *testing.T) map[string]uint64 {
	t.Helper()
	c := OpenCounters()
	defer c.Close()
	counts, err := c.Read(t.Context())
	must(t, err)
	if len(counts) != int(verdicts)*len(families) {
		t.Errorf("%d counters, want %d", len(counts), int(verdicts)*len(families))
	}
	met := map[string]uint64{}
	for _, n := range counts {
		family := "4"
		if n.IPv6 {
			family = "6"
		}
		if n.Packets > 0 {
			met[n.Verdict.String()+family] = n.Packets
		}
	}
	return met
}

// ownAddress gives this host an address.
func ownAddress(t *testing.T, addr string) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	ip := netip.MustParseAddr(addr)
	must(t, netlink.AddrAdd(lo, &netlink.Addr{Flags: unix.IFA_F_NODAD,
		IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}}))
}

// Each packet that is refused or dropped is counted once, for what it met and for its family; what is let through is not
// (row B72).
func TestCountersCountWhatIsRefusedAndDropped(t *testing.T) {
	n := testNFT(t)
	for family, vip := range map[string]string{"4": "203.0.113.10", "6": "fd20:113::10"} {
		ownAddress(t, vip)
		stranger := ipvs.RangeOf(netip.MustParsePrefix("198.51.100.0/24"))
		if family == "6" {
			stranger = ipvs.RangeOf(netip.MustParsePrefix("2001:db8:7::/48"))
		}
		open, empty, local, limited, ping := key(vip, 80), key(vip, 81), key(vip, 82), key(vip, 83), key(vip, 7)
		ops := []ipvs.Element{{Set: ipvs.SetVIPs, Key: ipvs.AddrKey(open.Addr)}, {Set: ipvs.SetDropped, Key: local},
			{Set: ipvs.SetLimited, Key: limited}, {Set: ipvs.SetRanges, Key: limited, From: stranger}}
		for _, k := range []ipvs.Key{open, empty, local, limited} {
			ops = append(ops, ipvs.Element{Set: ipvs.SetOwned, Key: k})
		}
		for _, k := range []ipvs.Key{open, local, limited} {
			ops = append(ops, ipvs.Element{Set: ipvs.SetOpen, Key: k})
		}
		for i, o := range n.write(t.Context(), ops) {
			if o.Err != nil {
				t.Fatalf("%s: %v", ops[i], o.Err)
			}
		}
		before := countersOf(t)
		for times, k := range map[int]ipvs.Key{1: ping, 2: empty, 3: local, 4: limited, 5: open} {
			for range times {
				d := net.Dialer{Timeout: 100 * time.Millisecond} // below the 1 s after which a SYN is sent again
				if c, err := d.DialContext(t.Context(), "tcp", netip.AddrPortFrom(k.Addr, k.Port).String()); err == nil {
					c.Close()
					t.Fatalf("a connection to %s, where nobody listens", k)
				}
			}
		}
		want := map[string]uint64{"no-port" + family: 1, "no-endpoint" + family: 2, "no-local" + family: 3, "outside-ranges" + family: 4}
		got := countersOf(t)
		for name := range want {
			if got[name]-before[name] != want[name] {
				t.Errorf("%s has counted %d packets, want %d", name, got[name]-before[name], want[name])
			}
		}
		for name, packets := range got {
			if want[name] == 0 && packets != before[name] {
				t.Errorf("%s has counted %d packets of IPv%s", name, packets-before[name], family)
			}
		}
	}
}

// connection makes one through a frontend to a listener of this host, and gives what says a word on it and hears it back.
// The address is no virtual IP: there is no IPVS in between, and so the packets look as if they went past it.
func connection(t *testing.T, n *nftDoor, k ipvs.Key) (speaks func() error) {
	t.Helper()
	for _, e := range []ipvs.Element{{Set: ipvs.SetOwned, Key: k}, {Set: ipvs.SetOpen, Key: k}} {
		if o := n.write(t.Context(), []ipvs.Element{e}); o[0].Err != nil {
			t.Fatal(o[0].Err)
		}
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(k.Addr, k.Port).String())
	must(t, err)
	t.Cleanup(func() { l.Close() })
	client, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	server, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { client.Close(); server.Close() })
	return func() error {
		_ = client.SetDeadline(time.Now().Add(2 * time.Second))
		_ = server.SetDeadline(time.Now().Add(2 * time.Second))
		_, err := client.Write([]byte("word"))
		if err == nil {
			_, err = io.CopyN(server, io.LimitReader(server, 4), 4)
		}
		if err == nil {
			_, err = io.ReadFull(client, make([]byte, 4))
		}
		return err
	}
}

// A table that an older agent has left gets its counters and the rules that refer to them; its elements stay, and so do
// connections. What has been counted outlives new rules, and is not written again (row B72).
func TestOlderTableGetsCounters(t *testing.T) {
	n := testNFT(t)
	ctx := t.Context()
	_, err := n.transaction(ctx, func(b *batch) {
		b.begin(nftType(unix.NFT_MSG_DELTABLE), 0, nfgen(unix.NFPROTO_INET, 0))
		b.attrString(unix.NFTA_TABLE_NAME, tableName)
	})
	must(t, err)
	older, err := newNFT(n.cfg)
	must(t, err)
	older.uncounted = true
	older.rules, err = rules(n.cfg, true)
	must(t, err)
	defer older.close()
	_, _, err = older.ensure(ctx)
	must(t, err)
	c := OpenCounters()
	defer c.Close()
	if _, err := c.Read(ctx); !errors.Is(err, ErrUncounted) {
		t.Fatalf("a table without counters: %v", err)
	}
	there := ipvs.Element{Set: ipvs.SetOwned, Key: key("203.0.113.10", 80)}
	if o := n.write(ctx, []ipvs.Element{there}); o[0].Err != nil {
		t.Fatal(o[0].Err)
	}

	ownAddress(t, "203.0.113.10")
	speaks := connection(t, n, key("203.0.113.10", 8080))
	want := []string{"nft add counter inet ipvs-proxy no-port4", "nft replace the rules of table inet ipvs-proxy"}
	looks, err := newNFT(Config{ClusterCIDRs: n.cfg.ClusterCIDRs, ReadOnly: true})
	must(t, err)
	defer looks.close()
	if would, _, err := looks.ensure(ctx); err != nil || !slices.Equal(would, want) {
		t.Errorf("would write %q, %v; want %q", would, err, want)
	}
	if _, err := c.Read(ctx); !errors.Is(err, ErrUncounted) {
		t.Errorf("who only looks has made counters: %v", err)
	}
	wrote, created, err := n.ensure(ctx)
	if err != nil || created || !slices.Equal(wrote, want) {
		t.Errorf("wrote %q, created %t, %v; want %q", wrote, created, err, want)
	}
	if has, err := n.has(ctx, ipvs.SetOwned, []ipvs.Key{there.Key}); err != nil || len(has) != 1 {
		t.Errorf("the element is gone: %v, %v", has, err)
	}
	if err := speaks(); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	d := net.Dialer{Timeout: 100 * time.Millisecond}
	if _, err := d.DialContext(ctx, "tcp", "203.0.113.10:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a frontend without endpoints: %v", err)
	}
	must(t, n.writeRules(ctx))
	if wrote, _, err := n.ensure(ctx); err != nil || len(wrote) > 0 {
		t.Errorf("wrote %q a second time, %v", wrote, err)
	}
	if got := countersOf(t); len(got) != 1 || got["no-endpoint4"] != 1 {
		t.Errorf("counted %v, want one packet to a frontend without endpoints", got)
	}
}

// A kernel without named counters gets the rules without them, and all else.
func TestUncounted(t *testing.T) {
	n := testNFT(t)
	if err := n.count(t.Context()); err != nil || n.uncounted {
		t.Errorf("this kernel counts, and is said not to: %t, %v", n.uncounted, err)
	}
	for _, c := range []struct {
		errno     unix.Errno
		uncounted bool
	}{{unix.ENOENT, true}, {0, false}, {unix.EPERM, false}} {
		n, err := newNFT(Config{})
		must(t, err)
		n.sock = faultyRaw(t, func(_ int, sent []byte, send func([]byte)) {
			seqs := seqsOf(sent)
			send(answer(seqs[len(seqs)-1], c.errno))
		})
		if err := n.count(t.Context()); err != nil || n.uncounted != c.uncounted {
			t.Errorf("%v: uncounted %t, %v; want %t", c.errno, n.uncounted, err, c.uncounted)
		}
		refers := slices.Contains(expressionsOf(n.rules), "objref")
		if refers == c.uncounted {
			t.Errorf("%v: rules refer to counters: %t", c.errno, refers)
		}
	}
	for v := range verdicts {
		if name := v.String(); strings.Trim(name, "abcdefghijklmnopqrstuvwxyz-") != "" || name == "" {
			t.Errorf("verdict %d is called %q", v, name)
		}
	}
}
