package sync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// newPortRig is an event rig whose healthCheckNodePorts are served by this machine.
func newPortRig(t *testing.T, objs ...any) (*healthRig, *said) {
	t.Helper()
	r := &healthRig{stepper: newStepper(), t: t, registry: metrics.NewKubeRegistry()}
	events := &said{}
	r.health = healthz.New(healthz.Options{Registry: r.registry})
	r.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7"), NoIPv6: true}
	r.opt = Options{Health: r.health, Events: events}
	r.start(completeModel(append([]any{nodeNamed("192.0.2.7")}, objs...)...))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.health.ServeChecks(ctx, zap.NewNop()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r.pass(3 * time.Second)
	return r, events
}

// hold takes a free port of this machine.
func hold(t *testing.T) (net.Listener, int32) {
	t.Helper()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	return l, int32(l.Addr().(*net.TCPAddr).Port)
}

// checked is a Service with a healthCheckNodePort, created in a year.
func checked(name, ip string, port int32, year int) *corev1.Service {
	s := service(name, ip, 80)
	s.CreationTimestamp = metav1.NewTime(time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC))
	s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, port
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: strings.Replace(ip, "10.96.0", "203.0.113", 1)}}
	return s
}

// withoutLines leaves out the lines of a text that hold some words.
func withoutLines(text, words string) string {
	lines := slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(line string) bool { return strings.Contains(line, words) })
	return strings.Join(lines, "")
}

// says wants Events and the number of problems.
func (r *healthRig) says(what string, events *said, problems int, want ...string) {
	r.t.Helper()
	r.pass(3 * time.Second)
	if got := events.take(); !slices.Equal(got, want) {
		r.t.Errorf("%s: Events %q, want %q", what, got, want)
	}
	r.wantValue(what, float64(problems), "ipvsproxy_problems", "reason", "HealthCheckNodePort")
	r.wantValue(what, float64(problems), "ipvsproxy_problems")
}

// answeredFor waits until the port answers for a Service; "": until nobody does.
func (r *healthRig) answeredFor(what string, port int32, name string) {
	r.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	got := "?"
	for end := time.Now().Add(20 * time.Second); got != name && time.Now().Before(end); time.Sleep(time.Millisecond) {
		got = ""
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if _, rest, ok := strings.Cut(string(body), `"name": "`); ok && resp.StatusCode == http.StatusOK {
			got, _, _ = strings.Cut(rest, `"`)
		}
	}
	if got != name {
		r.t.Fatalf("%s: port %d answers for %q, want %q", what, port, got, name)
	}
}

// B22: a healthCheckNodePort that another process holds costs itself alone. The node says so, whichever has the first
// endpoint, once; and it answers when the process lets go of it.
func TestB22PortOfAnotherProcess(t *testing.T) {
	other, port := hold(t)
	defer other.Close()
	web := checked("web", "10.96.0.1", port, 2020)
	plain := checked("web", "10.96.0.1", 0, 2020)
	eps := slice(web, "10.244.0.1@node2", "10.244.1.1@node1")
	without, _ := newPortRig(t, plain, eps)
	r, events := newPortRig(t, web, eps)
	news := func(what string) {
		t.Helper()
		select {
		case <-r.health.CheckNews():
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: nothing new", what)
		}
	}
	// The goroutine has its say after the first decision or before it.
	if r.health.CheckFault("default", "web") == "" {
		news("the port is held")
	}
	event := fmt.Sprintf("default/web | HealthCheckNodePort | spec.healthCheckNodePort: %[1]d cannot be served on node node1: "+
		"listen tcp4 0.0.0.0:%[1]d: bind: address already in use", port)
	r.says("the port is held", events, 1, event)
	if got, want := withoutLines(dumpOf(r.kernel), fmt.Sprintf(":%d/tcp", port)), dumpOf(without.kernel); got != want {
		t.Errorf("the kernel holds\n%swant\n%s", got, want)
	}
	give(r.model, slice(web, "10.244.0.1@node2", "10.244.1.1@node1", "10.244.1.2@node1"))
	r.says("another endpoint", events, 1)
	select { // what came before the first decision
	case <-r.health.CheckNews():
	default:
	}
	wakes, another := hold(t)
	if err := errors.Join(other.Close(), wakes.Close()); err != nil {
		t.Fatal(err)
	}
	// Another Service's port has all tried again, before it is time.
	r.health.SetCheck("default", "another", healthz.Check{Port: uint16(another)})
	news("the port is free")
	r.says("the port is free", events, 0)
	r.answeredFor("the port is free", port, "web")
}

