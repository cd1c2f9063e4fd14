package healthz

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// The bodies are kube-proxy 1.36's, byte for byte: order of the fields, form of the times, no newline at the end.
func TestB51Bodies(t *testing.T) {
	r := newRig(t)
	h := r.HealthHandler()
	r.wants(h, "/livez", 200, `{"lastUpdated":"2026-01-02T03:04:05.0000006Z","currentTime":"2026-01-02T03:04:05.0000006Z","healthy":true}`)
	r.SetNode(true)
	r.settled()
	r.pass(time.Second)
	r.wants(h, "/livez", 200, `{"lastUpdated":"2026-01-02T03:04:06.0000006Z","currentTime":"2026-01-02T03:04:06.0000006Z","healthy":true,`+
		`"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:05.0000006Z","healthy":true},"IPv6":{"lastUpdated":"2026-01-02T03:04:05.0000006Z","healthy":true}}}`)
	r.wants(h, "/healthz", 200, `{"lastUpdated":"2026-01-02T03:04:06.0000006Z","currentTime":"2026-01-02T03:04:06.0000006Z","nodeEligible":true,"healthy":true,`+
		`"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:05.0000006Z","healthy":true},"IPv6":{"lastUpdated":"2026-01-02T03:04:05.0000006Z","healthy":true}}}`)

	r.Heard(2, 1)
	r.Stands(Standing{Waiting: [families]bool{IPv4: true}})
	r.pass(time.Minute)
	r.wants(h, "/healthz", 503, `{"lastUpdated":"2026-01-02T03:04:06.0000006Z","currentTime":"2026-01-02T03:05:06.0000006Z","nodeEligible":true,"healthy":false,`+
		`"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:05.0000006Z","healthy":false},"IPv6":{"lastUpdated":"2026-01-02T03:04:06.0000006Z","healthy":true}}}`)
	w := r.get(h, "/healthz")
	for name, want := range map[string]string{"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if w := r.get(h, "/"); w.Code != http.StatusNotFound {
		t.Errorf("/: %d", w.Code)
	}
}

// The Node's fate is for /healthz alone.
func TestB51NodeEligibility(t *testing.T) {
	r := newRig(t)
	h := r.HealthHandler()
	codes := func(what string, healthz, livez int) {
		t.Helper()
		if got := r.get(h, "/healthz").Code; got != healthz {
			t.Errorf("%s: /healthz %d, want %d", what, got, healthz)
		}
		if got := r.get(h, "/livez").Code; got != livez {
			t.Errorf("%s: /livez %d, want %d", what, got, livez)
		}
	}
	codes("Node not known", 503, 200)
	r.SetNode(true)
	codes("Node stays", 200, 200)
	r.SetNode(false)
	codes("Node goes", 503, 200)
	r.SetNode(true)
	r.Heard(1, 0)
	r.pass(time.Minute)
	codes("kernel silent", 503, 503)
	for _, c := range []struct {
		name, code string
		want       float64
	}{{"healthz", "200", 1}, {"healthz", "503", 3}, {"livez", "200", 3}, {"livez", "503", 1}} {
		if got := r.value("kubeproxy_proxy_"+c.name+"_total", "code", c.code); got != c.want {
			t.Errorf("%s %s: counted %v, want %v", c.name, c.code, got, c.want)
		}
	}
}

// TestI2: the node is unhealthy only when work saw no confirmed write for the whole time, and healthy again with the
// first one.
func TestI2Waiting(t *testing.T) {
	r := newRig(t)
	r.SetNode(true)
	r.settled()
	r.pass(24 * time.Hour)
	healthy := func(what string, want bool) {
		t.Helper()
		if got := r.Healthy(); got != want {
			t.Errorf("%s: healthy %t", what, got)
		}
	}
	healthy("nothing to do for a day", true)
	r.Heard(2, 2)
	r.pass(59 * time.Second)
	healthy("work waits for 59 s", true)
	r.Stands(waits)
	r.pass(time.Second)
	healthy("for 60 s", false)
	r.Confirmed(IPv4)
	healthy("the other family still waits", false)
	r.Confirmed(IPv6)
	healthy("each was heard of", true)
	r.pass(59 * time.Second)
	r.Alive(IPv4)
	r.Alive(IPv6)
	r.pass(59 * time.Second)
	healthy("the kernel takes other writes", true)
	r.pass(time.Second)
	healthy("and no more", false)
	r.Stands(Standing{Failing: [families]int{1, 0}})
	healthy("one object fails, nothing else waits", true)
}

// A family that the node does not have is never reported as programmed.
func TestB51AbsentFamily(t *testing.T) {
	r := newRig(t)
	r.Heard(1, 1)
	r.Stands(Standing{Absent: [families]bool{IPv6: true}})
	if s := r.status(); len(s.Status) != 1 || s.Status["IPv4"].LastUpdated.IsZero() {
		t.Errorf("status %+v", s.Status)
	}
}

// The loop does not turn: both pages say so, whether work is known to wait or not, and until it does.
func TestB51Heartbeat(t *testing.T) {
	r := newRig(t)
	r.SetNode(true)
	if next := r.Turn(); next > r.timeout/2 {
		t.Errorf("the next turn may begin after %v of %v", next, r.timeout)
	}
	r.pass(r.timeout - time.Nanosecond)
	if !r.Healthy() {
		t.Error("unhealthy too early")
	}
	r.pass(time.Nanosecond)
	h := r.HealthHandler()
	for _, path := range []string{"/livez", "/healthz"} {
		if code := r.get(h, path).Code; code != http.StatusServiceUnavailable {
			t.Errorf("%s: %d of a loop that stands still", path, code)
		}
	}
	r.Turn()
	if !r.Healthy() {
		t.Error("unhealthy though the loop turns again")
	}
	if next := (*Health)(nil).Turn(); next <= 0 {
		t.Errorf("nobody looks, and the loop is to turn after %v", next)
	}
}

// F26: while the agent steps back from another proxy, what waits is no fault of this node: /healthz and /livez stay as they
// are and say why nothing is written.
func TestF26SteppedBack(t *testing.T) {
	r := newRig(t)
	r.SetNode(true)
	r.settled()
	const why = "kube-proxy in iptables or ipvs mode wrote chain ip nat KUBE-SERVICES"
	r.Heard(1, 1)
	r.Stands(Standing{Away: why, Waiting: [2]bool{true, true}})
	r.pass(time.Hour)
	r.Heard(2, 1)
	r.Stands(Standing{Away: why, Waiting: [2]bool{true, true}})
	for _, path := range []string{"/healthz", "/livez"} {
		w := r.get(r.HealthHandler(), path)
		if w.Code != 200 || !strings.Contains(w.Body.String(), `"steppedBack":"`+why+`"`) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := r.get(r.pages(Pages{}), "/healthz?verbose"); !strings.Contains(w.Body.String(), "[!]stepped back: "+why) {
		t.Errorf("/healthz?verbose: %s", w.Body)
	}
	if v := r.value("ipvsproxy_stepped_back"); v != 1 {
		t.Errorf("the metric is %v", v)
	}
	r.Stands(Standing{Waiting: [2]bool{true, true}})
	if w := r.get(r.HealthHandler(), "/healthz"); w.Code != 200 || strings.Contains(w.Body.String(), "steppedBack") || r.value("ipvsproxy_stepped_back") != 0 {
		t.Errorf("back again: %d %s", w.Code, w.Body)
	}
	r.pass(2 * time.Minute)
	if w := r.get(r.HealthHandler(), "/healthz"); w.Code != 503 {
		t.Errorf("work that waits after the return: %d %s", w.Code, w.Body)
	}
}
