package traffic

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B43: a scheduler whose kernel module is missing: rr serves in its place, evenly, and one line of the log says
// which module is missing and what to do.
func TestB43MissingScheduler(t *testing.T) {
	s := newStage(t)
	agent := s.w.StartAgent(t, s.w.Node(1), s.cluster, "--ipvs-scheduler=nonesuch")
	svc, later := web(43), web(44)
	s.apply(svc, s.pods()...)
	each(t, func(t *testing.T, family int) {
		answers(t, s.w.Pod("pod-a").Host, at(svc, family, 80))
		if byPod, lost := s.w.Pod("pod-a").Spread(at(svc, family, 80), 6); len(lost) > 0 || byPod["pod-a"] != 2 || byPod["pod-b"] != 2 {
			t.Errorf("6 requests: %v, lost %v; want 2 of each of three pods", byPod, lost)
		}
	})
	s.apply(later, s.pods()...)
	each(t, func(t *testing.T, family int) { answers(t, s.w.Pod("pod-a").Host, at(later, family, 80)) })
	lab.Eventually(t, soon, "the log says it", func() error {
		if n := strings.Count(agent.Log(), "modprobe ip_vs_nonesuch"); n == 0 {
			return fmt.Errorf("not a word of it")
		}
		return nil
	})
	lines := 0
	for line := range strings.Lines(agent.Log()) {
		if strings.Contains(line, "the kernel lacks a scheduler") {
			lines++
		}
	}
	if lines != 1 {
		t.Errorf("said %d times, want once:\n%s", lines, agent.Log())
	}
}
