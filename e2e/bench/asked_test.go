package main

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	group "sync"
	"testing"
	"time"

	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// zero counts nothing.
type zero struct{}

// Of finds each Key, unused.
func (zero) Of(_ context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error {
	for _, k := range keys {
		if err := visit(ipvs.Counted{Key: k, Server: ipvs.Server{Scheduler: "rr"}}); err != nil {
			return err
		}
	}
	return nil
}

// Brief is the same.
func (z zero) Brief(ctx context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error {
	return z.Of(ctx, keys, visit)
}

// Servers finds none.
func (zero) Servers(context.Context, func(ipvs.Counted) error) error { return nil }

// askedInMemory is an agent on a kernel in memory, and who asks it. The kernel is not audited: to read all of it costs a multiple of
// what the real one's does.
func askedInMemory(t *testing.T, o options, watch *arrivals) (*asked, *asker) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	a, err := startAsked(o, doors{kernel: &recorder{Kernel: fake.New(), watch: watch}, counts: zero{}, socket: l, audit: time.Hour, meter: watch.meter, registry: metrics.NewKubeRegistry(),
		refused: func(context.Context) ([]healthz.Refusal, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.stop(); err != nil {
			t.Error(err)
		}
	})
	return a, newAsker(func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", socket) }, zero{}, a.url)
}

// Kinds of windows, in turn.
const (
	alone = iota
	withCrowd
	held
)

// B73: questions of all kinds, a hundred a second, take little of the loop while an endpoint is on its way to the kernel: less than half
// of what one question does that keeps the loop for 5 ms, which shows that it would be seen. It is counted in processor time of the
// loop's thread, so that what else the machine does matters little.
func TestB73AskersTakeNoTurns(t *testing.T) {
	o := options{services: 10000 / slower, endpoints: 10}
	follows := newArrivals()
	a, by := askedInMemory(t, o, follows)
	changes := &changer{asked: a, arrivals: follows, o: o}
	crowd := &crowd{by: by, services: o.services}
	loop := follows.meter.over(a.loop)
	const hold = 5 * time.Millisecond
	var holders group.WaitGroup
	keep := func(ctx context.Context) {
		holders.Go(func() {
			_ = loop.Ask(ctx, func(*sync.View) {
				for began := threadTime(); threadTime()-began < hold; { // it works
				}
			})
		})
	}
	for range 3 {
		changes.during(time.Second, changesPerS, alone)
		during(t, time.Second/asksPerS*slower, crowd.ask, func() { changes.during(time.Second, changesPerS, withCrowd) })
		crowd.all.Wait()
		during(t, time.Second/asksPerS, keep, func() { changes.during(time.Second, changesPerS, held) })
		holders.Wait()
	}
	if err := follows.late(time.Minute); err != nil {
		t.Fatal(err)
	}
	said := crowd.end()
	is, asks, holds := waitsOf(follows.list[alone]), waitsOf(follows.list[withCrowd]), waitsOf(follows.list[held])
	t.Logf("alone %+v\nasked %+v, %d answers\nheld %+v", is, asks, said.Answered, holds)
	if said.Answered < 50/slower || said.Failed > 0 && !strings.Contains(said.First, "503") { // its turn may come too late on a busy machine
		t.Errorf("%d questions were answered, %d not: %s", said.Answered, said.Failed, said.First)
	}
	if is.Taken > 0 {
		t.Errorf("nobody asks, and questions take %s", is.Taken)
	}
	if holds.Taken < hold/2 {
		t.Fatalf("who keeps the loop for %s takes %s of it: it would not be seen", hold, holds.Taken)
	}
	if asks.Taken > hold/2 {
		t.Errorf("a hundred who ask each second take %s of the loop while a change is on its way", asks.Taken)
	}
}

// during does something again and again, while something else is done.
func during(t *testing.T, every time.Duration, again func(context.Context), do func()) {
	t.Helper()
	tick, stop, ended := time.NewTicker(every), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				again(t.Context())
			case <-stop:
				return
			}
		}
	}()
	do()
	close(stop)
	<-ended
}
