package controlplane

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// How many Services TestUpstreamServiceLatency makes, and how many of them at a time.
const (
	latencyServices = 200
	latencyAtATime  = 10
)

// TestUpstreamServiceLatency: how long after a Service was made its EndpointSlice is there, and a client has an answer
// through its ClusterIP: the asker begins as soon as the Service is made, and asks until it is answered.
func TestUpstreamServiceLatency(t *testing.T) {
	s := newStage(t, 3)
	s.startKubelet()
	s.startAgents()
	s.createPod("app", map[string]string{"app": "app"}, s.w.Node(2))
	pod := s.pods(s.namespace, "app", 1)[0]
	sliced := s.watchSlices()
	clients := s.clients()
	var mu sync.Mutex
	var slice, answer []time.Duration
	work := make(chan int)
	var wg sync.WaitGroup
	for range latencyAtATime {
		wg.Go(func() {
			for i := range work {
				svc := web(fmt.Sprintf("latency-%d", i))
				svc.Spec.Selector = map[string]string{"app": "app"}
				start := time.Now()
				svc, err := s.tryService(svc)
				if err != nil {
					t.Error(err)
					continue
				}
				answered, err := firstAnswer(clients[i%len(clients)], clusterIPs(svc, 80)[i%2], pod)
				if err != nil {
					t.Error(err)
					continue
				}
				at := sliced(svc.Name)
				mu.Lock()
				slice, answer = append(slice, at.Sub(start)), append(answer, answered.Sub(start))
				mu.Unlock()
			}
		})
	}
	for i := range latencyServices {
		work <- i
	}
	close(work)
	wg.Wait()
	wantLatencies(t, "EndpointSlice", slice)
	wantLatencies(t, "first answer", answer)
}

// wantLatencies compares with what upstream allows.
func wantLatencies(t *testing.T, what string, all []time.Duration) {
	t.Helper()
	if len(all) != latencyServices {
		t.Fatalf("%s: %d times, want %d", what, len(all), latencyServices)
	}
	slices.Sort(all)
	at := func(percent int) time.Duration { return all[len(all)*percent/100] }
	t.Logf("%s after the Service: p50 %s, p90 %s, p99 %s, longest %s", what, at(50), at(90), at(99), all[len(all)-1])
	if at(50) >= 20*time.Second || at(90) >= 50*time.Second || at(99) >= 50*time.Second {
		t.Errorf("%s: want p50 below 20 s, p90 and p99 below 50 s", what)
	}
}

// firstAnswer asks until a Service answers.
func firstAnswer(c client, to netip.AddrPort, pod *lab.Pod) (time.Time, error) {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		r := c.Ask(to, lab.Timeout(300*time.Millisecond)) // a SYN that came too early is sent again after 1 s
		now := time.Now()
		switch {
		case r.Verdict == lab.Answered && r.Pod == pod.Name:
			return now, nil
		case now.After(deadline):
			return now, fmt.Errorf("%s asks %s: %s", c.name, to, r)
		}
	}
}

// watchSlices notes when the first endpoint of a Service is seen in a slice. The function that it returns waits for that.
func (s *stage) watchSlices() func(service string) time.Time {
	s.t.Helper()
	var mu sync.Mutex
	seen := map[string]chan time.Time{}
	of := func(service string) chan time.Time {
		mu.Lock()
		defer mu.Unlock()
		if seen[service] == nil {
			seen[service] = make(chan time.Time, 1)
		}
		return seen[service]
	}
	note := func(o any) {
		if e := o.(*discoveryv1.EndpointSlice); len(e.Endpoints) > 0 {
			select {
			case of(e.Labels[discoveryv1.LabelServiceName]) <- time.Now():
			default: // not the first
			}
		}
	}
	factory := informers.NewSharedInformerFactoryWithOptions(s.api, 0, informers.WithNamespace(s.namespace))
	informer := factory.Discovery().V1().EndpointSlices().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: note, UpdateFunc: func(_, o any) { note(o) }})
	if err != nil {
		s.t.Fatal(err)
	}
	factory.Start(s.ctx.Done())
	factory.WaitForCacheSync(s.ctx.Done())
	s.t.Cleanup(factory.Shutdown)
	return func(service string) time.Time {
		select {
		case at := <-of(service):
			return at
		case <-s.ctx.Done():
			return time.Time{}
		}
	}
}
