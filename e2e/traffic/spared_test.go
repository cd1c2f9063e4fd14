package traffic

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// shell runs commands on a node, as an administrator would.
func shell(t *testing.T, n *lab.Node, lines ...string) {
	t.Helper()
	for _, line := range lines {
		words := strings.Fields(line)
		if err := n.Do(func() error {
			if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", line, err, out)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// B56: virtual servers in the ranges of ipvs.excludeCIDRs are never removed: neither one that stands on kube-ipvs0
// at the first start, where all others are taken over, nor one of a Service that goes, nor by cleanup. Services
// there are served all the same.
func TestB56ExcludedRanges(t *testing.T) {
	const exclude = "--ipvs-exclude-cidrs=10.96.0.88/31,fd00:96::88/127"
	s := newStage(t)
	n, a := s.w.Node(1), s.w.Pod("pod-a").V4
	shell(t, n, "ip link add kube-ipvs0 type dummy", "ip link set kube-ipvs0 up")
	for _, vip := range []string{"10.96.0.89", "10.96.0.90"} {
		shell(t, n, "ip addr add "+vip+"/32 dev kube-ipvs0", "ipvsadm -A -t "+vip+":80 -s wlc",
			fmt.Sprintf("ipvsadm -a -t %s:80 -r %s:8080 -m", vip, a))
	}
	s.start(exclude)
	theirs := netip.MustParseAddrPort("10.96.0.89:80")
	stand := func(when string, svcs ...lab.Service) {
		t.Helper()
		want := []string{"tcp " + theirs.String()}
		for _, svc := range svcs {
			want = append(want, frontends(svc)...)
		}
		wantHas(t, n, want...)
		wantBound(t, n, theirs.Addr(), true)
		wantHit(t, s.w.Pod("pod-b").Host, theirs, "pod-a")
		if t.Failed() {
			t.Fatal(when)
		}
	}
	inside, outside := web(88), web(91)
	for _, svc := range []lab.Service{inside, outside} {
		s.apply(svc, s.pods()...)
		s.ready(svc)
	}
	programmed(t, s.agents[0])
	stand("first start", inside, outside)
	s.gone(outside)
	s.gone(inside)
	stand("without the Services", inside)
	s.restart(0)
	stand("after a restart", inside)
	each(t, func(t *testing.T, family int) { wantBound(t, n, at(inside, family, 80).Addr(), true) })
	if err := s.agents[0].Stop(); err != nil {
		t.Fatal(err)
	}
	cleanup(t, n, 0, []string{"virtual server 10.96.0.88:80/tcp stays: ipvs.excludeCIDRs has its address", "kube-ipvs0 stays"}, "cleanup", exclude)
	stand("after cleanup", inside)
}
