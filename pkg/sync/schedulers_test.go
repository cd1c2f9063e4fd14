package sync

import (
	"strings"
	"testing"
	"time"

	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// B70, B43: a scheduler that the kernel lacks is followed when it turns up: one that a Service asks for, and the node's own.
// Until then what takes its place serves, the Service says so in one Event, and nothing is tried again and again.
func TestB70SchedulerTurnsUp(t *testing.T) {
	svc, plain := service("web", "10.96.0.1", 80), service("plain", "10.96.0.2", 80)
	svc.Annotations = map[string]string{cluster.SchedulerAnnotation: "sed"}
	r := &healthRig{stepper: newStepper(), t: t, registry: metrics.NewKubeRegistry()}
	events := &said{}
	r.health = healthz.New(healthz.Options{Registry: r.registry, Now: func() time.Time { return r.now }})
	r.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7")}
	r.opt = Options{Health: r.health, Events: events, Desk: desk.Options{Scheduler: "nq"}, Schedulers: r.kernel}
	r.start(completeModel(nodeNamed("192.0.2.7"), svc, slice(svc, "10.244.1.1@node1"), plain, slice(plain, "10.244.2.2")))
	wants := func(when, ofService, ofPlain string) {
		t.Helper()
		for k, want := range map[ipvs.Key]string{tcp("10.96.0.1"): ofService, tcp("10.96.0.2"): ofPlain} {
			if got := r.kernel.Servers[k].Scheduler; got != want {
				t.Errorf("%s: %s has scheduler %q, want %q", when, k, got, want)
			}
		}
	}
	r.pass(3 * time.Second)
	wants("at first", "rr", "rr")
	about := func(list []string, what string) (n int) {
		for _, line := range list {
			if strings.Contains(line, what) {
				n++
			}
		}
		return n
	}
	said := events.take()
	if about(said, "default/web | SchedulerMissing") != 1 || about(said, "/ | SchedulerMissing") != 1 {
		t.Errorf("Events %q", said)
	}
	r.kernel.Fail = func(op ipvs.Op) error {
		if op.Effect().Scheduler != "" {
			t.Errorf("while they are missing: %s", op)
		}
		return nil
	}
	r.pass(5 * time.Minute)
	r.kernel.Fail = nil
	r.kernel.Schedulers = append(r.kernel.Schedulers, "sed")
	r.pass(61 * time.Second)
	wants("sed is there", "sed", "rr")
	r.kernel.Schedulers = append(r.kernel.Schedulers, "nq")
	r.pass(61 * time.Second)
	wants("nq is there", "sed", "nq")
	r.wantValue("nothing is missing", 0, "ipvsproxy_problems", "reason", "SchedulerMissing")
}
