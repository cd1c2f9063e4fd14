package kernel

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestRulesNeedKnownModules: an expression whose module nobody asks for would only be missed when the table is
// written.
func TestRulesNeedKnownModules(t *testing.T) {
	rs, err := rules(Config{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}, false)
	must(t, err)
	names := expressionsOf(rs)
	if !slices.Contains(names, "masq") || !slices.Contains(names, "lookup") {
		t.Errorf("expressions of the rules: %q", names)
	}
	for _, name := range names {
		module, known := nftExpressions[name]
		if _, tried := nftTrials[module]; !known || module != "" && !tried {
			t.Errorf("expression %s of our rules: its module %q is not tried by Needs", name, module)
		}
	}
}

// A kernel without IPv6 has nftables of IPv4 alone. It is told from one that has no nftables, where the module is to be
// loaded, and from one that has both.
func TestLacksInet(t *testing.T) {
	for _, c := range []struct {
		name       string
		inet, ipv4 unix.Errno
		lacks      bool
	}{
		{"no IPv6", unix.EOPNOTSUPP, 0, true},
		{"no nftables", unix.EOPNOTSUPP, unix.EOPNOTSUPP, false},
		{"both", 0, 0, false},
		{"something else is wrong", unix.EPERM, 0, false},
	} {
		s := faultyRaw(t, func(_ int, sent []byte, send func([]byte)) {
			var families []byte
			_ = eachMessage(sent, func(_, _ uint16, _ uint32, body []byte) { families = append(families, body[0]) })
			errno := c.ipv4
			if families[1] == unix.NFPROTO_INET {
				errno = c.inet
			}
			send(answer(seqsOf(sent)[1], errno))
		})
		if got := lacksInet(t.Context(), s); got != c.lacks {
			t.Errorf("%s: lacks inet %t, want %t", c.name, got, c.lacks)
		}
	}
}

// This kernel has both, and keeps no trace of the question.
func TestLacksInetHere(t *testing.T) {
	n := testNFT(t)
	if lacksInet(t.Context(), n.sock) {
		t.Error("the kernel that has our table is said to lack its family")
	}
	if err := tryFamily(t.Context(), n.sock, 200); !notSupported(err) {
		t.Errorf("a family that no kernel has: %v", err)
	}
	c, err := n.conn()
	must(t, err)
	tables, err := c.ListTables()
	if must(t, err); len(tables) != 1 || tables[0].Name != tableName {
		t.Errorf("tables %v, want ours alone", tables)
	}
}

func modules(needs []Need) (names []string) {
	for _, n := range needs {
		names = append(names, n.Module)
	}
	return names
}

// TestNeedsChangeNothing: on a kernel that has all, all is found, and there is not a trace of the asking.
func TestNeedsChangeNothing(t *testing.T) {
	needsIPVS(t)
	inNetns(t)
	needs, err := Needs(Config{})
	must(t, err)
	for _, want := range []string{"ip_vs", "dummy", "nf_tables", "nft_masq", "nft_reject_inet"} {
		if !slices.Contains(modules(needs), want) {
			t.Errorf("%s is not among the needs %q", want, modules(needs))
		}
	}
	for _, s := range Schedulers {
		needs = append(needs, NeedScheduler(s))
	}
	before := links(t)
	for _, n := range needs {
		if err := n.Try(context.Background()); err != nil {
			t.Errorf("%s: %v", n.Module, err)
		}
	}
	if after := links(t); !slices.Equal(before, after) {
		t.Errorf("interfaces %q, before %q", after, before)
	}
	services, err := openMoby(t).GetServices()
	must(t, err)
	c, err := nftables.New()
	must(t, err)
	tables, err := c.ListTables()
	must(t, err)
	if len(services)+len(tables) > 0 {
		t.Errorf("%d virtual servers and %d tables are left", len(services), len(tables))
	}
}

func links(t *testing.T) (names []string) {
	t.Helper()
	all, err := netlink.LinkList()
	must(t, err)
	for _, l := range all {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return names
}

// TestMissingPartsAreNamed: what no kernel has is missing, by the name of the module that would have it.
func TestMissingPartsAreNamed(t *testing.T) {
	needsIPVS(t)
	inNetns(t)
	ctx := context.Background()
	for want, err := range map[string]error{
		"ip_vs_nonesuch": NeedScheduler("nonesuch").Try(ctx),
		"nonesuch":       tryLink(ctx, "nonesuch"),
		"nft_chain_none": tryNFT(ctx, "nft_chain_none", nftTrial{kind: "nonesuch", hook: unix.NF_INET_LOCAL_IN}),
	} {
		var missing *MissingModuleError
		if !errors.As(err, &missing) || missing.Module != want {
			t.Errorf("got %v, want a missing module %s", err, want)
		}
	}
	for _, name := range []string{"", "much-too-long-for-the-kernel"} {
		if err := NeedScheduler(name).Try(ctx); err == nil {
			t.Errorf("a scheduler named %q is there", name)
		}
	}
}
