package controlplane

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// sidecarPort is that of an init container that goes on beside the application.
const sidecarPort = 9090

// TestUpstreamSidecarPorts: a Service with a port of the application and one of an init container that is restarted
// always; target ports are given by number and by name. The controller looks the names up, pods answer on both.
func TestUpstreamSidecarPorts(t *testing.T) {
	s := newStage(t, 3)
	s.startKubelet().run = func(_ testing.TB, _ *corev1.Pod, p *lab.Pod) (func(), error) {
		end, err := p.ServeHTTP(appPort)
		if err != nil {
			return nil, err
		}
		endSidecar, err := p.Host.ServeHTTP("sidecar of "+p.Name, sidecarPort)
		return func() { end(); endSidecar() }, err
	}
	s.startAgents()
	always := corev1.ContainerRestartPolicyAlways
	spec := podSpec("")
	spec.InitContainers = []corev1.Container{{Name: "sidecar", Image: "lab", RestartPolicy: &always,
		Ports: []corev1.ContainerPort{{Name: "proxy", ContainerPort: sidecarPort}}}}
	s.createDeployment(s.namespace, deployment("app", 2, spec))
	pods := s.pods(s.namespace, "app", 2)
	for how, port := range map[string]intstr.IntOrString{"by number": intstr.FromInt32(sidecarPort), "by name": intstr.FromString("proxy")} {
		svc := web("by-" + how[len("by "):])
		svc.Spec.Selector = map[string]string{"app": "app"}
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "sidecar", Port: 81, TargetPort: port})
		svc = s.createService(svc)
		t.Run(how, func(t *testing.T) {
			for i, family := range []int{4, 6} {
				t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
					s.wantServing(t, clusterIPs(svc, 80)[i], appPort, pods...)
					s.wantServing(t, clusterIPs(svc, 81)[i], sidecarPort, pods...)
					for _, c := range s.clients() {
						hits(t, c, clusterIPs(svc, 80)[i], pods...)
						wantSidecars(t, c, clusterIPs(svc, 81)[i], pods)
					}
				})
			}
		})
	}
}

// wantSidecars: a client's requests are answered by the pods' sidecars, as often by each.
func wantSidecars(t *testing.T, c client, to netip.AddrPort, pods []*lab.Pod) {
	t.Helper()
	want := map[string]int{}
	for _, p := range pods {
		want["sidecar of "+p.Name] = 2
	}
	if got, lost := c.Spread(to, 2*len(pods)); !maps.Equal(got, want) {
		t.Errorf("%s asks %s: answered by %v, want %v; lost %v", c.name, to, got, want, lost)
	}
}
