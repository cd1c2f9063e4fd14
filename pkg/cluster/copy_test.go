package cluster

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A copy answers everything as its Model does, whatever that holds; half of one is none.
func TestB73Copy(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for round := range 100 {
		w := world{rand.New(rand.NewPCG(seed, uint64(round)))}
		opt := Options{NodeName: "own"}
		m := NewModel(opt)
		for range 1 + w.IntN(40) {
			if w.IntN(3) == 0 {
				s := w.service()
				s.Annotations = map[string]string{WeightsAnnotation: "same-node=3", DrainDeadlineAnnotation: "never"} // one of them is of no use
				m.SetService(s)
			} else {
				m.SetSlice(w.slice())
			}
		}
		m.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "own", Labels: map[string]string{corev1.LabelTopologyZone: "a"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}}})
		m.AddAPIServers([]netip.Addr{netip.MustParseAddr("192.0.2.100")})
		if round > 0 {
			m.SetComplete()
		}
		var text bytes.Buffer
		if err := m.WriteCopy(&text); err != nil {
			t.Fatal(err)
		}
		for _, cut := range []int{0, text.Len() / 2, text.Len() - 5} {
			if _, err := ReadCopy(bytes.NewReader(text.Bytes()[:cut]), opt); err == nil {
				t.Fatalf("round %d: %d bytes of %d are a copy", round, cut, text.Len())
			}
		}
		copied, err := ReadCopy(&text, opt)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m.snapshot(), copied.snapshot(), netipComparer); diff != "" {
			t.Fatalf("round %d:\n%s", round, diff)
		}
		for id, is := range m.snapshot() {
			for _, ep := range is.Eps {
				if a := ep.Addr; m.Named(a) != copied.Named(a) || !slices.Equal(m.Asking(a), copied.Asking(a)) {
					t.Errorf("round %d: %s: %+v and %+v", round, a, m.Named(a), copied.Named(a))
				}
				if to := netip.AddrPortFrom(ep.Addr, ep.Port); m.Lists(id, to) != copied.Lists(id, to) {
					t.Errorf("round %d: %s of %s", round, to, id)
				}
			}
		}
		if !m.Node().equal(copied.Node()) || !slices.Equal(m.APIServers(), copied.APIServers()) || m.Complete() != copied.Complete() {
			t.Errorf("round %d: %+v, %v", round, copied.Node(), copied.APIServers())
		}
	}
}
