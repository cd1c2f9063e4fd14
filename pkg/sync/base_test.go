package sync

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// basing is a kernel whose Base tells of itself.
type basing struct {
	Kernel
	mu       *sync.Mutex
	calls    []time.Time
	warnings []error
}

func (b *basing) Base(context.Context) (ipvs.BaseReport, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, time.Now())
	return ipvs.BaseReport{Warnings: b.warnings}, nil
}

// B43: one warning for what is wrong, in whichever words, and one line when it is over; what is still wrong is not said again
// because something else has come.
func TestB43SaidOnceAndWhenItIsOver(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		bridge := func(text string) error { return ipvs.About{Name: "bridges", Err: errors.New(text)} }
		b := &basing{Kernel: r.kernel, mu: &r.mu, warnings: []error{bridge("cni0")}}
		core, logged := observer.New(zapcore.InfoLevel)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = New(b, r.model, zap.New(core), Options{}).Run(ctx) }()
		var got []string
		for _, next := range [][]error{{bridge("cni0"), errors.New("another")}, {bridge("cni0 and cni1"), errors.New("another")}, {errors.New("another")}, {errors.New("another")}, nil} {
			time.Sleep(90 * time.Second)
			r.tamper(func() { b.warnings = next })
		}
		time.Sleep(90 * time.Second)
		cancel()
		<-done
		for _, e := range logged.All() {
			switch e.Message {
			case "node set-up is incomplete":
				got = append(got, "wrong: "+e.ContextMap()["error"].(string))
			case "this part of the node's set-up is right now":
				got = append(got, "over: "+e.ContextMap()["was"].(string))
			}
		}
		want := []string{"wrong: cni0", "wrong: another", "wrong: cni0 and cni1", "over: cni0 and cni1", "over: another"}
		if !slices.Equal(got, want) {
			t.Errorf("said %q, want %q", got, want)
		}
	})
}

// B40: sysctls are looked at each minute, though nothing else happens; what cannot be set is said once, and
// again when it is something else.
func TestBaseIsLookedAtEachMinute(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		b := &basing{Kernel: r.kernel, mu: &r.mu, warnings: []error{errors.New("first")}}
		core, logged := observer.New(zapcore.WarnLevel)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		began := time.Now()
		go func() { defer close(done); _ = New(b, r.model, zap.New(core), Options{}).Run(ctx) }()
		time.Sleep(10*time.Minute + time.Second)
		r.tamper(func() {
			if len(b.calls) != 11 {
				t.Errorf("%d looks in ten minutes", len(b.calls))
			}
			for i, at := range b.calls {
				if at.Sub(began) != time.Duration(i)*time.Minute {
					t.Errorf("look %d after %s", i, at.Sub(began))
				}
			}
			b.warnings = []error{errors.New("second"), errors.New("third")}
		})
		time.Sleep(10 * time.Minute)
		cancel()
		<-done
		var said []string
		for _, e := range logged.All() {
			said = append(said, e.ContextMap()["error"].(string))
		}
		if len(said) != 3 || said[0] != "first" || said[1] != "second" || said[2] != "third" {
			t.Errorf("said %q", said)
		}
	})
}
