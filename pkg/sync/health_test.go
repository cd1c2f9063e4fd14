package sync

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// healthRig is a stepper whose health can be asked.
type healthRig struct {
	*stepper
	t        *testing.T
	health   *healthz.Health
	registry metrics.KubeRegistry
}

const healthTime = time.Minute

func newHealthRig(t *testing.T, objs ...any) *healthRig {
	r := &healthRig{stepper: newStepper(), t: t, registry: metrics.NewKubeRegistry()}
	r.health = healthz.New(healthz.Options{Registry: r.registry, Timeout: healthTime, Now: func() time.Time { return r.now }})
	r.opt.Health = r.health
	r.start(completeModel(objs...))
	return r
}

// healthyFor wants the node healthy at every moment of a time.
func (r *healthRig) healthyFor(what string, d time.Duration) {
	r.t.Helper()
	for end := r.now.Add(d); r.now.Before(end); {
		r.pass(time.Second)
		if !r.health.Healthy() {
			r.t.Fatalf("%s: not healthy %v before the end", what, end.Sub(r.now))
		}
	}
}

// sickAt wants the node healthy for as long as the time allows, and then no more.
func (r *healthRig) sickAt(what string, d time.Duration) {
	r.t.Helper()
	r.healthyFor(what, d-2*time.Second)
	r.pass(4 * time.Second)
	if r.health.Healthy() {
		r.t.Errorf("%s: healthy after %v", what, d)
	}
}

// value adds up a metric over the label values that are given, as name and value.
func (r *healthRig) value(name string, labels ...string) (sum float64) {
	r.t.Helper()
	all, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			got := map[string]string{}
			for _, l := range m.GetLabel() {
				got[l.GetName()] = l.GetValue()
			}
			for i := 0; i < len(labels); i += 2 {
				if got[labels[i]] != labels[i+1] {
					continue next
				}
			}
			switch {
			case m.Gauge != nil:
				sum += m.Gauge.GetValue()
			case m.Counter != nil:
				sum += m.Counter.GetValue()
			default:
				sum += float64(m.Histogram.GetSampleCount())
			}
		}
	}
	return sum
}

func (r *healthRig) wantValue(what string, want float64, name string, labels ...string) {
	r.t.Helper()
	if got := r.value(name, labels...); got != want {
		r.t.Errorf("%s: %s %v is %v, want %v", what, name, labels, got, want)
	}
}

// refuseIPVS has every write to a virtual server of some Keys fail; nil: of all.
func (r *healthRig) refuseIPVS(keys ...ipvs.Key) {
	r.door.fault = func(op ipvs.Op) fault {
		var k ipvs.Key
		switch o := op.(type) {
		case ipvs.AddServer:
			k = o.Key
		case ipvs.SetServer:
			k = o.Key
		case ipvs.AddReal:
			k = o.Key
		default:
			return fault{}
		}
		for _, bad := range keys {
			if k == bad {
				return fault{err: syscall.EINVAL}
			}
		}
		if len(keys) == 0 {
			return fault{err: syscall.EPERM}
		}
		return fault{}
	}
}

func tcp(addr string) ipvs.Key {
	return ipvs.Key{Addr: netip.MustParseAddr(addr), Port: 80, Proto: ipvs.TCP}
}

func pair(name, ip string) (svc *corev1.Service, objs []any) {
	svc = service(name, ip, 80)
	return svc, []any{svc, slice(svc, "10.244.2.10", "10.244.1.5@node1")}
}

// A kernel that refuses everything takes the node out of service after the time, at a start and later, and gives it
// back with the first write.
func TestI2KernelRefusesEverything(t *testing.T) {
	_, a := pair("a", "10.96.0.1")
	_, b := pair("b", "10.96.0.2")
	_, c := pair("c", "10.96.0.3")
	r := newHealthRig(t, append(a, b...)...)
	r.refuseIPVS()
	r.sickAt("at the start", healthTime)
	r.wantValue("two Services", 2, "ipvsproxy_frontends_failing", "ip_family", "IPv4")
	r.door.fault = nil
	r.pass(3 * time.Second)
	r.healthyFor("the kernel works again", 10*time.Minute)

	r.refuseIPVS()
	r.healthyFor("nothing is to be written", 10*time.Minute)
	give(r.model, c...)
	r.sickAt("one more Service", healthTime)
	r.door.fault = nil
	r.pass(3 * time.Second)
	r.healthyFor("the kernel works again", time.Minute)
	if r.value("ipvsproxy_kernel_errors_total", "errno", "EPERM") == 0 {
		t.Error("no EPERM was counted")
	}
}

