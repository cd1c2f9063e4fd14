package healthz

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"k8s.io/component-base/metrics"
)

// status is the body of /healthz and /livez, field by field as kube-proxy 1.36 has it
// (pkg/proxy/healthcheck/proxy_health.go).
type status struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyStatus `json:"status,omitempty"`
	// SteppedBack says why nothing is written, where another proxy is at work on the node. kube-proxy has no such field.
	SteppedBack string `json:"steppedBack,omitempty"`
}

type familyStatus struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// status is how the loop stands now. A family of which nothing was ever heard is left out.
func (h *Health) status() status {
	now := h.now()
	s := status{CurrentTime: now, Healthy: true, Status: map[string]familyStatus{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	stuck := h.stuck(now)
	s.Healthy, s.SteppedBack = !stuck, h.away
	for f, fh := range h.family {
		late := stuck || !fh.waiting.IsZero() && now.Sub(fh.waiting) >= h.timeout
		if fh.updated.IsZero() && !late {
			continue
		}
		if fh.updated.After(s.LastUpdated) {
			s.LastUpdated = fh.updated
		}
		s.Status[Family(f).String()] = familyStatus{fh.updated, !late}
		s.Healthy = s.Healthy && !late
	}
	return s
}

func (h *Health) eligible() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.node
}

// serveHealthz answers load balancers: is this node one to send traffic to?
func (h *Health) serveHealthz(w http.ResponseWriter, _ *http.Request) {
	s, eligible := h.status(), h.eligible()
	s.NodeEligible = &eligible
	s.write(w, s.Healthy && eligible, h.metrics.healthz)
}

// serveLivez answers who would restart the agent: the Node's fate is no reason for that.
func (h *Health) serveLivez(w http.ResponseWriter, _ *http.Request) {
	s := h.status()
	s.write(w, s.Healthy, h.metrics.livez)
}

func (s status) write(w http.ResponseWriter, ok bool, count *metrics.CounterVec) {
	code := http.StatusServiceUnavailable
	if ok {
		code = http.StatusOK
		// While all is well kube-proxy gives the present: it once meant when its loop last ran, and readers want
		// it recent.
		s.LastUpdated = s.CurrentTime
	}
	count.WithLabelValues(strconv.Itoa(code)).Inc()
	body, err := json.Marshal(s)
	if err != nil { // a year of five digits, at most
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(body) // who asked may be gone
}

// HealthHandler is what the port of healthzBindAddress serves.
func (h *Health) HealthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", h.serveHealthz)
	mux.HandleFunc("/livez", h.serveLivez)
	return mux
}
