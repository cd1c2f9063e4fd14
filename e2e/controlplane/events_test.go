package controlplane

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B53: what a Service may not have its owner hears of by one Event that the API server took, from one of the three
// nodes, about this very Service; and not again while nothing about it changes. Its ClusterIP serves all the same.
func TestB53Events(t *testing.T) {
	s := newStage(t, 3)
	s.startKubelet()
	s.startAgents()
	kubia := web("kubia")
	kubia.Spec.ExternalIPs = []string{"198.51.100.77"}
	kubia = s.createService(kubia)
	s.createReplicas("kubia", 3)
	pods := s.pods(s.namespace, "kubia", 3)
	s.wantServing(t, clusterIP(kubia, 80), appPort, pods...)
	var told []eventsv1.Event
	lab.Eventually(t, 30*time.Second, "an Event", func() (err error) {
		if told, err = s.eventsOn(kubia); err == nil && len(told) == 0 {
			err = fmt.Errorf("none on Service %s/%s", kubia.Namespace, kubia.Name)
		}
		return err
	})
	e := told[0]
	t.Logf("%s %s of %s, %s: %s", e.Type, e.Reason, e.ReportingController, e.ReportingInstance, e.Note)
	if e.Reason != "ExternalIPForbidden" || e.Type != corev1.EventTypeWarning || e.Regarding.UID != kubia.UID {
		t.Errorf("Event %+v; want a warning, ExternalIPForbidden, about the Service with UID %s", e, kubia.UID)
	}
	// All nodes have seen this Service again when they serve one that came after.
	kubia.Labels = map[string]string{"changed": "yes"}
	if _, err := s.api.CoreV1().Services(s.namespace).Update(s.ctx, kubia, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	later := web("later")
	later.Spec.Selector = kubia.Spec.Selector
	s.wantServing(t, clusterIP(s.createService(later), 80), appPort, pods...)
	if told, err := s.eventsOn(kubia); err != nil || len(told) != 1 {
		t.Errorf("%d Events, %v; want one: %+v", len(told), err, told)
	}
}

// eventsOn lists the agents' Events about a Service; controllers have theirs.
func (s *stage) eventsOn(svc *corev1.Service) (about []eventsv1.Event, err error) {
	list, err := s.api.EventsV1().Events(svc.Namespace).List(s.ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, e := range list.Items {
		if e.Regarding.Kind == "Service" && e.Regarding.Name == svc.Name && e.ReportingController == "ipvs-proxy" {
			about = append(about, e)
		}
	}
	return about, nil
}
