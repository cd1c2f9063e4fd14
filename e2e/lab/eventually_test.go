package lab

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// fakeTB stands in for a test that is meant to fail.
type fakeTB struct {
	testing.TB
	fatal string
}

func (f *fakeTB) Helper() {}
func (f *fakeTB) Fatalf(format string, args ...any) {
	f.fatal = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func runFake(f func(tb testing.TB)) string {
	tb := &fakeTB{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(tb)
	}()
	<-done
	return tb.fatal
}

func TestEventually(t *testing.T) {
	tries := 0
	msg := runFake(func(tb testing.TB) {
		Eventually(tb, 10*time.Second, "the third time", func() error {
			if tries++; tries < 3 {
				return errors.New("not yet")
			}
			return nil
		})
	})
	if msg != "" || tries != 3 {
		t.Errorf("true at the third time: %q after %d tries", msg, tries)
	}
	msg = runFake(func(tb testing.TB) {
		Eventually(tb, 100*time.Millisecond, "the impossible", func() error { return errors.New("never true") })
	})
	if !strings.Contains(msg, "the impossible") || !strings.Contains(msg, "never true") {
		t.Errorf("never true: failed with %q", msg)
	}
}

// Who is slow to ask gets time for as many tries as others, and no more than four times as long.
func TestUntilOnABusyMachine(t *testing.T) {
	const within = 200 * time.Millisecond
	for _, c := range []struct {
		name             string
		each             time.Duration // that a try takes
		goodAt           int           // the try that succeeds; 0: none does
		fails            bool
		atLeast, at4Most bool
	}{
		{"quick, never true", 0, 0, true, true, false},
		{"slow, true in time", within * 2 / 5, 2, false, false, false},
		{"slow, true after the time that others have", within * 6 / 5, 2, false, true, false},
		{"far too slow", within * 3 / 2, 0, true, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			tries, began := 0, time.Now()
			err := Until(within, func() error {
				time.Sleep(c.each) // stands for work that takes this long
				if tries++; tries == c.goodAt {
					return nil
				}
				return errors.New("not yet")
			})
			took := time.Since(began)
			if (err != nil) != c.fails || c.atLeast && took < within*3/4 || c.at4Most && took < 2*within {
				t.Errorf("after %d tries in %s: %v", tries, took, err)
			}
		})
	}
}
