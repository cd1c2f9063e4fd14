package sync

import (
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// said records Events, a line each.
type said []string

func (s *said) Warn(about cluster.ID, reason, note string) {
	*s = append(*s, strings.Join([]string{about.String(), reason, note}, " | "))
}

func (s *said) take() []string {
	lines := *s
	*s = nil
	return lines
}

// newEventRig is a node whose Events are heard. Its addresses are 192.0.2.7 and, beside its Node object, 203.0.113.9.
// It has a Node object of its own unless there is one among the objects.
func newEventRig(t *testing.T, opt desk.Options, objs ...any) (*healthRig, *said) {
	r := &healthRig{stepper: newStepper(), t: t, registry: metrics.NewKubeRegistry()}
	events := &said{}
	r.health = healthz.New(healthz.Options{Registry: r.registry, Now: func() time.Time { return r.now }})
	r.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7", "203.0.113.9")}
	r.opt = Options{Health: r.health, Events: events, Desk: opt}
	r.start(completeModel(append([]any{nodeNamed("192.0.2.7")}, objs...)...))
	r.pass(3 * time.Second)
	return r, events
}

// Every problem that a row wants told to users is told by one node: the one that it happens on, or else the one that
// has the Service's first ready endpoint (B53).
func TestB53WhoSpeaks(t *testing.T) {
	ranges := desk.Options{ExternalIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, Protected: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}
	svc := service("web", "10.96.0.1", 80)
	with := func(ips ...string) *corev1.Service {
		s := service("web", "10.96.0.1", 80)
		s.Spec.ExternalIPs = ips
		return s
	}
	noPort := func(addr string) *discoveryv1.EndpointSlice {
		s := slice(svc, addr)
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{})
		return s
	}
	vipOfOther := service("other", "10.96.0.9", 80)
	first, later := service("first", "10.96.0.2", 80), service("later", "10.96.0.3", 80)
	first.Spec.ExternalIPs, later.Spec.ExternalIPs = []string{"192.0.2.200"}, []string{"192.0.2.200"}
	for _, c := range []struct {
		name string
		opt  desk.Options
		objs []any
		want string // object and reason
	}{
		{"B4: a bad endpoint here", ranges, []any{svc, slice(svc, "10.244.2.1", "127.0.0.1@node1")}, "default/web | Loopback"},
		{"B4: one on another node", ranges, []any{svc, slice(svc, "10.244.1.1@node1", "127.0.0.1@node2")}, ""},
		{"B4: a bad port, first endpoint here", ranges, []any{svc, noPort("10.244.1.1@node1")}, "default/web | NoPort"},
		{"B4: a bad port, first endpoint elsewhere", ranges, []any{svc, noPort("10.244.1.1@node2")}, ""},
		{"B4: a virtual IP as endpoint here", ranges, []any{svc, vipOfOther, slice(svc, "10.96.0.9@node1")}, "default/web | VirtualIPEndpoint"},
		{"B4: a virtual IP as endpoint elsewhere", ranges, []any{svc, vipOfOther, slice(svc, "10.96.0.9@node2")}, ""},
		{"B14: first endpoint here", desk.Options{}, []any{with("192.0.2.99"), slice(svc, "10.244.1.1@node1", "10.244.2.1")}, "default/web | ExternalIPForbidden"},
		{"B14: first endpoint elsewhere", desk.Options{}, []any{with("192.0.2.99"), slice(svc, "10.244.1.1", "10.244.2.1@node1")}, ""},
		{"B14: no endpoint", desk.Options{}, []any{with("192.0.2.99")}, ""},
		{"B60: the loser, first endpoint here", ranges, []any{first, later, slice(later, "10.244.1.1@node1")}, "default/later | AddressTaken"},
		{"B60: the loser, first endpoint elsewhere", ranges, []any{first, later, slice(later, "10.244.1.1@node2"), slice(first, "10.244.1.1@node1")}, ""},
		{"B61: this node's address, no endpoint", ranges, []any{with("192.0.2.7")}, "default/web | NodeAddress"},
		{"B61: this node's address, first endpoint elsewhere", ranges, []any{with("192.0.2.7"), slice(svc, "10.244.1.1")}, "default/web | NodeAddress"},
		{"B61: protected, first endpoint here", ranges, []any{with("198.51.100.1"), slice(svc, "10.244.1.1@node1")}, "default/web | ProtectedAddress"},
		{"B61: protected, first endpoint elsewhere", ranges, []any{with("198.51.100.1"), slice(svc, "10.244.1.1")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, events := newEventRig(t, c.opt, c.objs...)
			got := ""
			for _, line := range events.take() {
				parts := strings.SplitN(line, " | ", 3)
				got += parts[0] + " | " + parts[1]
				if len(parts[2]) < 10 {
					t.Errorf("a note that says nothing: %q", parts[2])
				}
			}
			if got != c.want {
				t.Errorf("Events %q, want %q", got, c.want)
			}
			if n := r.value("ipvsproxy_problems"); n != 1 { // every node counts it
				t.Errorf("%v problems counted", n)
			}
			for _, o := range c.objs {
				if s, ok := o.(*corev1.Service); ok {
					r.model.DeleteService(s.Namespace, s.Name)
				}
			}
			r.pass(3 * time.Second)
			if n := r.value("ipvsproxy_problems"); n != 0 {
				t.Errorf("all gone, and %v problems", n)
			}
			if len(r.loop.tell.raised)+len(r.loop.tell.counted)+len(r.loop.tell.told) != 0 {
				t.Errorf("all gone, and something is remembered: %v %v %v", r.loop.tell.raised, r.loop.tell.counted, r.loop.tell.told)
			}
		})
	}
}

