package sync

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// bigObject is a Service of some size with which something is wrong in so many places. Those that it quarrels with are
// there before it.
type bigObject struct {
	name string
	objs func(n int) (before, big []any)
	// places is how many things are wrong with it at a size.
	places func(n int) int
}

func numbered(first byte, i int) string {
	return netip.AddrFrom4([4]byte{first, byte(i >> 16), byte(i >> 8), byte(i)}).String()
}

// slicesOf are a Service's EndpointSlices with its endpoints from one number to another, so many each.
func slicesOf(svc *corev1.Service, each, from, to int, addr func(int) string) (objs []any) {
	for at := from; at < to; at += each {
		var addrs []string
		for i := at; i < min(at+each, to); i++ {
			addrs = append(addrs, addr(i))
		}
		s := slice(svc, addrs...)
		s.Name = fmt.Sprintf("%s-%d", svc.Name, at)
		objs = append(objs, s)
	}
	return objs
}

func bigObjects() []bigObject {
	all := func(n int) int { return n }
	return []bigObject{
		{"external IPs that are refused", func(n int) (before, big []any) {
			svc := service("web", "10.96.0.1", 80)
			for i := range n {
				svc.Spec.ExternalIPs = append(svc.Spec.ExternalIPs, numbered(198, i))
			}
			return nil, []any{slice(svc, "10.244.1.5@node1"), svc}
		}, all},
		{"ports that are another's", func(n int) (before, big []any) {
			owner, svc := balancer("owner", "10.96.0.2", "203.0.113.1", 1), balancer("web", "10.96.0.1", "203.0.113.1", 2)
			for i := range n {
				for _, s := range []*corev1.Service{owner, svc} {
					s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("p%d", i), Port: int32(i + 1)})
				}
			}
			return []any{owner}, []any{slice(svc, "10.244.1.5@node1"), svc}
		}, all},
		{"endpoints that are virtual IPs", func(n int) (before, big []any) {
			owner, svc := service("owner", "10.96.0.2", 80), service("web", "10.96.0.1", 80)
			for i := range n {
				owner.Spec.ExternalIPs = append(owner.Spec.ExternalIPs, numbered(20, i))
			}
			return []any{owner}, append(slicesOf(svc, 1000, 0, n, func(i int) string { return numbered(20, i) + "@" }), slice(svc, "10.244.1.5@node1"), svc)
		}, all},
		{"endpoints that are loopback addresses", func(n int) (before, big []any) {
			svc := service("web", "10.96.0.1", 80)
			return nil, append(slicesOf(svc, 1000, 0, n, func(i int) string { return numbered(127, i+1) + "@node1" }), slice(svc, "10.244.1.5@node1"), svc)
		}, all},
		{"ports with hints for nobody", func(n int) (before, big []any) {
			svc, bare := service("web", "10.96.0.1"), service("web", "10.96.0.1")
			for i := range n {
				name := fmt.Sprintf("p%d", i)
				svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: name, Port: int32(i + 1)})
				s := slice(bare, "10.244.1.5@node1")
				s.Name, s.Ports = svc.Name+"-"+name, []discoveryv1.EndpointPort{{Name: &name, Port: &svc.Spec.Ports[i].Port}}
				s.Endpoints[0].Hints = &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: "nowhere-" + name}}}
				big = append(big, s)
			}
			return nil, append(big, svc)
		}, func(n int) int { return n - 1 }}, // one port gets an endpoint without a hint
	}
}

// effort is what hearing of an object costs.
type effort struct {
	bytes uint64
	took  time.Duration
	line  int // bytes of the longest line of the log
	note  int // of the longest Event
	lines, notes,
	problems int
	last string // note of the last Event
}

func (e effort) String() string {
	return fmt.Sprintf("%v, %d KB allocated, %d lines of %d bytes at most, %d Events of %d bytes at most, %d problems counted", e.took.Round(time.Microsecond), e.bytes>>10, e.lines, e.line, e.notes, e.note, e.problems)
}

