package lab

import (
	"testing"
	"time"
)

// A load holds its rate on average over short pauses, and does not make up for long ones.
func TestPace(t *testing.T) {
	p := pace{every: 100 * time.Millisecond}
	for i := range 3 {
		if due, want := p.due(0), time.Duration(i)*p.every; due != want {
			t.Errorf("question %d at %s, want %s", i, due, want)
		}
	}
	if due := p.due(800 * time.Millisecond); due != 300*time.Millisecond {
		t.Errorf("after a short pause at %s, want it made up for", due)
	}
	if due := p.due(time.Hour); due != time.Hour-catchUp {
		t.Errorf("after a long pause at %s, want a second of it made up for", due)
	}
	burst := 0
	for p.due(time.Hour) < time.Hour {
		burst++
	}
	if burst != 9 {
		t.Errorf("%d more at once, want those of a second", burst)
	}
	if due := (&pace{}).due(time.Minute); due != time.Minute {
		t.Errorf("without a rate at %s, want at once", due)
	}
}

// Little's law: with a rate, what may be under way is what it takes, and not more.
func TestLoadDefaults(t *testing.T) {
	for _, c := range []struct {
		cfg  LoadConfig
		want int
	}{
		{LoadConfig{}, 8}, {LoadConfig{Rate: 20}, 4}, {LoadConfig{Rate: 40, Wait: 200 * time.Millisecond}, 14}, {LoadConfig{Rate: 100, Concurrency: 3}, 3},
	} {
		if got := c.cfg.withDefaults().Concurrency; got != c.want {
			t.Errorf("%+v: %d under way, want %d", c.cfg, got, c.want)
		}
	}
}
