package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// answeredSince waits until a load has had some more answers.
func answeredSince(t *testing.T, l *Load, since, more int) {
	t.Helper()
	Eventually(t, 30*time.Second, "answers under load", func() error {
		if r := l.Report(); r.Answered < since+more {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

func TestLoadUndisturbed(t *testing.T) {
	w := NewWithoutIPVS(t)
	w.ServeHTTP(t, 8080, w.Pod("pod-c"))
	l := w.Pod("pod-a").StartLoad(at(w.Pod("pod-c").Host, 6, 8080), LoadConfig{Rate: 50})
	answeredSince(t, l, 0, 40)
	r := l.Stop()
	t.Log(r)
	if r.Lost != 0 || r.Answered != r.Sent || r.ByPod["pod-c"] != r.Sent || len(r.Losses) != 0 {
		t.Errorf("an undisturbed load lost something: %s", r)
	}
	if r.Rate > 60 || r.Rate < 5 {
		t.Errorf("asked for 50 a second: %s", r)
	}
	if !strings.Contains(r.String(), "/s)") || !strings.Contains(r.String(), " in ") {
		t.Errorf("no rate or duration: %s", r)
	}
}

// The control: a server that is away for a moment must cost something.
func TestLoadSeesAGap(t *testing.T) {
	w := NewWithoutIPVS(t)
	c := w.Pod("pod-c")
	stop, err := c.ServeHTTP(8080)
	if err != nil {
		t.Fatal(err)
	}
	l := w.Pod("pod-a").StartLoad(at(c.Host, 4, 8080), LoadConfig{Rate: 100, Concurrency: 4})
	answeredSince(t, l, 0, 10)
	stop()
	Eventually(t, 30*time.Second, "a loss", func() error {
		if r := l.Report(); r.Lost == 0 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	w.ServeHTTP(t, 8080, c)
	answeredSince(t, l, l.Report().Answered, 10)
	r := l.Stop()
	t.Log(r)
	if r.Lost == 0 || r.Sent != r.Answered+r.Lost+r.Again || len(r.Losses) != r.Lost {
		t.Errorf("the gap: %s", r)
	}
	if v := r.Losses[0].Reply.Verdict; v != Refused && v != Reset && v != Failed {
		t.Errorf("the first loss: %s", r.Losses[0].Reply)
	}
	if again := l.Report(); again.Sent != r.Sent || again.Duration != r.Duration {
		t.Errorf("the load went on after Stop: %s", again)
	}
}

// Without a rate, the load is bounded by its concurrency: Little's law with
// answers that take 100 ms.
func TestLoadConcurrency(t *testing.T) {
	w := NewWithoutIPVS(t)
	w.ServeHTTP(t, 8080, w.Pod("pod-c"))
	l := w.Pod("pod-a").StartLoad(at(w.Pod("pod-c").Host, 4, 8080), LoadConfig{Concurrency: 3, Wait: 100 * time.Millisecond})
	answeredSince(t, l, 0, 15)
	if r := l.Stop(); r.Lost != 0 || r.Rate > 45 {
		t.Errorf("3 at once, 100 ms each: %s", r)
	}
}

// A test that forgets Stop must not leave questions running.
func TestLoadEndsWithWorld(t *testing.T) {
	w := NewWithoutIPVS(t)
	w.ServeHTTP(t, 8080, w.Pod("pod-c"))
	l := w.Pod("pod-a").StartLoad(at(w.Pod("pod-c").Host, 4, 8080), LoadConfig{Wait: time.Minute, Timeout: time.Minute})
	start := time.Now()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("closing took %s: it waited for answers that were held back", took)
	}
	if before, after := l.Report(), l.Stop(); before.Sent != after.Sent {
		t.Errorf("asked on: %s, then %s", before, after)
	}
}

// The highest rate that one asker reaches here; a number to know, no promise.
func BenchmarkLoad(b *testing.B) {
	w := NewWithoutIPVS(b)
	w.ServeHTTP(b, 8080, w.Pod("pod-c"))
	for b.Loop() {
		l := w.Pod("pod-a").StartLoad(at(w.Pod("pod-c").Host, 4, 8080), LoadConfig{Concurrency: 4})
		for l.Report().Sent < 5000 {
			time.Sleep(10 * time.Millisecond)
		}
		r := l.Stop()
		b.ReportMetric(r.Rate, "asks/s")
		if r.Lost > 0 {
			b.Fatal(r)
		}
	}
}
