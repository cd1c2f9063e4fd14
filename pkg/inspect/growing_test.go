package inspect

import (
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
)

// B71: of a Service with a slow start show and explain say which scheduler serves and why, and how far a new endpoint has come;
// it is in order meanwhile.
func TestB71Growing(t *testing.T) {
	web := service("default/web", "10.96.0.10", 80)
	n := newNode(t, web, slice(web, "10.244.1.5@node1", "10.244.2.10@node2"))
	slow := web.DeepCopy()
	slow.Annotations = map[string]string{cluster.SlowStartAnnotation: "1h"}
	id := cluster.ID{Namespace: "default", Name: "web"}
	n.give(slow)
	wait := func(weight uint16) {
		t.Helper()
		n.until(t, func(h Head) bool {
			s, err := n.Service(t.Context(), id)
			if err != nil || s == nil || !h.Programmed {
				return false
			}
			reals := s.Frontends[0].Of
			return s.Frontends[0].Wanted == "wrr" && s.Frontends[0].State == Open && reals[len(reals)-1].Full == weight
		})
	}
	wait(0)
	n.give(slice(slow, "10.244.1.5@node1", "10.244.2.10@node2", "10.244.2.11@node2"))
	wait(10)
	s, err := n.Service(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	s.Count(counts(n.kernel, 0))
	text := s.Frontends[0].Text(Style{Now: time.Now()})
	explained, err := n.Explain(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for what, got := range map[string]string{"show": text, "explain": explained.Text()} {
		for _, want := range []string{"scheduler wrr, in place of rr, which heeds no weights; slow start over 1h0m0s", "weight 1 of 10, slow start until "} {
			if !strings.Contains(strings.Join(strings.Fields(got), " "), want) {
				t.Errorf("%s does not say %q:\n%s", what, want, got)
			}
		}
	}
	if !explained.InOrder() {
		t.Errorf("it is not in order:\n%s", explained.Text())
	}
}
