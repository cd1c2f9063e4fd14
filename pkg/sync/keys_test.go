package sync

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
)

// The Keys of Services are given with the port that each is for, one Service after the other; those that another Service has are not
// among them, nor a port for checks. A question gives so many, and says how far it came (row B72).
func TestKeysOfServices(t *testing.T) {
	s := newStepper()
	web := service("web", "10.96.0.10", 80)
	web.Spec.Type, web.Spec.Ports[0].NodePort = corev1.ServiceTypeLoadBalancer, 30080
	web.Spec.ExternalTrafficPolicy, web.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 30999
	web.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.10"}}
	other := service("younger", "10.96.0.11", 80)
	other.Spec.Type, other.Status.LoadBalancer = corev1.ServiceTypeLoadBalancer, web.Status.LoadBalancer
	web.CreationTimestamp.Time, other.CreationTimestamp.Time = s.now, s.now.Add(1e9)
	s.start(completeModel(web, slice(web, "10.244.2.10"), other, slice(other, "10.244.2.11")))
	s.settle()
	keys, looked := s.loop.view().Keys([]cluster.ID{idOf("younger"), idOf("none"), idOf("web")})
	var got []string
	for _, k := range keys {
		got = append(got, fmt.Sprintf("%s %s %s/%d", k.Key, k.Service.Name, k.Port.Name, k.Port.Port))
	}
	want := []string{"10.96.0.11:80/tcp younger p80/80", "10.96.0.10:80/tcp web p80/80", "203.0.113.10:80/tcp web p80/80"}
	if !slices.Equal(got, want) || looked != 3 {
		t.Errorf("looked at %d Services, %q; want 3, %q", looked, got, want)
	}
	if _, looked := s.loop.view().Keys(nil); looked != 0 {
		t.Errorf("of nobody: looked at %d", looked)
	}
	// Many Keys end a question early, and the next one goes on.
	ids := make([]cluster.ID, PageKeys)
	for i := range ids {
		ids[i] = idOf("web")
	}
	if keys, looked := s.loop.view().Keys(ids); len(keys) != PageKeys || looked != PageKeys/2 {
		t.Errorf("%d Keys of %d Services, want %d of %d", len(keys), looked, PageKeys, PageKeys/2)
	}
}
