package controlplane

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// S1, kubia: three pods of a ReplicaSet behind a ClusterIP, port 80 to 8080. Who asks again and again hits all three,
// in both families; scaled up and down, the Service follows.
func TestS1Kubia(t *testing.T) {
	s := newStage(t, 3)
	s.startKubelet()
	s.startAgents()
	kubia := s.createService(web("kubia"))
	s.createReplicas("kubia", 3)
	pods := s.pods(s.namespace, "kubia", 3)
	for _, to := range clusterIPs(kubia, 80) {
		s.wantServing(t, to, appPort, pods...)
		for _, c := range s.clients() {
			hits(t, c, to, pods...)
		}
	}
	for _, n := range []int{4, 1} {
		s.scale("kubia", n)
		pods = s.pods(s.namespace, "kubia", n)
		for _, to := range clusterIPs(kubia, 80) {
			s.wantServing(t, to, appPort, pods...)
			hits(t, s.clients()[0], to, pods...)
		}
	}
}

// scale changes the number of pods of a ReplicaSet.
func (s *stage) scale(name string, n int) {
	s.t.Helper()
	sets := s.api.AppsV1().ReplicaSets(s.namespace)
	scale, err := sets.GetScale(s.ctx, name, metav1.GetOptions{})
	if err == nil {
		scale.Spec.Replicas = int32(n)
		_, err = sets.UpdateScale(s.ctx, name, scale, metav1.UpdateOptions{})
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// S6: a Service without a selector; the endpoints are written by hand and stand in the cluster, once as an
// EndpointSlice and once as Endpoints, which a controller mirrors.
func TestS6ByHand(t *testing.T) {
	s := newStage(t, 3)
	s.startKubelet()
	s.startAgents()
	s.createReplicas("database", 2)
	pods := s.pods(s.namespace, "database", 2)
	byHand := func(name string) *corev1.Service {
		svc := web(name)
		svc.Spec.Selector = nil
		svc.Spec.Ports[0].TargetPort = intstr.FromInt32(appPort)
		return s.createService(svc)
	}
	sliced, mirrored := byHand("sliced"), byHand("mirrored")
	for _, svc := range []*corev1.Service{sliced, mirrored} {
		s.wantServing(t, clusterIP(svc, 80), appPort)
		for _, c := range s.clients() {
			if r := c.Connect(clusterIP(svc, 80)); r.Verdict != lab.Refused {
				t.Errorf("%s asks %s, which has no endpoints: %s; want it refused", c.name, svc.Name, r)
			}
		}
	}
	s.sliceByHand(sliced, pods)
	s.endpointsByHand(mirrored, pods)
	for _, svc := range []*corev1.Service{sliced, mirrored} {
		to := clusterIP(svc, 80)
		s.wantServing(t, to, appPort, pods...)
		for _, c := range s.clients() {
			hits(t, c, to, pods...)
		}
	}
}

func (s *stage) sliceByHand(svc *corev1.Service, pods []*lab.Pod) {
	s.t.Helper()
	name, port := "http", int32(appPort)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: svc.Name + "-by-hand", Labels: map[string]string{
			discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: "staff"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for _, p := range pods {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{p.V4.String()}})
	}
	if _, err := s.api.DiscoveryV1().EndpointSlices(s.namespace).Create(s.ctx, slice, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) endpointsByHand(svc *corev1.Service, pods []*lab.Pod) {
	s.t.Helper()
	//lint:ignore SA1019 the deprecated API is what is tested: people have such objects
	endpoints := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: svc.Name},
		//lint:ignore SA1019 as above
		Subsets: []corev1.EndpointSubset{{Ports: []corev1.EndpointPort{{Name: "http", Port: appPort}}}}}
	for _, p := range pods {
		endpoints.Subsets[0].Addresses = append(endpoints.Subsets[0].Addresses, corev1.EndpointAddress{IP: p.V4.String()})
	}
	if _, err := s.api.CoreV1().Endpoints(s.namespace).Create(s.ctx, endpoints, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// S8, ExternalName: nothing is programmed; switched to ClusterIP it is, and switched back it is gone.
func TestS8ExternalName(t *testing.T) {
	s := newStage(t, 3)
	s.startKubelet()
	s.startAgents()
	s.createReplicas("api", 2)
	pods := s.pods(s.namespace, "api", 2)
	api := s.createService(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "api"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "api.example.com"}})
	for range 2 {
		svc := web("api")
		svc.ResourceVersion = api.ResourceVersion
		svc = s.updateService(svc)
		to := clusterIP(svc, 80)
		s.wantServing(t, to, appPort, pods...)
		for _, c := range s.clients() {
			hits(t, c, to, pods...)
		}
		api = s.updateService(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "api", ResourceVersion: svc.ResourceVersion},
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "api.example.com"}})
		s.wantGone(t, to.Addr())
	}
}

