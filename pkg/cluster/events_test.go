package cluster

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/flowcontrol"
)

// sender has the Events of a source whose clock is the test's.
type sender struct {
	*Events
	f        *fakeAPI
	ahead    time.Duration
	rejected []error
}

func newSender(t *testing.T) *sender {
	t.Helper()
	f := newFakeAPI(t)
	m := NewModel(ownNode)
	m.SetService(apiService("web", "10.96.0.1"))
	k, err := NewKubernetes(f.connection(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &sender{Events: k.events, f: f}
	start := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	s.now = func() time.Time { return start.Add(s.ahead) }
	s.limit = flowcontrol.NewTokenBucketRateLimiter(eventsAt, eventBurst)
	s.Events.rejected = func(err error) { s.rejected = append(s.rejected, err) }
	return s
}

// stored are the Events that the API server has, in short, and the patches.
func (s *sender) stored() (out []string) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	for _, e := range s.f.stored {
		count := int32(1)
		if e.Series != nil {
			count = e.Series.Count
		}
		out = append(out, fmt.Sprintf("%s %s %s x%d", e.Regarding.Name, e.Reason, e.Note, count))
	}
	return append(out, s.f.patches...)
}

func (s *sender) expect(t *testing.T, want ...string) {
	t.Helper()
	s.write(t.Context())
	if diff := cmp.Diff(want, s.stored()); diff != "" {
		t.Fatalf("Events (-want +got):\n%s", diff)
	}
}

// TestB53Event: the Event is one that the API server takes, about the Service by
// its UID.
func TestB53Event(t *testing.T) {
	s := newSender(t)
	s.Warn(web, "AddressTaken", "10.0.0.1 belongs to another")
	s.write(t.Context())
	want := &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("web.%x", s.now().UnixNano())},
		EventTime:           metav1.NewMicroTime(s.now()),
		ReportingController: "ipvs-proxy", ReportingInstance: "ipvs-proxy-own", Action: "Serve", Type: corev1.EventTypeWarning,
		Reason: "AddressTaken", Note: "10.0.0.1 belongs to another",
		Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: "default", Name: "web", UID: "0a1b2c3d-0000-4000-8000-000000000001"},
	}
	if len(s.f.stored) != 1 {
		t.Fatalf("%d Events", len(s.f.stored))
	}
	if diff := cmp.Diff(want, s.f.stored[0], cmpopts.EquateApproxTime(time.Microsecond), cmpopts.IgnoreTypes(metav1.TypeMeta{})); diff != "" {
		t.Errorf("Event (-want +got):\n%s", diff)
	}
}

// TestB53NodeEvent: the zero ID is the own Node.
func TestB53NodeEvent(t *testing.T) {
	s := newSender(t)
	s.Warn(ID{}, "SchedulerMissing", "the kernel lacks nq")
	s.write(t.Context())
	if len(s.f.stored) != 1 {
		t.Fatalf("%d Events", len(s.f.stored))
	}
	got := s.f.stored[0]
	if want := (corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: "own", UID: "own"}); got.Regarding != want {
		t.Errorf("about %+v, want %+v", got.Regarding, want)
	}
	if got.Namespace != "default" || !strings.HasPrefix(got.Name, "own.") {
		t.Errorf("it is %s/%s", got.Namespace, got.Name)
	}
}

// TestB53Repeated: what is said again becomes a count, at most once in 5 min,
// and a new Event when the API server has forgotten the old one.
func TestB53Repeated(t *testing.T) {
	s := newSender(t)
	for range 3 {
		s.Warn(web, "R", "note")
	}
	s.expect(t, "web R note x3")
	for range 1000 {
		s.Warn(web, "R", "note")
	}
	s.expect(t, "web R note x3")
	s.ahead += eventRepeat
	name := s.f.stored[0].Name
	last := s.now().Add(-eventRepeat).Format("2006-01-02T15:04:05.000000Z07:00")
	patch := fmt.Sprintf(`/apis/events.k8s.io/v1/namespaces/default/events/%s {"series":{"count":1003,"lastObservedTime":"%s"}}`, name, last)
	s.expect(t, "web R note x3", patch)
	s.ahead += eventRepeat
	s.expect(t, "web R note x3", patch) // nobody said it again

	s.f.refuse = func(r *http.Request) *metav1.Status {
		if r.Method == http.MethodPatch {
			return &metav1.Status{Status: "Failure", Code: 404, Reason: metav1.StatusReasonNotFound}
		}
		return nil
	}
	s.Warn(web, "R", "note")
	s.expect(t, "web R note x3", "web R note x1004", patch)

	s.Warn(web, "R", "another note")
	s.expect(t, "web R note x3", "web R note x1004", patch)
	s.ahead += eventRepeat
	s.expect(t, "web R note x3", "web R note x1004", "web R another note x1", patch)

	s.ahead += 3 * eventRepeat
	if s.due(); len(s.series) > 0 {
		t.Errorf("%d things are remembered that nobody says any more", len(s.series))
	}
}

// TestB53Bounded: a flood of Events costs neither memory nor the API server
// more than the limits, and Warn does not wait for anybody.
func TestB53Bounded(t *testing.T) {
	s := newSender(t)
	for i := range 3 * eventSeries {
		s.Warn(ID{"default", fmt.Sprintf("s%d", i)}, "R", strings.Repeat("ä", noteLimit))
	}
	if len(s.series) != eventSeries {
		t.Errorf("%d things in memory", len(s.series))
	}
	s.write(t.Context())
	if n := len(s.stored()); n < eventBurst || n > eventBurst+2 {
		t.Errorf("%d Events at once, want %d", n, eventBurst)
	}
	if n := len(s.f.stored[0].Note); n > noteLimit {
		t.Errorf("a note of %d bytes", n)
	}
}

// TestB53Refused: an API server that is away gets the Event later; one that
// refuses it is not asked again, and that is told.
func TestB53Refused(t *testing.T) {
	s := newSender(t)
	var code atomic.Int32
	s.f.refuse = func(*http.Request) *metav1.Status {
		if c := code.Load(); c != 0 {
			return &metav1.Status{Status: "Failure", Code: c, Message: "no"}
		}
		return nil
	}
	code.Store(http.StatusInternalServerError)
	s.Warn(web, "R", "note")
	s.expect(t)
	code.Store(0)
	s.expect(t)
	s.ahead += 10 * time.Second
	s.expect(t, "web R note x1")

	code.Store(http.StatusForbidden)
	s.Warn(web, "Q", "note")
	s.expect(t, "web R note x1")
	code.Store(0)
	s.ahead += time.Hour
	s.expect(t, "web R note x1")
	if len(s.rejected) != 1 || !strings.Contains(s.rejected[0].Error(), "no") {
		t.Errorf("told: %v", s.rejected)
	}
}

// TestB53WhileRunning: what is said while the source runs arrives by itself.
func TestB53WhileRunning(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("web", "10.96.0.1"))
	o := follow(t, f.connection(), ownNode)
	o.synced()
	o.source.Events().Warn(web, "R", "note")
	eventually(t, "an Event", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.stored) == 1
	})
}
