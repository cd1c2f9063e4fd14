package lab

import (
	"testing"
	"time"
)

// Eventually asks cond until it has no error, first every 5 ms, later every
// 50 ms, and fails the test with the last error when that takes too long.
func Eventually(t testing.TB, within time.Duration, what string, cond func() error) {
	t.Helper()
	start := time.Now()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := cond()
		if err == nil {
			return
		}
		if took := time.Since(start); took+pause > within {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(pause)
	}
}
