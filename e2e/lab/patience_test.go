package lab

import (
	"testing"
	"time"
)

// A question without a time-out of its own has its usual one on a machine that has time, and more in the proportion in which
// the control takes longer, up to a bound.
func TestPatience(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		usualHandOvers / 10:   3 * time.Second,
		usualHandOvers:        3 * time.Second,
		2 * usualHandOvers:    6 * time.Second,
		1000 * usualHandOvers: mostPatient * 3 * time.Second,
	} {
		if is := stretched(3*time.Second, took); is != want {
			t.Errorf("3s where the control takes %s: %s, want %s", took, is, want)
		}
	}
	took := handOver(handOvers)
	Figure(t, "hand-overs, microseconds", int(took.Microseconds()))
	if is := Patience(3 * time.Second); is < 3*time.Second || is > mostPatient*3*time.Second {
		t.Errorf("3s: %s", is)
	}
}