func (s *stage) updateService(svc *corev1.Service) *corev1.Service {
	s.t.Helper()
	made, err := s.api.CoreV1().Services(s.namespace).Update(s.ctx, svc, metav1.UpdateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return made
}

// S9: a Service with node ports 30123 (80 to 8080) and 32123 (79 to 80) is reached on every node, also on the one
// that has none of its pods.
func TestS9NodePort(t *testing.T) {
	s := newStage(t, 3)
	s.startKubelet().run = func(_ testing.TB, _ *corev1.Pod, p *lab.Pod) (func(), error) {
		end, err := p.ServeHTTP(appPort)
		if err != nil {
			return nil, err
		}
		end80, err := p.ServeHTTP(80)
		return func() { end(); end80() }, err
	}
	s.startAgents()
	kubia := web("kubia")
	kubia.Spec.Type = corev1.ServiceTypeNodePort
	kubia.Spec.Ports = []corev1.ServicePort{
		{Name: "http", Port: 80, TargetPort: intstr.FromInt32(appPort), NodePort: 30123},
		{Name: "admin", Port: 79, TargetPort: intstr.FromInt32(80), NodePort: 32123},
	}
	s.createService(kubia)
	for i, n := range []int{1, 1, 2} {
		s.createPod(fmt.Sprintf("kubia-%d", i), map[string]string{"app": "kubia"}, s.w.Node(n))
	}
	pods := s.pods(s.namespace, "kubia", 3)
	for _, nodePort := range []uint16{30123, 32123} {
		for _, n := range s.w.Nodes {
			for _, family := range []int{4, 6} {
				to := netip.AddrPortFrom(n.Addr(family), nodePort)
				lab.Eventually(t, soon, fmt.Sprintf("%s serves %s", n.Name, to), func() error {
					if got, err := reals(n, to); err != nil || len(got) != len(pods) {
						return fmt.Errorf("by %v: %w", got, err)
					}
					return nil
				})
				hits(t, client{"outside", s.w.Client}, to, pods...)
			}
		}
	}
}

// S13, readiness: a pod that fails its probe leaves the Service, and comes back when it passes. Nobody notices.
func TestS13Readiness(t *testing.T) {
	s := newStage(t, 3)
	k := s.startKubelet()
	s.startAgents()
	kubia := s.createService(web("kubia"))
	s.createReplicas("kubia", 3)
	pods := s.pods(s.namespace, "kubia", 3)
	to := clusterIP(kubia, 80)
	s.wantServing(t, to, appPort, pods...)
	load := underLoad(s, to, func() {
		for range 2 {
			if err := k.setReady(s.namespace, pods[0].Name, pods[0], false); err != nil {
				t.Fatal(err)
			}
			s.wantServing(t, to, appPort, pods[1:]...)
			if got, lost := s.clients()[0].Spread(to, 8); got[pods[0].Name] > 0 || len(lost) > 0 {
				t.Errorf("while %s fails its probe: answered by %v, lost %v", pods[0].Name, got, lost)
			}
			if err := k.setReady(s.namespace, pods[0].Name, pods[0], true); err != nil {
				t.Fatal(err)
			}
			s.wantServing(t, to, appPort, pods...)
		}
	})
	wantNone(s, "readiness lost and won twice", to, load)
}

// A rolling update of a Deployment under load: the controllers make and end the pods, the lab runs them. No request
// is lost. The control is the same with applications that are killed at once.
func TestRollingUpdate(t *testing.T) {
	s := newStage(t, 3)
	k := s.startKubelet()
	s.startAgents()
	kubia := s.createService(web("kubia"))
	s.createDeployment(s.namespace, deployment("kubia", 3, podSpec("")))
	old := s.pods(s.namespace, "kubia", 3)
	to := clusterIP(kubia, 80)
	s.wantServing(t, to, appPort, old...)
	var fresh []*lab.Pod
	rollOut := func(what string) lab.LoadReport {
		start := time.Now()
		load := underLoad(s, to, func() {
			s.rollOut(s.namespace, "kubia", what)
			fresh = s.rolledOut(s.namespace, "kubia", 3)
			s.wantServing(t, to, appPort, fresh...)
		})
		t.Logf("rolled out after %s: %s", time.Since(start).Round(time.Second), load)
		return load
	}
	if load := rollOut("second"); load.Lost > 0 {
		t.Errorf("the rolling update lost requests: %s", load)
	}
	for _, p := range fresh {
		for _, o := range old {
			if p.Name == o.Name {
				t.Errorf("%s is still there", p.Name)
			}
		}
	}
	hits(t, s.clients()[0], to, fresh...)
	k.setLinger(-1)
	if load := rollOut("third"); load.Lost == 0 {
		t.Errorf("the control lost nothing: %s", load)
	}
}
