package traffic

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

// B43: what a kernel lacks of all that the agent can make use of is found by asking it, and `check` names it. Each is
// logged, for the page of what is held: as "lacks: ".
func TestWhatThisKernelLacks(t *testing.T) {
	w := lab.New(t)
	n := w.Node(1)
	needs := map[string][]string{} // by module, flags with which check looks for it
	var list []kernel.Need
	for _, cfg := range []kernel.Config{
		{ClusterCIDRs: []netip.Prefix{lab.ClusterCIDR4, lab.ClusterCIDR6}}, {PodInterface: "cni0"}, {PodInterface: "veth*"}, {MasqueradeAll: true},
	} {
		more, err := kernel.Needs(cfg)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, more...)
	}
	for _, name := range kernel.Schedulers {
		need := kernel.NeedScheduler(name)
		needs[need.Module] = []string{"--ipvs-scheduler=" + name}
		list = append(list, need)
	}
	seen := map[string]bool{}
	for _, need := range list {
		if seen[need.Module] {
			continue
		}
		seen[need.Module] = true
		err := n.Do(func() error { return need.Try(context.Background()) })
		var missing *kernel.MissingModuleError
		switch {
		case errors.As(err, &missing):
			t.Logf("lacks: %s", need.Module)
			if f := check(t, n, needs[need.Module]...); !strings.Contains(strings.Join(f.lines, "\n"), need.Module) {
				t.Errorf("check does not name %s:\n%s", need.Module, strings.Join(f.lines, "\n"))
			}
		case err != nil:
			t.Errorf("%s: %v", need.Module, err)
		}
	}
	if f := check(t, n); len(f.of("ok", "kernel")) == 0 {
		t.Errorf("check does not call this kernel well:\n%s", strings.Join(f.lines, "\n"))
	}
	for _, need := range []string{"ip_vs", "dummy", "nf_tables"} {
		if !seen[need] {
			t.Errorf("the agent does not ask for %s", need)
		}
	}
}