// An Event is put once while its problem lasts, and again when it has changed or come back.
func TestB53Once(t *testing.T) {
	svc := service("web", "10.96.0.1", 80)
	r, events := newEventRig(t, desk.Options{})
	step := func(what string, want int, objs ...any) {
		t.Helper()
		give(r.model, objs...)
		r.pass(3 * time.Second)
		if got := events.take(); len(got) != want {
			t.Errorf("%s: %d Events, want %d: %q", what, len(got), want, got)
		}
	}
	step("it comes", 1, svc, slice(svc, "127.0.0.1@node1", "10.244.1.1@node1"))
	step("another endpoint", 0, slice(svc, "127.0.0.1@node1", "10.244.1.1@node1", "10.244.1.2@node1"))
	svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	step("the Service changes", 0, svc)
	step("one more of the kind", 1, slice(svc, "127.0.0.1@node1", "127.0.0.2@node1", "10.244.1.1@node1"))
	step("it is mended", 0, slice(svc, "10.244.1.1@node1"))
	step("it comes back as it was", 1, slice(svc, "127.0.0.1@node1", "127.0.0.2@node1", "10.244.1.1@node1"))
	step("one of them goes", 1, slice(svc, "127.0.0.1@node1", "10.244.1.1@node1"))

	external := service("web", "10.96.0.1", 80)
	external.Spec.ExternalIPs = []string{"192.0.2.99"}
	step("the first endpoint is here", 1, external, slice(svc, "10.244.1.1@node1"))
	step("the first endpoint moves away", 0, slice(svc, "10.244.1.0@node2", "10.244.1.1@node1"))
	step("and back", 0, slice(svc, "10.244.1.1@node1"))

	many := []string{}
	for i := range 4 {
		many = append(many, "127.0.0."+strings.Repeat("1", i%3+1)+strings.Repeat("x", 300)+"@node1")
	}
	give(r.model, slice(svc, many...))
	r.pass(time.Second)
	for _, line := range events.take() {
		if _, note, _ := strings.Cut(line, " | "); len(note) > noteLimit+40 {
			t.Errorf("a note of %d bytes", len(note))
		}
	}
}

// Every reason is explained to users.
func TestReasonsDocs(t *testing.T) {
	docs, err := os.ReadFile("../../docs/events.md")
	if err != nil {
		t.Fatal(err)
	}
	known := regexp.MustCompile(`\w+`).FindAllString(string(docs), -1)
	for _, file := range []string{"desk/problem.go", "../cluster/problem.go"} {
		code, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		reasons := regexp.MustCompile(`\tReason\w+ += "(\w+)"`).FindAllStringSubmatch(string(code), -1)
		if len(reasons) < 8 {
			t.Errorf("%s: %d reasons, so they are written in another way now", file, len(reasons))
		}
		for _, r := range reasons {
			if !slices.Contains(known, r[1]) {
				t.Errorf("docs/events.md does not speak of %s", r[1])
			}
		}
	}
}

// A scheduler that the kernel lacks is this node's affair: an Event on the Node (B43).
func TestB53Node(t *testing.T) {
	svc := service("web", "10.96.0.1", 80)
	r, events := newEventRig(t, desk.Options{Scheduler: "nq"}, svc, slice(svc, "10.244.2.1"))
	want := []string{"/ | SchedulerMissing | the kernel of this node lacks the scheduler nq: rr serves in its place"}
	if got := events.take(); !slices.Equal(got, want) {
		t.Errorf("Events %q, want %q", got, want)
	}
	r.wantValue("a scheduler is missing", 1, "ipvsproxy_problems", "reason", "SchedulerMissing")
}
