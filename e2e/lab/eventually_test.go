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
