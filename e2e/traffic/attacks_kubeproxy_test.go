//go:build kubeproxy

package traffic

import (
	"slices"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/attacks"
)

// The table of attacks against kube-proxy itself, in mode ipvs: what comes of each is what the table says of it.
func TestAttacksOnKubeProxy(t *testing.T) {
	program := kubeProxyProgram(t)
	a := newArena(t)
	k := &kubeProxy{t: t, s: a.stage, n: a.w.Node(1), svc: a.bank}
	a.open()
	k.start(program, "ipvs")
	rows, by := a.tried(t)
	rows = slices.DeleteFunc(rows, func(r attacks.Row) bool { return r.KubeProxy == attacks.NotTried })
	last := map[string]int{"A11": 1, "A12": 2} // after these the nodes do not reach each other for a while
	slices.SortStableFunc(rows, func(a, b attacks.Row) int { return last[a.ID] - last[b.ID] })
	for i, r := range rows {
		t.Run(r.ID, func(t *testing.T) {
			want := attacks.Word(r.KubeProxy)
			if got := a.try(t, r.ID, by[r.ID], a.marked(t, i)); got != want && (want != attacks.Chance || got == attacks.Cut) {
				t.Errorf("%s: %s: %s, and the table says %s", r.ID, r.Tries, got, r.KubeProxy)
			}
		})
	}
}
