package preview

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

func (s *scene) explain(t *testing.T, namespace, name string) (*Explained, error) {
	t.Helper()
	start, err := sync.Rehearse(context.Background(), s.kernel.Look(), s.model, s.opt)
	if err != nil {
		t.Fatal(err)
	}
	return Explain(Input{Node: thisNode, Start: start, Services: s.model.Services()}, cluster.ID{Namespace: namespace, Name: name})
}

// B73: a Service is explained: where its frontends lead, what is left out or refused and by which code, and whether the
// kernel agrees.
func TestB73Explain(t *testing.T) {
	s := kubeProxys()
	s.start(t)
	for _, c := range []struct {
		namespace, name string
		inOrder         bool
	}{{"default", "web", true}, {"default", "legacy", false}, {"shop", "edge", true}, {"shop", "idle", false}} {
		x, err := s.explain(t, c.namespace, c.name)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "explain-"+c.name+".txt", x.Text())
		if x.InOrder() != c.inOrder || len(x.Writes) > 0 {
			t.Errorf("%s: in order %t, %d writes", x.Service, x.InOrder(), len(x.Writes))
		}
	}
	web := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.80"), Port: 80, Proto: ipvs.TCP}
	delete(s.kernel.Servers, web)
	x, err := s.explain(t, "default", "web")
	if err != nil || x.InOrder() || !strings.Contains(x.Text(), "kernel: differs\n  + ipvsadm -A -t 10.96.0.80:80 -s rr\n") {
		t.Errorf("without its virtual server: %v\n%s", err, x.Text())
	}
	b, err := json.MarshalIndent(x, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "explain-web.json", string(b)+"\n")
	if other, err := s.explain(t, "shop", "edge"); err != nil || len(other.Writes) > 0 {
		t.Errorf("another Service's writes are not its own: %v, %v", other.Writes, err)
	}
}

// B73: a Service that is not there: what may have been meant.
func TestB73ExplainNamesWhatIsNear(t *testing.T) {
	s := kubeProxys()
	for asked, near := range map[string]string{"default/webb": "default/web", "default/edge": "shop/edge", "shop/egde": "shop/edge", "default/nothing-like-it": ""} {
		namespace, name, _ := strings.Cut(asked, "/")
		_, err := s.explain(t, namespace, name)
		var unknown *UnknownServiceError
		if !errors.As(err, &unknown) || !strings.Contains(err.Error(), asked) {
			t.Fatalf("%s: %v", asked, err)
		}
		if (near == "") != (len(unknown.Near) == 0) || near != "" && unknown.Near[0].String() != near {
			t.Errorf("%s: near are %v, want %q", asked, unknown.Near, near)
		}
	}
}
