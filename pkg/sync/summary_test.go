package sync

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// logged are the lines of level Info and above that a loop writes, as JSON.
func logged(t *testing.T, o *observer.ObservedLogs) (lines []string) {
	t.Helper()
	for _, e := range o.TakeAll() {
		b, err := json.Marshal(e.ContextMap())
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, e.Message+" "+string(b))
	}
	return lines
}

// TestB90LogNames: what is programmed is named while few are concerned, counted when many are, and no line is long.
func TestB90LogNames(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	web := balancer("kubia", "10.96.0.80", "203.0.113.80", 0, 80)
	s := newStepper()
	s.opt.AuditPeriod = time.Hour
	s.start(completeModel(append(crowd(300), web, slice(web, "10.244.2.10", "10.244.2.11"))...))
	s.loop.tell.log = zap.New(core)
	var longest string
	after := func(what string, do func(), want ...string) {
		t.Helper()
		do()
		s.pass(20 * time.Second)
		lines := logged(t, logs)
		for _, l := range lines {
			if len(l) > len(longest) {
				longest = l
			}
		}
		for _, w := range want {
			if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, w) }) {
				t.Errorf("%s: no line with %q in\n%s", what, w, strings.Join(lines, "\n"))
			}
		}
	}
	after("a start", func() {}, `"services":`, "all Services are programmed")
	after("an endpoint more", func() { give(s.model, slice(web, "10.244.2.10", "10.244.2.11", "10.244.2.12")) }, `"default/kubia: +10.244.2.12:8080 on 2 frontends"`)
	after("one less", func() { give(s.model, slice(web, "10.244.2.10", "10.244.2.12")) }, `"default/kubia: -10.244.2.11:8080 on 2 frontends"`,
		`"default/kubia: drained 10.244.2.11:8080 on 2 frontends"`)
	after("many more", func() { give(s.model, manySlices("kubia", 0, 1000)...) }, `"default/kubia: +512 endpoints on 1 frontend, more to come"`)
	after("a new Service", func() { give(s.model, service("new", "10.95.1.81", 80)) }, `"default/new: 1 frontend made"`)
	after("it goes", func() { s.model.DeleteService("default", "new") }, `"default/new: 1 frontend removed"`)
	after("an address is taken off", func() { delete(s.kernel.Addrs, netip.MustParseAddr("203.0.113.80")); s.audit().next = s.now }, `"default/kubia: 1 write beside virtual servers"`)
	long := strings.Repeat("n", 63)
	after("long names", func() {
		for i := range 4 {
			svc := service(fmt.Sprintf("%s%d", long[1:], i), fmt.Sprintf("10.95.0.%d", i+1), 80)
			svc.Namespace = long
			give(s.model, slice(svc, "10.244.2.20", "10.244.2.21", "10.244.2.22"), svc)
		}
	}, "+10.244.2.20:8080 +10.244.2.21:8080 +10.244.2.22:8080 on 1 frontend")
	t.Logf("%d bytes: %s", len(longest), longest)
	if len(longest) > 1500 {
		t.Errorf("a line has %d bytes", len(longest))
	}
	if n := len(s.loop.fare.was); n > 0 {
		t.Errorf("it is remembered whose %d frontends were that are gone", n)
	}
}
