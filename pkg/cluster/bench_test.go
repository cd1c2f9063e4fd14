package cluster

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// filled is a Model of n Services with ten endpoints each.
func filled(n int) *Model {
	m := NewModel(Options{NodeName: "node-1"})
	for i := range n {
		m.SetService(testService(func(s *corev1.Service) {
			s.Name, s.Spec.ClusterIPs = fmt.Sprint("svc-", i), []string{fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255)}
		}))
		m.SetSlice(tenEndpoints(i, 0))
	}
	m.Take()
	return m
}

func tenEndpoints(i, generation int) *discoveryv1.EndpointSlice {
	return testSlice(fmt.Sprintf("svc-%d-abcde", i), func(s *discoveryv1.EndpointSlice) {
		s.Labels[discoveryv1.LabelServiceName] = fmt.Sprint("svc-", i)
		s.Endpoints = nil
		for j := range 10 {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("10.%d.%d.%d", j, i>>8&255, i&255)},
				NodeName:  new(fmt.Sprint("node-", (i+j+generation)%500)), Zone: new(fmt.Sprint("zone-", j%3)),
			})
		}
	})
}

// The test of proportion: an event costs the same whatever else there is.
func BenchmarkEvent(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := filled(n)
			versions := []*discoveryv1.EndpointSlice{tenEndpoints(5, 0), tenEndpoints(5, 1)}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				m.SetSlice(versions[i%2])
				dirty, _, _ := m.Take()
				for _, id := range dirty {
					m.Get(id)
				}
			}
		})
	}
}

// The memory of 10,000 Services with 100,000 endpoints.
func BenchmarkMemory(b *testing.B) {
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		m := filled(10_000)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB")
		runtime.KeepAlive(m)
	}
}

// A file of 1,000 Services as kubectl prints it.
func BenchmarkParseFile(b *testing.B) {
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, "---\n%s---\n%s", serviceText(fmt.Sprint("svc-", i), "10.96.0.1"),
			sliceText(fmt.Sprint("svc-", i, "-x"), fmt.Sprint("svc-", i), "10.1.0.1", "10.1.0.2", "10.1.0.3"))
	}
	b.SetBytes(int64(text.Len()))
	for b.Loop() {
		parseFile("x.yaml", []byte(text.String()), Options{})
	}
}
