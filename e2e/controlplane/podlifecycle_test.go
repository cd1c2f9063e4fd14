package controlplane

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// TestUpstreamTerminatingPod: a pod that was asked to end and lingers is reached, at its own address and through the
// Service that has no other, and it reaches others, likewise; in both families.
func TestUpstreamTerminatingPod(t *testing.T) {
	s := newStage(t, 3)
	s.startKubelet().setLinger(5 * time.Minute) // the end of the test is theirs
	s.startAgents()
	one, two := s.createService(web("one")), s.createService(web("two"))
	s.createPod("one", map[string]string{"app": "one"}, s.w.Node(1))
	s.createPod("two", map[string]string{"app": "two"}, s.w.Node(2))
	ending, other := s.pods(s.namespace, "one", 1)[0], s.pods(s.namespace, "two", 1)[0]
	s.wantServing(t, clusterIP(two, 80), appPort, other)
	grace := int64(300)
	if err := s.api.CoreV1().Pods(s.namespace).Delete(s.ctx, ending.Name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		t.Fatal(err)
	}
	s.wantTerminating(one)
	t.Run("is reached", func(t *testing.T) {
		s.wantReached(t, append(s.clients(), client{"another pod", other.Host}), one, ending)
	})
	t.Run("reaches another", func(t *testing.T) {
		s.wantReached(t, []client{{"the pod that ends", ending.Host}}, two, other)
	})
	obj, err := s.api.CoreV1().Pods(s.namespace).Get(s.ctx, ending.Name, metav1.GetOptions{})
	if err != nil || obj.DeletionTimestamp == nil {
		t.Errorf("%s should still be there, about to end: %v", ending.Name, err)
	}
}

// wantReached: a pod answers these clients at its own addresses and at its Service's.
func (s *stage) wantReached(t *testing.T, clients []client, svc *corev1.Service, pod *lab.Pod) {
	t.Helper()
	for i, family := range []int{4, 6} {
		to := clusterIPs(svc, 80)[i]
		s.wantServing(t, to, appPort, pod)
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			for _, c := range clients {
				if c.Host != s.w.Client { // who has no way to pods
					hits(t, c, netip.AddrPortFrom(pod.Addr(family), appPort), pod)
				}
				hits(t, c, to, pod)
			}
		})
	}
}

// wantTerminating waits until the slices of a Service say of its only pod that it ends and serves.
func (s *stage) wantTerminating(svc *corev1.Service) {
	s.t.Helper()
	lab.Eventually(s.t, soon, svc.Name+" has an endpoint that ends", func() error {
		slices, err := s.slicesOf(svc)
		if err != nil {
			return err
		}
		for _, slice := range slices {
			for _, e := range slice.Endpoints {
				if c := e.Conditions; *c.Ready || !*c.Serving || !*c.Terminating {
					return fmt.Errorf("%s is ready: %t, serving: %t, terminating: %t", e.Addresses[0], *c.Ready, *c.Serving, *c.Terminating)
				}
			}
		}
		return nil
	})
}

// slicesOf are the EndpointSlices of a Service.
func (s *stage) slicesOf(svc *corev1.Service) ([]discoveryv1.EndpointSlice, error) {
	list, err := s.api.DiscoveryV1().EndpointSlices(svc.Namespace).List(s.ctx,
		metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + svc.Name})
	if err != nil {
		return nil, err
	}
	if len(list.Items) == 0 {
		return nil, fmt.Errorf("no EndpointSlice of Service %s/%s", svc.Namespace, svc.Name)
	}
	return list.Items, nil
}

// chosen is the gate of the pods of TestUpstreamReadinessGates.
const chosen corev1.PodConditionType = "example.com/chosen"

// TestUpstreamReadinessGates: two Deployments behind one Service, whose pods are ready once somebody says which colour
// is chosen. From blue to green and back no request is lost, and who is not chosen gets none.
func TestUpstreamReadinessGates(t *testing.T) {
	s := newStage(t, 3)
	s.startKubelet()
	s.startAgents()
	svc := web("shop")
	svc.Spec.Selector = map[string]string{"shop": "yes"}
	shop := clusterIPs(s.createService(svc), 80)
	pods := map[string][]*lab.Pod{}
	for _, colour := range []string{"blue", "green"} {
		spec := podSpec("")
		spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: chosen}}
		d := deployment(colour, 2, spec)
		d.Spec.Template.Labels["shop"] = "yes"
		s.createDeployment(s.namespace, d)
		pods[colour] = s.podsThatAre(corev1.ContainersReady, s.namespace, colour, 2)
	}
	served := func(by ...*lab.Pod) {
		for _, to := range shop {
			s.wantServing(t, to, appPort, by...)
		}
	}
	served() // all run, none is chosen
	s.choose(pods["blue"], corev1.ConditionTrue)
	served(pods["blue"]...)
	change := func(from, to string) {
		s.choose(pods[to], corev1.ConditionTrue)
		served(append(pods[from][:2:2], pods[to]...)...)
		s.choose(pods[from], corev1.ConditionFalse)
		served(pods[to]...)
		for _, c := range s.clients() {
			for _, at := range shop {
				if got, lost := c.Spread(at, 6); len(lost) > 0 || got[pods[to][0].Name]+got[pods[to][1].Name] != 6 {
					t.Errorf("%s asks %s after the change to %s: answered by %v, lost %v", c.name, at, to, got, lost)
				}
			}
		}
	}
	var loads [2]lab.LoadReport
	loads[0] = underLoad(s, shop[0], func() {
		loads[1] = underLoad(s, shop[1], func() {
			change("blue", "green")
			change("green", "blue")
		})
	})
	for i, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			if loads[i].Lost > 0 {
				t.Errorf("from blue to green and back: %s", loads[i])
			}
		})
		wantNone(s, "from blue to green and back", shop[i], loads[i])
	}
}

// choose opens or closes the gate of pods, as whoever changes from one colour to the other.
func (s *stage) choose(pods []*lab.Pod, to corev1.ConditionStatus) {
	s.t.Helper()
	patch := fmt.Appendf(nil, `{"status":{"conditions":[{"type":%q,"status":%q}]}}`, chosen, to)
	for _, p := range pods {
		_, err := s.api.CoreV1().Pods(s.namespace).Patch(s.ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		if err != nil {
			s.t.Fatal(err)
		}
	}
}
