package traffic

import (
	"testing"
)

// B70, a cluster that comes from kube-router: its Services have that one's annotations. Those of the scheduler and its flags serve
// as they did there, in its own words; one that names none of kube-router's schedulers gets the node's and an Event; and the
// others are no reason for anything (docs/scheduling.md says what is different).
func TestB70FromKubeRouter(t *testing.T) {
	s := newStage(t).start()
	n := s.w.Node(1)
	alike := map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1}
	for i, c := range []struct {
		annotations map[string]string
		scheduler   string
		flags       uint32
		one         bool // a client has one endpoint
	}{
		{map[string]string{"scheduler": "lc"}, "lc", 0, false},
		{map[string]string{"scheduler": "rr"}, "rr", 0, false},
		{map[string]string{"scheduler": "sh"}, "sh", fallback, true},
		{map[string]string{"scheduler": "dh"}, "dh", 0, true},
		{map[string]string{"scheduler": "mh", "schedflags": "flag-1"}, "mh", fallback, true},
		{map[string]string{"scheduler": "mh", "schedflags": "flag-1,flag-2"}, "mh", fallback | clientPorts, false},
		{map[string]string{"scheduler": "fastest"}, "rr", 0, false},
		{map[string]string{"hairpin": "", "local": "", "dsr": "tunnel", "skiplbips": "true"}, "rr", 0, false},
	} {
		svc := web(160 + i)
		svc.Annotations = map[string]string{}
		for name, value := range c.annotations {
			svc.Annotations["kube-router.io/service."+name] = value
		}
		s.apply(svc, s.pods()...)
		each(t, func(t *testing.T, family int) {
			to := at(svc, family, 80)
			s.wantScheduled(t, n, to, c.scheduler, c.flags, alike)
			answers(t, n.Host, to)
			got, lost := n.Spread(to, 12)
			if len(lost) > 0 || (len(got) == 1) != c.one {
				t.Errorf("%v: 12 requests were answered by %v, lost %v", c.annotations, got, lost)
			}
		})
	}
	wantSaid(t, s.agents[0], "default/web166", "kube-router.io/service.scheduler", "fastest", "is not a scheduler")
	if hasLogged(s.agents[0], "service.dsr") {
		t.Error("an annotation of kube-router's that is nobody's here is told as a problem")
	}
}
