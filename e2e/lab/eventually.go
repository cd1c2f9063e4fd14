package lab

import (
	"fmt"
	"testing"
	"time"
)

// Eventually asks cond until it has no error, see Until, and fails the test with the last error when that takes too long.
func Eventually(t testing.TB, within time.Duration, what string, cond func() error) {
	t.Helper()
	if err := Until(within, cond); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

const (
	// usualTry is how often a machine that is not busy asks on average, at least.
	usualTry = 100 * time.Millisecond
	// slowest is how many times longer than it is given a busy machine may take.
	slowest = 4
)

// Until asks cond until it has no error, first every 5 ms, later every 50 ms, and returns the last error when that
// takes longer than within. Time alone does not tell on a busy machine: what is waited for has as little of its
// processors as whoever waits. So the tries are the control. Who could not ask as often as a machine does that has
// time goes on until it could, for four times as long at most.
func Until(within time.Duration, cond func() error) error {
	start := time.Now()
	pause := 5 * time.Millisecond
	for tries := 1; ; tries++ {
		err := cond()
		if err == nil {
			return nil
		}
		took := time.Since(start)
		if took+pause > within && (time.Duration(tries)*usualTry >= within || took > slowest*within) {
			return fmt.Errorf("not within %s (asked %d times in %s): %w", within, tries, took.Round(time.Millisecond), err)
		}
		time.Sleep(pause)
		pause = min(2*pause, 50*time.Millisecond)
	}
}
