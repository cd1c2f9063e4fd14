package sync

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// TestAuditTakesPoliciesForOurs: after each change of policies, endpoints and source ranges, looks at the kernel find
// nothing that another program had changed.
func TestAuditTakesPoliciesForOurs(t *testing.T) {
	s := newStepper()
	s.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7")}
	logs, seen := observer.New(zap.InfoLevel)
	s.start(completeModel(nodeNamed("192.0.2.7")))
	s.loop.log = zap.New(logs)
	for i := range 64 {
		web := nodePorts(balancer("web", "10.96.0.1", "203.0.113.1", 1, 80), 30080)
		policy := corev1.ServiceInternalTrafficPolicyCluster
		if i&1 != 0 {
			policy = corev1.ServiceInternalTrafficPolicyLocal
		}
		web.Spec.InternalTrafficPolicy = &policy
		if i&2 != 0 {
			web.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}
		web.Spec.LoadBalancerSourceRanges = [][]string{nil, {"198.51.100.0/24"}, {"198.51.0.0/16", "192.0.2.0/24"}, {"nonsense"}}[i>>2&3]
		give(s.model, web, slice(web, [][]string{{"10.244.1.5@node1", "10.244.2.10@node2"}, {"10.244.2.10@node2"}, {}, {"10.244.1.5@node1"}}[i>>4&3]...))
		s.pass(25 * time.Second)
		for _, e := range seen.TakeAll() {
			if strings.Contains(e.Message, "another program") {
				t.Errorf("step %d: %s", i, fmt.Sprint(e))
			}
		}
	}
}