// Objects that fail for good never do: neither one among others, nor one alone, nor several.
func TestI2ObjectsFail(t *testing.T) {
	_, a := pair("a", "10.96.0.1")
	_, b := pair("b", "10.96.0.2")
	_, c := pair("c", "10.96.0.3")
	for _, x := range []struct {
		name string
		objs []any
		bad  []ipvs.Key
	}{
		{"one alone", a, []ipvs.Key{tcp("10.96.0.1")}},
		{"one of three", append(append(a, b...), c...), []ipvs.Key{tcp("10.96.0.2")}},
		{"two of three", append(append(a, b...), c...), []ipvs.Key{tcp("10.96.0.2"), tcp("10.96.0.3")}},
	} {
		t.Run(x.name, func(t *testing.T) {
			r := newHealthRig(t, x.objs...)
			r.refuseIPVS(x.bad...)
			r.healthyFor(x.name, 5*healthTime)
			r.wantValue(x.name, float64(len(x.bad)), "ipvsproxy_frontends_failing")
			r.door.fault = nil
			r.pass(3 * time.Second)
			r.wantValue(x.name+", mended", 0, "ipvsproxy_frontends_failing")
			r.wantValue(x.name+", mended", 0, "ipvsproxy_queue_length")
		})
	}
}

// A kernel that cannot be read, and a set-up that fails, stop everything.
func TestI2KernelSilent(t *testing.T) {
	_, a := pair("a", "10.96.0.1")
	r := newHealthRig(t, a...)
	r.kernel.FailRead = func() error { return syscall.EBADF }
	r.sickAt("nothing can be read", healthTime)
	r.kernel.FailRead = nil
	r.pass(3 * time.Second)
	r.healthyFor("it can", time.Minute)
	r.kernel.FailRead = func() error { return syscall.EBADF }
	r.pass(time.Minute + healthTime + 5*time.Second) // until the next look at the set-up, and the time
	if r.health.Healthy() {
		t.Error("healthy, and the set-up fails")
	}
}

// A cluster that is not known yet is no work.
func TestI2SourceSilent(t *testing.T) {
	r := newHealthRig(t)
	r.start(newModel())
	r.healthyFor("no word from the source", 10*healthTime)
}

// The metrics of the loop's work say what it did.
func TestB52Work(t *testing.T) {
	a, objs := pair("a", "10.96.0.1")
	b := service("b", "fd00:96::1", 80)
	r := newHealthRig(t, append(objs, b)...)
	r.pass(3 * time.Second)
	const four, six = "IPv4", "IPv6"
	const k = "kubeproxy_sync_proxy_rules_"
	r.wantValue("started", 1, k+"duration_seconds", "ip_family", four)
	r.wantValue("started", 1, "kubeproxy_sync_full_proxy_rules_duration_seconds", "ip_family", four)
	r.wantValue("started", 1, "kubeproxy_sync_full_proxy_rules_duration_seconds", "ip_family", six)
	r.wantValue("a frontend", 1, "ipvsproxy_frontends", "ip_family", four)
	r.wantValue("a frontend", 1, "ipvsproxy_frontends", "ip_family", six)
	r.wantValue("two Services", 2, k+"service_changes_total")
	r.wantValue("a slice", 1, k+"endpoint_changes_total")
	r.wantValue("at rest", 0, k+"service_changes_pending")
	r.wantValue("virtual servers", 2, "ipvsproxy_kernel_writes_total", "operation", "add_virtual_server")
	r.wantValue("real servers", 2, "ipvsproxy_kernel_writes_total", "operation", "add_real_server")

	r.kernel.Conns[tcp("10.96.0.1")] = map[netip.AddrPort]ipvs.Conns{netip.MustParseAddrPort("10.244.2.10:8080"): {Active: 1}}
	give(r.model, slice(a, "10.244.1.5@node1"))
	r.pass(3 * time.Second)
	r.wantValue("an endpoint drains", 1, "ipvsproxy_draining_real_servers")
	r.wantValue("the IPv6 frontend is left alone", 1, k+"duration_seconds", "ip_family", six)
	r.kernel.Conns = map[ipvs.Key]map[netip.AddrPort]ipvs.Conns{}
	r.pass(10 * time.Second)
	r.wantValue("drained", 0, "ipvsproxy_draining_real_servers")

	delete(r.kernel.Servers, tcp("10.96.0.1"))
	r.pass(15 * time.Second)
	r.wantValue("a look found what is gone", 1, "ipvsproxy_audit_differences_total")
	r.model.DeleteService("default", "a")
	r.pass(3 * time.Second)
	r.wantValue("a is gone", 0, "ipvsproxy_frontends", "ip_family", four)
}