// processorTime is what this process has had of the processors so far: others on the machine do not count.
func processorTime() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		panic(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// hear lets a node hear of an object of some size, and of one more endpoint of it.
func (o bigObject) hear(t *testing.T, n int) (is effort) {
	before, big := o.objs(n)
	r, events := newEventRig(t, desk.Options{ExternalIPs: []netip.Prefix{netip.MustParsePrefix("20.0.0.0/8")}}, before...)
	core, logs := observer.New(zap.WarnLevel)
	r.loop.tell.log = zap.New(core)
	events.take()
	var was, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&was)
	began := processorTime()
	give(r.model, big...)
	r.settle()
	more := slice(service("web", "10.96.0.1", 80), "10.244.1.6@node1")
	more.Name = "web-more"
	give(r.model, more)
	r.settle()
	is.took = processorTime() - began
	runtime.ReadMemStats(&now)
	is.bytes = now.TotalAlloc - was.TotalAlloc
	for _, l := range logs.All() {
		is.lines++
		is.line = max(is.line, len(l.Message)+len(fmt.Sprint(l.ContextMap())))
	}
	for _, note := range events.take() {
		is.notes++
		is.note, is.last = max(is.note, len(note)), note
	}
	is.problems = int(r.value("ipvsproxy_problems"))
	return is
}

// B90, B94: what it costs to hear of an object grows with its size and no faster, and what is said of it does not grow:
// the first few places are named and the others counted.
func TestB90BigObjects(t *testing.T) {
	const small, large = 1000, 10_000
	for _, o := range bigObjects() {
		t.Run(strings.ReplaceAll(o.name, " ", "_"), func(t *testing.T) {
			few, many := o.hear(t, small), o.hear(t, large)
			t.Logf("%6d: %v", small, few)
			t.Logf("%6d: %v", large, many)
			if many.bytes > 15*few.bytes {
				t.Errorf("allocates %d times as much for a Service %d times as large", many.bytes/few.bytes, large/small)
			}
			// Sorting takes a little more, and caches miss; what is compared with each other takes a hundred times as long.
			for try := 0; many.took > 30*few.took && try < 3; try++ {
				few, many = o.hear(t, small), o.hear(t, large)
			}
			if many.took > 30*few.took {
				t.Errorf("takes %v, and %v for a Service a tenth the size", many.took, few.took)
			}
			if many.line > 2048 || many.lines > 2 || many.lines == 0 {
				t.Errorf("the log has %d lines, the longest of %d bytes", many.lines, many.line)
			}
			if many.notes != many.lines || many.note > 1024 || !strings.Contains(many.last, "more like it") {
				t.Errorf("%d Events, the longest of %d bytes: %q", many.notes, many.note, many.last)
			}
			if want := o.places(large); many.problems != want {
				t.Errorf("counts %d problems, want %d", many.problems, want)
			}
		})
	}
}

// B94: an address that stands on every node's interfaces is no reason for every node to speak. NodeLocal DNSCache puts the
// ClusterIP of the cluster's DNS on an interface: no Service with a node port misses it there. Of a load balancer's address
// that stands on all nodes only the node with the first ready endpoint speaks.
func TestB94AddressOnEveryNode(t *testing.T) {
	for _, c := range []struct {
		name, local string
		endpoint    string
		want        int
	}{
		{"a ClusterIP", "10.96.0.10", "10.244.1.5@node1", 0},
		{"a load balancer's address, the first endpoint here", "203.0.113.1", "10.244.1.5@node1", 1},
		{"a load balancer's address, the first endpoint elsewhere", "203.0.113.1", "10.244.2.5@node2", 0},
		{"the Node's own address, the first endpoint elsewhere", "192.0.2.7", "10.244.2.5@node2", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dns, owner := service("dns", "10.96.0.10", 53), balancer("owner", "10.96.0.11", "203.0.113.1", 1, 30080)
			older, web := nodePorts(service("older", "10.96.0.12", 80), 30080), nodePorts(service("web", "10.96.0.1", 80), 30080)
			web.CreationTimestamp = metav1.Unix(9, 0)
			r := newStepper()
			r.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7", c.local)}
			events := &said{}
			r.opt = Options{Events: events}
			objs := []any{nodeNamed("192.0.2.7"), dns, owner, web, slice(web, c.endpoint)}
			if c.local == "192.0.2.7" {
				objs = append(objs, older)
			}
			r.start(completeModel(objs...))
			r.pass(3 * time.Second)
			if got := events.take(); len(got) != c.want {
				t.Errorf("%d Events, want %d: %q", len(got), c.want, got)
			}
		})
	}
}
