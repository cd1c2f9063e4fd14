//go:build kubeproxy

package traffic

import (
	"net/netip"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/attacks"
)

// The table of attacks against kube-proxy itself, in mode ipvs: what comes of each is what the table says of it. Its API
// server is at the node's loopback: an attack that takes the node's own address takes what kube-proxy asks there as well,
// and it hears of nothing any more, not even that the attack is over.
func TestAttacksOnKubeProxy(t *testing.T) {
	program := kubeProxyProgram(t)
	a := newArena(t)
	k := &kubeProxy{t: t, s: a.stage, n: a.w.Node(1), svc: a.bank}
	a.open()
	k.startWith(netip.MustParseAddrPort("127.0.0.1:6443"), program, "ipvs")
	rows, by := a.tried(t)
	for i, r := range rows {
		if r.KubeProxy == attacks.NotTried {
			continue
		}
		t.Run(r.ID, func(t *testing.T) {
			want := attacks.Word(r.KubeProxy)
			if got := a.try(t, r.ID, by[r.ID], a.marked(t, i)); got != want && (want != attacks.Chance || got == attacks.Cut) {
				t.Errorf("%s: %s: %s, and the table says %s", r.ID, r.Tries, got, r.KubeProxy)
			}
		})
	}
}
