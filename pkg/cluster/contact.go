package cluster

import (
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// TroubleAPIServer: the API server cannot be reached, or does not give what is
// asked of it; the last state stays.
const TroubleAPIServer = "APIServer"

// contact knows how things stand between a source and its API server, and
// tells when that changes.
type contact struct {
	server string // for messages
	now    func() time.Time

	mu      sync.Mutex
	reports reporter
	began   time.Time
	heard   map[string]time.Time // by kind: when the API server last spoke of it
	faults  map[string]string    // by kind: why it does not answer; absent: it does
	reasons []string             // all that was wrong since it began to be wrong
	others  []Trouble            // of another sort
}

func newContact(server string, kinds []string, tell func(error)) *contact {
	c := &contact{server: server, now: time.Now, reports: reporter{tell: tell}, heard: map[string]time.Time{}, faults: map[string]string{}}
	c.began = c.now()
	for _, kind := range kinds {
		c.heard[kind] = time.Time{}
	}
	return c
}

// hear notes that the API server spoke of a kind of objects: a complete list,
// an event or a bookmark, taken over into the Model.
func (c *contact) hear(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard[kind] = c.now()
	c.well(kind)
}

// answered notes that the API server took a request.
func (c *contact) answered(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.well(kind)
}

func (c *contact) well(kind string) {
	if _, ill := c.faults[kind]; !ill {
		return
	}
	delete(c.faults, kind)
	if len(c.faults) == 0 {
		c.reasons = nil
	}
	c.tell()
}

// mostReasons is how many different reasons of one outage are told.
const mostReasons = 8

// failed notes that a request failed. A reason that was told in the same
// outage is not told again.
func (c *contact) failed(kind string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	why := reason(err)
	c.faults[kind] = why
	if !slices.Contains(c.reasons, why) && len(c.reasons) < mostReasons {
		c.reasons = append(c.reasons, why)
	}
	c.tell()
}

// add makes a Trouble of another sort known, once.
func (c *contact) add(t Trouble) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.others, t) {
		c.others = append(c.others, t)
		c.tell()
	}
}

// tell reports what has changed.
func (c *contact) tell() {
	now := c.others
	if len(c.reasons) > 0 {
		now = append(slices.Clone(now), Trouble{Object: "API server " + c.server, Reason: TroubleAPIServer,
			Message: strings.Join(c.reasons, "; ") + "; the last state stays"})
	}
	c.reports.set(now)
}

// age is the time since the API server last spoke of the kind of which it did
// so longest ago.
func (c *contact) age() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	oldest := c.now()
	for _, t := range c.heard {
		if t.IsZero() {
			t = c.began
		}
		if t.Before(oldest) {
			oldest = t
		}
	}
	return c.now().Sub(oldest)
}

// reachable reports whether the last request about every kind was answered.
func (c *contact) reachable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.faults) == 0
}

// ownPort is the near end of a connection in an error: another one each time.
var ownPort = regexp.MustCompile(`[0-9A-Za-z.:%\[\]]+:[0-9]+->`)

// reason says why a request failed in words that are the same each time.
func reason(err error) string {
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err // the URL has a random time-out in it
	}
	text := oneLine(ownPort.ReplaceAllString(err.Error(), ""))
	if apierrors.IsUnauthorized(err) {
		text = "it does not accept the credentials: " + text
	}
	return text
}
