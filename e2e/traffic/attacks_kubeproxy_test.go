//go:build kubeproxy

package traffic

import (
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/attacks"
)

// The table of attacks against kube-proxy itself, in mode ipvs: what comes of each is what the table says of it.
func TestAttacksOnKubeProxy(t *testing.T) {
	onKubeProxy(t, func(id string) bool { return !partsNodes(id) })
}

// Those after which the nodes do not reach each other for a while, in a world of their own: in one with twenty others before
// them, kube-proxy took minutes to serve what came next.
func TestAttacksOnKubeProxyThatPartNodes(t *testing.T) { onKubeProxy(t, partsNodes) }

func partsNodes(id string) bool { return id == "A11" || id == "A12" }

// onKubeProxy tries those attacks that are wanted and have a word of kube-proxy.
func onKubeProxy(t *testing.T, wanted func(id string) bool) {
	t.Helper()
	program := kubeProxyProgram(t)
	a := newArena(t)
	k := &kubeProxy{t: t, s: a.stage, n: a.w.Node(1), svc: a.bank}
	a.open()
	k.start(program, "ipvs")
	rows, by := a.tried(t)
	for i, r := range rows {
		if r.KubeProxy == attacks.NotTried || !wanted(r.ID) {
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
