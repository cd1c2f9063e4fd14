package sync

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
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
