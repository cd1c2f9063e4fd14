package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
	statuspage "github.com/ipvs-proxy/ipvs-proxy/pkg/page"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/servicemetrics"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// measured is of how many Services metrics are kept.
const measured = 500

// pods are the addresses of all pods.
var pods = netip.MustParsePrefix("10.128.0.0/9")

// counter says what a kernel counts.
type counter interface {
	inspect.Counter
	servicemetrics.Kernel
}

// doors are what an agent that is asked has to do with.
type doors struct {
	kernel sync.Kernel
	counts counter
	// refused reads what was refused and dropped.
	refused func(context.Context) ([]healthz.Refusal, error)
	socket  net.Listener // where commands ask
	// audit is the least time between two looks at what others may have changed; 0: the usual one.
	audit time.Duration
	// meter counts what questions take of the loop; nil: nobody does.
	meter *meter
	// registry takes the metrics; nil: that of the process, as with an agent.
	registry metrics.KubeRegistry
}

// asked is an agent that can be asked, in this process, put together as cmd/ipvs-proxy does.
type asked struct {
	model *cluster.Model
	loop  *sync.Loop
	url   string // of the port with status page and metrics
	stop  func() error
}

// startAsked starts one, and waits until all is programmed.
func startAsked(o options, at doors) (*asked, error) {
	ctx, cancel := context.WithCancel(context.Background())
	a := &asked{model: cluster.NewModel(cluster.Options{NodeName: nodeName(0)})}
	for i := range o.services {
		s := service(i, corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP})
		if i < measured {
			s.Annotations = map[string]string{cluster.MetricsAnnotation: "true"}
		}
		a.model.SetService(s)
		a.model.SetSlice(webSlice(i, o.endpoints, 0))
	}
	ready(a.model)
	t := &scraped{doors: at}
	health := healthz.New(healthz.Options{Version: "bench", Registry: at.registry, Traffic: t, Log: zap.NewNop()})
	a.loop = sync.New(at.kernel, a.model, quietLog(), sync.Options{Health: health, Processor: processor, AuditPeriod: at.audit})
	t.services = servicemetrics.New(a.model, owners{at.meter.over(a.loop)}, at.counts, servicemetrics.Options{Limit: measured})
	err := t.services.Prime(ctx)
	served := func() error { return nil }
	if err == nil {
		served, err = a.serve(health, at)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- a.loop.Run(ctx) }()
	a.stop = func() error {
		err := served()
		cancel()
		return errors.Join(err, <-ended)
	}
	if err := a.programmed(10 * time.Minute); err != nil {
		return nil, errors.Join(err, a.stop())
	}
	return a, nil
}

// serve answers on both ways to an agent.
func (a *asked) serve(health *healthz.Health, at doors) (stop func() error, err error) {
	numbers, err := health.MetricsHandler(healthz.Pages{Version: "bench"})
	if err != nil {
		return nil, err
	}
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	a.url = "http://" + port.Addr().String()
	is := inspect.New(at.meter.over(a.loop), inspect.About{Version: "bench", Since: time.Now()}).WithPackets(preview.Clients{Pods: []netip.Prefix{pods}}, a.model.Asking)
	over := statuspage.Over(numbers, statuspage.Options{Node: nodeName(0), Answers: is, Counter: at.counts, Log: zap.NewNop(),
		Health: func() statuspage.Health { return statuspage.Health{OK: health.Healthy(), APIAge: time.Second} }})
	var stops []func() error
	ended := make(chan error, 2)
	for l, h := range map[net.Listener]http.Handler{port: over, at.socket: is.Handler()} {
		s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
		go func() { ended <- s.Serve(l) }()
		stops = append(stops, s.Close)
	}
	return func() (err error) {
		for _, stop := range stops {
			err = errors.Join(err, stop())
		}
		for range stops {
			if e := <-ended; !errors.Is(e, http.ErrServerClosed) {
				err = errors.Join(err, e)
			}
		}
		return err
	}, nil
}

// programmed waits until the kernel holds what is wanted.
func (a *asked) programmed(patience time.Duration) error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		done := false
		if err := a.loop.Ask(context.Background(), func(v *sync.View) { done = v.Standing().Programmed }); err != nil || done {
			return err
		}
	}
	return fmt.Errorf("not programmed after %s", patience)
}

// scraped is what a scrape reads.
type scraped struct {
	doors
	services *servicemetrics.Reader
}

// Refused gives what was refused and dropped.
func (s *scraped) Refused(ctx context.Context) ([]healthz.Refusal, error) { return s.refused(ctx) }

// Services gives the traffic of Services.
func (s *scraped) Services(ctx context.Context) (healthz.ServicesTraffic, error) {
	return s.services.Read(ctx)
}

// owners asks the loop whose Keys are.
type owners struct{ loop inspect.Asker }

// Owned says which Keys Services have.
func (o owners) Owned(ctx context.Context, services []cluster.ID) (list []servicemetrics.Owned, err error) {
	keys, err := inspect.KeysOf(ctx, o.loop, services)
	for _, k := range keys {
		list = append(list, servicemetrics.Owned(k))
	}
	return list, err
}

// realDoors are those on the real kernel, with the socket at which commands ask.
func realDoors(ctx context.Context, o options, watch watcher) (at doors, r *recorder, done func(), err error) {
	k, err := kernel.Open(ctx, kernel.Config{ClusterCIDRs: []netip.Prefix{pods}, Binding: kernel.Binding(o.binding)})
	if err != nil {
		return at, nil, nil, err
	}
	counts, err := kernel.OpenStatistics(ctx)
	if err != nil {
		k.Close()
		return at, nil, nil, err
	}
	refusals := kernel.OpenCounters()
	done = func() { refusals.Close(); counts.Close(); k.Close() }
	here, err := node.Take("")
	if err != nil {
		done()
		return at, nil, nil, err
	}
	r = &recorder{Kernel: k, watch: watch}
	at = doors{kernel: r, counts: counts, socket: here.Questions(), refused: func(ctx context.Context) (list []healthz.Refusal, err error) {
		all, err := refusals.Read(ctx)
		for _, n := range all {
			is := healthz.Refusal{Reason: fmt.Sprint(n.Verdict), Dropped: !n.Verdict.Refused(), Packets: n.Packets}
			if n.IPv6 {
				is.Family = healthz.IPv6
			}
			list = append(list, is)
		}
		return list, err
	}}
	return at, r, done, nil
}

// idOf is the name of a Service.
func idOf(i int) cluster.ID { return cluster.ID{Namespace: "default", Name: fmt.Sprint("svc-", i)} }

// has is an error unless a text has what it should.
func has(text, want string) error {
	if strings.Contains(text, want) {
		return nil
	}
	return fmt.Errorf("the answer has no %q:\n%s", want, text[:min(len(text), 2000)])
}
