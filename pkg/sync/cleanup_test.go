package sync

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
)

// remains is a fake kernel that lets go of interface and table as well.
type remains struct{ *fake.Kernel }

func (r remains) Yield(ctx context.Context) (bool, error) { return r.Table, r.Shield(ctx, false) }

func (r remains) Remove(context.Context) (done []string, stays string, err error) {
	if len(r.Addrs)+len(r.Misbound) > 0 {
		stays = "addresses"
	} else {
		r.DropLink()
		done = append(done, "link")
	}
	r.DropTable()
	return append(done, "table"), stays, nil
}

// cleanupAll runs Cleanup and returns what it said.
func cleanupAll(k *fake.Kernel, spared ...string) (said []string, err error) {
	err = Cleanup(context.Background(), remains{k}, prefixes(spared...), func(line string) { said = append(said, line) })
	return said, err
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// programmedKernel has two Services with two ports, and a virtual server of somebody else on the address of one.
func programmedKernel(t *testing.T) *fake.Kernel {
	var k *fake.Kernel
	bubble(t, func(t *testing.T, r *rig) {
		one, two := service("one", "10.96.0.1", 80, 443), service("two", "10.96.0.2", 80, 443)
		r.set(one, slice(one, "10.244.1.1"), two, slice(two, "10.244.1.2"))
		r.synced()
		r.start()
		k = r.kernel
	})
	k.Servers[foreignHere] = ipvs.Server{Scheduler: "wlc"}
	k.Log = nil
	if len(k.Addrs) != 2 || len(k.Sets[ipvs.SetOwned]) != 5 {
		t.Fatalf("the kernel to begin with: %v, %v", k.Addrs, k.Sets[ipvs.SetOwned])
	}
	return k
}

var foreignHere = ipvs.Key{Addr: netip.MustParseAddr("10.96.0.1"), Port: 9999, Proto: ipvs.TCP}

// wantForeign: what the kernel holds is what somebody else made.
func wantForeign(t *testing.T, k *fake.Kernel) {
	t.Helper()
	if len(k.Servers) != 1 || k.Servers[foreignHere].Scheduler != "wlc" || len(k.Addrs) > 0 || k.Link || k.Table {
		t.Errorf("left: servers %v, addresses %v, interface %t, table %t", k.Servers, k.Addrs, k.Link, k.Table)
	}
}

// TestCleanup: all of ours goes, addresses before their servers, each once, and nothing of anybody else.
func TestCleanup(t *testing.T) {
	k := programmedKernel(t)
	said, err := cleanupAll(k)
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, "cleanup", lines(k.Log), "ip addr del 10.96.0.1/32 dev kube-ipvs0", "ip addr del 10.96.0.2/32 dev kube-ipvs0",
		"ipvsadm -D -t 10.96.0.1:80", "ipvsadm -D -t 10.96.0.1:443", "ipvsadm -D -t 10.96.0.2:80", "ipvsadm -D -t 10.96.0.2:443")
	slices.Sort(said)
	if want := append(lines(k.Log), "link", "table", "nft flush set inet ipvs-proxy shielded"); !slices.Equal(said, sortedLines(want)) {
		t.Errorf("said %q, want %q", said, want)
	}
	wantForeign(t, k)
	if said, err := cleanupAll(k); err != nil || len(said) != 1 || !strings.HasPrefix(said[0], "nothing to remove") {
		t.Errorf("the second time: %q, %v", said, err)
	}
}

func sortedLines(l []string) []string { return slices.Sorted(slices.Values(l)) }

// A removal that fails keeps the record of what is left, so that the next cleanup finds it.
func TestCleanupFails(t *testing.T) {
	for _, op := range []ipvs.Op{ipvs.Unbind{Addr: foreignHere.Addr}, ipvs.DelServer{Key: ipvs.Key{Addr: foreignHere.Addr, Port: 443, Proto: ipvs.TCP}}} {
		k := programmedKernel(t)
		broken := errors.New("broken")
		k.Fail = func(o ipvs.Op) error {
			if o == op {
				return broken
			}
			return nil
		}
		said, err := cleanupAll(k)
		if !errors.Is(err, broken) || !k.Table || !k.Link {
			t.Errorf("%s fails: %v, table %t, interface %t", op, err, k.Table, k.Link)
		}
		if slices.Contains(said, op.String()) || strings.Count(err.Error(), "broken") != 1 {
			t.Errorf("%s fails: said %q, %v", op, said, err)
		}
		if _, unbinds := op.(ipvs.Unbind); unbinds && len(k.Servers) != 3 {
			t.Errorf("an address stays and its servers do not: %v", k.Servers)
		}
		k.Fail = nil
		if _, err := cleanupAll(k); err != nil {
			t.Error(err)
		}
		wantForeign(t, k)
	}
}

// TestCleanupSpares: a spared range keeps virtual servers and addresses.
func TestCleanupSpares(t *testing.T) {
	k := programmedKernel(t)
	said, err := cleanupAll(k, "10.96.0.2/31")
	if err != nil {
		t.Fatal(err)
	}
	if len(k.Servers) != 3 || len(k.Addrs) != 1 || !k.Link || k.Table {
		t.Errorf("left: servers %v, addresses %v, interface %t, table %t", k.Servers, k.Addrs, k.Link, k.Table)
	}
	for _, want := range []string{"virtual server 10.96.0.2:80/tcp stays: ipvs.excludeCIDRs has its address", "kube-ipvs0 stays: addresses"} {
		if !slices.Contains(said, want) {
			t.Errorf("not said: %q in %q", want, said)
		}
	}
}
