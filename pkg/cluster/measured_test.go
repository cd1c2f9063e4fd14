package cluster

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Metrics are kept of the Services that ask for it, or of all; of too many, of the first by name, whatever order they came
// in. The stamp tells when to ask again (row B72).
func TestMeasured(t *testing.T) {
	m := NewModel(Options{})
	put := func(name string, change ...func(*corev1.Service)) {
		s := testService(change...)
		s.Name = name
		m.SetService(s)
	}
	asks := func(s *corev1.Service) { s.Annotations = map[string]string{MetricsAnnotation: "true"} }
	expect := func(what string, all bool, most, left int, want ...string) {
		t.Helper()
		chosen, n, _ := m.Measured(all, most)
		var names []string
		for _, s := range chosen {
			names = append(names, s.ID.Name)
		}
		if !slices.Equal(names, want) || n != left {
			t.Errorf("%s: %q and %d left out, want %q and %d", what, names, n, want, left)
		}
	}
	stamp := m.MeasuredStamp()
	changes := func(what string, want bool) {
		t.Helper()
		_, _, now := m.Measured(true, 10)
		if changed := now != stamp; changed != want || now != m.MeasuredStamp() {
			t.Errorf("%s: the stamp changed: %t, want %t", what, changed, want)
		}
		stamp = now
	}
	for i := 3; i >= 0; i-- {
		put(fmt.Sprint("asks", i), asks)
		put(fmt.Sprint("not", i))
	}
	put("others", asks, func(s *corev1.Service) { s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "x"} })
	changes("eight Services", true)
	expect("those that ask", false, 10, 0, "asks0", "asks1", "asks2", "asks3")
	expect("too many", false, 3, 1, "asks0", "asks1", "asks2")
	expect("all", true, 6, 2, "asks0", "asks1", "asks2", "asks3", "not0", "not1")

	put("asks1", asks, func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"203.0.113.9"} })
	changes("another address", false)
	put("asks1", asks, func(s *corev1.Service) { s.Spec.Ports[0].Name = "web" })
	changes("a port renamed", true)
	put("asks1")
	changes("asked no more", true)
	put("others")
	changes("handed over", true)
	m.DeleteService("default", "asks0")
	changes("deleted", true)
	expect("afterwards", false, 10, 0, "asks2", "asks3")
}