// The time of a change counts from when the control plane dates it until the kernel has confirmed all of it.
func TestB52NetworkProgramming(t *testing.T) {
	svc, objs := pair("a", "10.96.0.1")
	r := newHealthRig(t, objs...)
	r.now = time.Now() // the model goes by the real clock
	r.pass(3 * time.Second)
	const name = "kubeproxy_network_programming_duration_seconds"
	dated := func(at time.Time, addrs ...string) {
		s := slice(svc, addrs...)
		s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: at.Format(time.RFC3339Nano)}
		give(r.model, s)
	}
	dated(r.now, "10.244.2.10", "10.244.2.11")
	r.pass(time.Second)
	r.wantValue("a change", 1, name, "ip_family", "IPv4")
	dated(r.now, "10.244.2.10", "10.244.2.11")
	r.pass(time.Second)
	r.wantValue("nothing new", 1, name)
	dated(r.now.Add(-time.Hour), "10.244.2.10", "10.244.2.12")
	r.pass(time.Second)
	r.wantValue("from before the start", 1, name)

	r.refuseIPVS(tcp("10.96.0.1"))
	dated(r.now, "10.244.2.10", "10.244.2.13")
	dated(r.now, "10.244.2.10", "10.244.2.14")
	r.pass(30 * time.Second)
	r.wantValue("the kernel has not confirmed it", 1, name)
	r.door.fault = nil
	r.pass(3 * time.Second)
	r.wantValue("now it has: both changes", 3, name)
	r.wantValue("IPv6", 0, name, "ip_family", "IPv6")
	dated(r.now, "10.244.2.10", "10.244.2.15")
	r.model.DeleteSlice("default", "a-1")
	r.pass(3 * time.Second)
	r.wantValue("a slice that goes", 3, name)
	if len(r.loop.fare.awaited) > 0 {
		t.Errorf("still awaited: %v", r.loop.fare.awaited)
	}
}

// Services whose Local policies find no endpoint here, while others exist, are counted by policy and family.
func TestB52NoLocalEndpoints(t *testing.T) {
	inside, outside := service("inside", "10.96.0.1", 80, 81), nodePorts(service("outside", "10.96.0.2", 80), 30080)
	local := corev1.ServiceInternalTrafficPolicyLocal
	inside.Spec.InternalTrafficPolicy = &local
	outside.Spec.Type = corev1.ServiceTypeNodePort
	outside.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	r := newHealthRig(t, inside, outside)
	r.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7")}
	r.kernel.SetNode(r.kernel.Node)
	const name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
	wants := func(what string, internal, external float64) {
		t.Helper()
		r.pass(3 * time.Second)
		r.wantValue(what, internal, name, "traffic_policy", "internal", "ip_family", "IPv4")
		r.wantValue(what, external, name, "traffic_policy", "external", "ip_family", "IPv4")
		r.wantValue(what, 0, name, "ip_family", "IPv6")
	}
	wants("no endpoint at all", 0, 0)
	give(r.model, slice(inside, "10.244.2.1"), slice(outside, "10.244.2.1"))
	wants("endpoints elsewhere", 1, 1)
	give(r.model, slice(outside, "10.244.2.1", "10.244.1.1@node1"))
	wants("one here", 1, 0)
	r.model.DeleteService("default", "inside")
	wants("the other goes", 0, 0)
}

// Whether the node is one to send traffic to follows its Node object.
func TestB51NodeObject(t *testing.T) {
	_, objs := pair("a", "10.96.0.1")
	r := newHealthRig(t, objs...)
	code := func(what string, healthz int) {
		t.Helper()
		r.pass(3 * time.Second)
		for path, want := range map[string]int{"/healthz": healthz, "/livez": 200} {
			w := httptest.NewRecorder()
			r.health.HealthHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			if w.Code != want {
				t.Errorf("%s: %s %d, want %d: %s", what, path, w.Code, want, w.Body)
			}
		}
	}
	node := nodeNamed("192.0.2.7")
	code("no Node", 503)
	give(r.model, node)
	code("a Node", 200)
	node.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Effect: corev1.TaintEffectNoSchedule}}
	give(r.model, node)
	code("about to be removed", 503)
	node.Spec.Taints = nil
	give(r.model, node)
	code("to stay after all", 200)
	r.model.DeleteNode(thisNode)
	code("removed", 503)
	now := metav1.Now()
	node.DeletionTimestamp = &now
	give(r.model, node)
	code("being deleted", 503)
}

// Where healthCheckNodePorts are served (B22).
func TestB22Addresses(t *testing.T) {
	at := func(nodePorts desk.NodePortAddresses, local ipvs.Local) []netip.Addr {
		d := desk.New(newModel(), desk.Options{NodePorts: nodePorts})
		d.Move(cluster.Node{Name: thisNode}, local, nil, time.Time{})
		return d.CheckAddresses()
	}
	local := ipvs.Local{Addrs: addrsOf("192.0.2.1", "192.0.2.2"), Sources: addrsOf("192.0.2.1")}
	if got := at(desk.NodePortAddresses{}, local); len(got) != 2 {
		t.Errorf("everywhere: %s", got)
	}
	local.NoIPv6 = true
	if got := at(desk.NodePortAddresses{}, local); len(got) != 1 {
		t.Errorf("everywhere, without IPv6: %s", got)
	}
	if got := at(desk.NodePortAddresses{Primary: true}, local); !slices.Equal(got, addrsOf("192.0.2.1")) {
		t.Errorf("where node ports are: %s", got)
	}
}