// B22: a port that another Service has, as its healthCheckNodePort or as a node port, is not served for the younger
// one, whichever came first; it is when the other lets go of it.
func TestB22PortOfAnotherService(t *testing.T) {
	free, port := hold(t)
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	first, later := checked("first", "10.96.0.1", port, 2020), checked("later", "10.96.0.2", port, 2021)
	r, events := newPortRig(t, later, slice(later, "10.244.1.2@node1"), slice(first, "10.244.1.1@node1"))
	r.says("alone", events, 0)
	r.answeredFor("alone", port, "later")
	event := fmt.Sprintf("default/later | HealthCheckNodePort | spec.healthCheckNodePort: %d ", port)

	give(r.model, first)
	r.says("an older one comes", events, 1, event+"belongs to Service default/first")
	r.answeredFor("an older one comes", port, "first")
	youngest := checked("third", "10.96.0.3", port, 2022)
	give(r.model, youngest)
	r.says("and a younger one, without endpoints", events, 2)
	r.model.DeleteService("default", "third")
	first.Spec.HealthCheckNodePort = 0
	give(r.model, first)
	r.says("the older one gives it up", events, 0)
	r.answeredFor("the older one gives it up", port, "later")

	node := service("node", "10.96.0.4", 80)
	node.Spec.Type, node.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, port
	give(r.model, node)
	r.says("it is a node port", events, 1, event+"is a node port of Service default/node")
	r.answeredFor("it is a node port", port, "")
	node.Spec.Ports[0].Protocol = corev1.ProtocolUDP
	give(r.model, node)
	r.says("it is one for UDP", events, 0)
	r.answeredFor("it is one for UDP", port, "later")
	for _, name := range []string{"first", "later", "node"} {
		r.model.DeleteService("default", name)
	}
	r.says("all gone", events, 0)
}

// B22: what is counted are the ready addresses of this node in all of the Service's slices, each once, as kube-proxy
// counts them: whether the Service has their ports or not, and virtual IPs too.
func TestB22WhatCounts(t *testing.T) {
	free, port := hold(t)
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	no, yes := false, true
	web, owner := checked("web", "10.96.0.1", port, 2020), service("owner", "10.96.0.7", 80)
	r, _ := newPortRig(t, owner, web, slice(web, "10.244.2.1"))
	named := func(name, portName string, addrs ...string) *discoveryv1.EndpointSlice {
		sl := slice(web, addrs...)
		sl.Name, sl.Ports[0].Name = name, &portName
		return sl
	}
	p80 := web.Spec.Ports[0].Name
	ending := named("web-1", p80, "10.244.1.1@node1")
	ending.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	unready := named("web-1", p80, "10.244.1.1@node1")
	unready.Endpoints[0].Conditions.Ready = &no
	portless := slice(web, "10.244.1.1@node1")
	portless.Ports = nil
	for _, c := range []struct {
		what   string
		slices []*discoveryv1.EndpointSlice
		want   string
	}{
		{"one here", []*discoveryv1.EndpointSlice{named("web-1", p80, "10.244.1.1@node1")}, "1"},
		{"of a port that the Service does not have", []*discoveryv1.EndpointSlice{named("web-1", "other", "10.244.1.1@node1", "10.244.1.2@node1")}, "2"},
		{"of two ports", []*discoveryv1.EndpointSlice{named("web-1", p80, "10.244.1.1@node1"), named("web-2", "other", "10.244.1.1@node1", "10.244.1.2@node1")}, "2"},
		{"elsewhere", []*discoveryv1.EndpointSlice{named("web-1", p80, "10.244.1.1@node2")}, "0"},
		{"one that ends", []*discoveryv1.EndpointSlice{ending}, "0"},
		{"one that ends, and is ready by another port", []*discoveryv1.EndpointSlice{ending, named("web-2", "other", "10.244.1.1@node1")}, "1"},
		{"one that is not ready", []*discoveryv1.EndpointSlice{unready}, "0"},
		{"one without a port", []*discoveryv1.EndpointSlice{portless}, "0"},
		{"a virtual IP", []*discoveryv1.EndpointSlice{named("web-1", p80, "10.96.0.7@node1")}, "1"},
	} {
		for _, name := range []string{"web-1", "web-2"} {
			r.model.DeleteSlice("default", name)
		}
		for _, sl := range c.slices {
			give(r.model, sl)
		}
		r.settle()
		if got := r.weight(port); got != c.want {
			t.Errorf("%s: %q count, want %s", c.what, got, c.want)
		}
	}
}

// weight is how many endpoints the answer at a port says that there are; it waits until somebody answers.
func (r *healthRig) weight(port int32) string {
	r.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port)); err == nil {
			_ = resp.Body.Close()
			return resp.Header.Get("X-Load-Balancing-Endpoint-Weight")
		}
	}
	r.t.Fatalf("nobody answers at port %d", port)
	return ""
}
