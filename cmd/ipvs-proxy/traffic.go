package main

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/servicemetrics"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// traffic is what a scrape reads of the kernel.
type traffic struct {
	counters *kernel.Counters
	kernel   *kernel.Statistics
	services *servicemetrics.Reader // nil: none, or they cannot be read
	err      error                  // why they cannot be read
}

// newTraffic opens nothing yet: the metrics are made before the kernel is.
func newTraffic() *traffic { return &traffic{counters: kernel.OpenCounters()} }

// open begins to count, before the loop makes the first virtual server. What it cannot read has no metrics, and is no reason
// not to serve.
func (t *traffic) open(ctx context.Context, c *config.Config, model *cluster.Model, loop *sync.Loop, log *zap.Logger) {
	opt, on := measuredServices(c)
	if !on {
		return
	}
	if t.kernel, t.err = kernel.OpenStatistics(ctx); t.err != nil {
		return
	}
	t.services = servicemetrics.New(model, keyOwners{loop}, t.kernel, opt)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := t.services.Prime(ctx); err != nil && ctx.Err() == nil {
		log.Warn("metrics of Services begin with the first scrape", zap.Error(err))
	}
}

// measuredServices says of which Services there are metrics, if of any.
func measuredServices(c *config.Config) (opt servicemetrics.Options, on bool) {
	m := c.Own.ServiceMetrics
	return servicemetrics.Options{All: m.Mode == config.ServiceMetricsAll, Limit: int(*m.Limit)}, m.Mode != config.ServiceMetricsOff
}

func (t *traffic) close() {
	t.counters.Close()
	if t.kernel != nil {
		t.kernel.Close()
	}
}

// verdicts have the codes that Events and commands have.
var verdicts = map[kernel.Verdict]desk.Code{
	kernel.NoPort: desk.NoSuchPort, kernel.NoEndpoint: desk.NoEndpoint,
	kernel.NoLocal: desk.NoneForSome, kernel.OutsideRanges: desk.OutOfRanges,
}

// Refused gives what the guard has refused and dropped.
func (t *traffic) Refused(ctx context.Context) (list []healthz.Refusal, err error) {
	counts, err := t.counters.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read what is refused and dropped: %w", err)
	}
	for _, n := range counts {
		r := healthz.Refusal{Reason: verdicts[n.Verdict].String(), Dropped: !n.Verdict.Refused(), Packets: n.Packets}
		if n.IPv6 {
			r.Family = healthz.IPv6
		}
		list = append(list, r)
	}
	return list, nil
}

// Services gives the traffic of the Services of which metrics are kept.
func (t *traffic) Services(ctx context.Context) (healthz.ServicesTraffic, error) {
	if t.services == nil {
		return healthz.ServicesTraffic{}, t.err
	}
	return t.services.Read(ctx)
}

// keyOwners asks the loop.
type keyOwners struct{ loop *sync.Loop }

// Owned says which Keys Services have.
func (o keyOwners) Owned(ctx context.Context, services []cluster.ID) (list []servicemetrics.Owned, err error) {
	keys, err := inspect.KeysOf(ctx, o.loop, services)
	for _, k := range keys {
		list = append(list, servicemetrics.Owned(k))
	}
	return list, err
}
