package inspect

import (
	"testing"
	"time"
)

// Amounts, times and shares print in one way, in the commands and on the status page.
func TestWords(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 9949: "9.9 kB", 9950: "10 kB", 99_940: "100 kB", 999_499: "999 kB", 999_500: "1.0 MB",
		1 << 40: "1.1 TB", 1<<64 - 1: "18 EB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d bytes print as %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0 ms", 0: "0 ms", 999 * time.Millisecond: "999 ms", time.Second: "1 s", 59_900 * time.Millisecond: "59 s",
		time.Minute: "1m", 90 * time.Second: "1m30s", 15 * time.Minute: "15m", time.Hour: "1h", 3*time.Hour + 59*time.Second: "3h", 76 * time.Hour: "3d4h", 48 * time.Hour: "2d"} {
		if got := Span(d); got != want {
			t.Errorf("%s prints as %s, want %s", d, got, want)
		}
	}
	for share, want := range map[float64]string{0: "0 %", 0.001: "<1 %", 0.01: "1 %", 0.995: "100 %", 1: "100 %"} {
		if got := Percent(share); got != want {
			t.Errorf("%v prints as %s, want %s", share, got, want)
		}
	}
}
