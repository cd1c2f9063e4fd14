package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
)

// What Events say of who sends them.
const (
	reportingController = "ipvs-proxy"
	eventAction         = "Serve"
)

// The limits of Events. With them a node writes at most 20 at once and 240 an
// hour, however much is wrong with however many Services.
const (
	eventBurst  = 20
	eventsAt    = float32(1) / 15 // a second, beyond the burst
	eventRepeat = 5 * time.Minute // between two writes about the same thing
	eventSeries = 500             // things told of at a time; a further one is dropped
	eventTries  = 6               // with 10 s to 5 min between them
	// noteLimit and instanceLimit are the API server's (validation of events.k8s.io/v1).
	noteLimit, instanceLimit = 1024, 128
)

// Events sends Events about Services (events.k8s.io/v1, type Warning). What is
// said again about a Service for the same reason within 5 min becomes the count
// of the Event that there is. client-go's broadcaster is not used: it comes with
// the types of all API groups, and limits nothing.
type Events struct {
	client   rest.Interface
	model    *Model
	instance string
	rejected func(error) // the API server takes none; called once
	wake     chan struct{}

	now   func() time.Time
	limit flowcontrol.RateLimiter

	mu     sync.Mutex
	series map[eventKey]*series
}

type eventKey struct {
	about  ID
	reason string
}

// series is what is said about one Service for one reason.
type series struct {
	note    string
	name    string // of the Event that was written; "": none yet
	count   int32  // how often it was said, since that was begun
	written int32  // the part of it that the API server knows
	last    time.Time
	due     time.Time // nothing is written before
	tries   int
}

func newEvents(client rest.Interface, m *Model, rejected func(error)) *Events {
	instance := reportingController + "-" + m.opt.NodeName
	return &Events{
		client: client, model: m, instance: instance[:min(len(instance), instanceLimit)], rejected: sync1(rejected),
		wake: make(chan struct{}, 1), now: time.Now, limit: flowcontrol.NewTokenBucketRateLimiter(eventsAt, eventBurst),
		series: map[eventKey]*series{},
	}
}

// sync1 lets only the first call through.
func sync1(f func(error)) func(error) {
	var once sync.Once
	return func(err error) { once.Do(func() { f(err) }) }
}

// Warn says that something is wrong with a Service: reason is one word for
// machines, of 128 bytes at most, note a sentence for people. It never blocks
// and may be called from anywhere; what is too much is dropped.
func (e *Events) Warn(about ID, reason, note string) {
	e.mu.Lock()
	key := eventKey{about, reason}
	s := e.series[key]
	if s == nil {
		if len(e.series) >= eventSeries {
			e.mu.Unlock()
			return
		}
		s = &series{}
		e.series[key] = s
	}
	if note = shorten(note); s.note != note { // an Event's note cannot be changed: another one, when it is time
		s.note, s.name, s.count, s.written = note, "", 0, 0
	}
	s.count++
	s.last = e.now()
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func shorten(note string) string {
	if len(note) > noteLimit {
		note = strings.ToValidUTF8(note[:noteLimit-len("…")], "") + "…"
	}
	return note
}

// run writes what is due until ctx ends.
func (e *Events) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		case <-timer.C:
		}
		timer.Reset(e.write(ctx))
	}
}

// write writes what is due, and returns when it wants to be called again.
func (e *Events) write(ctx context.Context) time.Duration {
	const rest = 15 * time.Second
	for _, key := range e.due() {
		if ctx.Err() != nil || !e.limit.TryAccept() {
			break
		}
		e.one(ctx, key)
	}
	return rest
}

// due lists what is to be written, what has waited longest first, and forgets
// what nobody has said for long.
func (e *Events) due() (keys []eventKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	for key, s := range e.series {
		switch {
		case s.count > s.written && !now.Before(s.due):
			keys = append(keys, key)
		case s.count == s.written && now.Sub(s.last) > 2*eventRepeat:
			delete(e.series, key)
		}
	}
	slices.SortFunc(keys, func(a, b eventKey) int {
		return cmp.Or(e.series[a].due.Compare(e.series[b].due), a.about.Compare(b.about), cmp.Compare(a.reason, b.reason))
	})
	return keys
}

// one writes one Event, or the count of the one that there is.
func (e *Events) one(ctx context.Context, key eventKey) {
	e.mu.Lock()
	s := *e.series[key]
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	name, err := s.name, error(nil)
	if name != "" {
		err = e.patch(ctx, key, s)
	}
	if name == "" || apierrors.IsNotFound(err) { // the API server forgets Events after an hour
		name, err = e.create(ctx, key, s)
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	now, is := e.now(), e.series[key]
	var status apierrors.APIStatus
	switch {
	case err == nil:
		is.tries, is.due = 0, now.Add(eventRepeat)
		if is.note == s.note {
			is.name, is.written = name, s.count
		}
	case is.tries+1 < eventTries && (!errors.As(err, &status) || status.Status().Code >= 500 || apierrors.IsTooManyRequests(err)):
		is.due = now.Add(min(10*time.Second<<is.tries, eventRepeat))
		is.tries++
	default: // dropped, as if it had been written
		is.tries, is.due, is.written = 0, now.Add(eventRepeat), is.count
		e.rejected(err)
	}
}

func (e *Events) create(ctx context.Context, key eventKey, s series) (name string, err error) {
	now := e.now()
	about := e.regarding(key.about)
	event := &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: namespaceOf(key.about), Name: fmt.Sprintf("%s.%x", about.Name, now.UnixNano())},
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: reportingController, ReportingInstance: e.instance, Action: eventAction,
		Reason: key.reason, Note: s.note, Type: corev1.EventTypeWarning,
		Regarding: about,
	}
	if s.count > 1 {
		event.Series = &eventsv1.EventSeries{Count: s.count, LastObservedTime: metav1.NewMicroTime(s.last)}
	}
	return event.Name, e.client.Post().Namespace(event.Namespace).Resource("events").Body(event).Do(ctx).Error()
}

// regarding is the Service of that name; for the zero ID the own Node, whose Events everybody looks for under its
// name in place of its UID (the kubelet's way, and kubectl's).
func (e *Events) regarding(id ID) corev1.ObjectReference {
	if id == (ID{}) {
		return corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: e.model.opt.NodeName, UID: types.UID(e.model.opt.NodeName)}
	}
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: id.Namespace, Name: id.Name, UID: types.UID(e.model.uid(id).String())}
}

// namespaceOf is where an Event about something goes: what has no namespace has its Events in default.
func namespaceOf(id ID) string {
	if id == (ID{}) {
		return metav1.NamespaceDefault
	}
	return id.Namespace
}

func (e *Events) patch(ctx context.Context, key eventKey, s series) error {
	patch, err := json.Marshal(map[string]any{"series": eventsv1.EventSeries{Count: s.count, LastObservedTime: metav1.NewMicroTime(s.last)}})
	if err != nil {
		return err
	}
	return e.client.Patch(types.MergePatchType).Namespace(namespaceOf(key.about)).Resource("events").Name(s.name).Body(patch).Do(ctx).Error()
}
