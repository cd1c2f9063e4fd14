package cluster

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Trigger is a change of a Service's endpoints that the control plane has dated, for measuring how long the
// network took to follow (annotation endpoints.kubernetes.io/last-change-trigger-time of the EndpointSlice).
type Trigger struct {
	At   time.Time
	IPv4 bool // of an IPv4 slice, otherwise an IPv6 one
}

// mostTriggers bounds what is kept of a Service while nobody asks.
const mostTriggers = 128

// trigger reads the date of a slice's last change; 0 without one that can be read.
func (p *problems) trigger(obj *discoveryv1.EndpointSlice) int64 {
	text, dated := obj.Annotations[corev1.EndpointsLastChangeTriggerTime]
	if !dated {
		return 0
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || at.Year() < 1970 || at.Year() > 2200 {
		p.add(ReasonTriggerTime, "metadata.annotations["+corev1.EndpointsLastChangeTriggerTime+"]", "%s is not a time; the change is not measured", quote(text))
		return 0
	}
	return at.UnixNano()
}

// noteTrigger keeps the date of a slice's new content. As with kube-proxy, changes from before this process was
// started do not count: they say how long it was not there. The caller holds mu.
func (m *Model) noteTrigger(c *sliceContent) {
	s := m.services[c.service]
	if c.trigger <= m.started.UnixNano() || !s.ours() || len(s.triggers) == mostTriggers {
		return
	}
	s.triggers = append(s.triggers, Trigger{At: time.Unix(0, c.trigger), IPv4: c.ipv4})
}

// TakeTriggers returns the dated changes of a Service's endpoints since it was last asked for them.
func (m *Model) TakeTriggers(id ID) []Trigger {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.services[id]
	if s == nil {
		return nil
	}
	ts := s.triggers
	s.triggers = nil
	return ts
}

// Changes counts what the source has told since the start: of Services and of EndpointSlices, news or not.
func (m *Model) Changes() (services, slices uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes[0], m.changes[1]
}
