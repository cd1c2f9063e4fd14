// Pagehost serves the status page of a node that there is not: the agent's own loop, on a kernel in memory, with as many
// Services as one likes. It is for looking at the page, and for the tests with a browser (e2e/browser). It prints where the
// page is once all is programmed, and ends when its standard input does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/page"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

func main() {
	services := flag.Int("services", 10000, "how many Services the node serves")
	listen := flag.String("listen", "127.0.0.1:0", "where the page is")
	full := flag.Bool("full", false, "the kernel has no room for another real server, once all is programmed: what changes waits")
	flag.Parse()
	if err := run(*services, *listen, *full); err != nil {
		fmt.Fprintln(os.Stderr, "pagehost:", err)
		os.Exit(1)
	}
}

func run(services int, listen string, full bool) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	model := cluster.NewModel(cluster.Options{NodeName: thisNode})
	world := newWorld(model, services)
	health := healthz.New(healthz.Options{Registry: metrics.NewKubeRegistry()})
	k := &kernel{Kernel: fake.New()}
	k.Fail = k.takes
	k.SetNode(ipvs.Local{Addrs: []netip.Addr{nodeAddr}, Own: []netip.Addr{nodeAddr}, Subnets: []netip.Prefix{netip.PrefixFrom(nodeAddr, 24).Masked()}})
	for _, key := range []ipvs.Key{cartKey, cartNodePort} {
		k.Conns[key] = map[netip.AddrPort]ipvs.Conns{cartLeaves: {Active: 2}}
	}
	loop := sync.New(k, model, zap.NewNop(), sync.Options{Health: health})
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	if err := settled(ctx, loop, programmed); err != nil {
		return err
	}
	until := programmed
	if full {
		k.full.Store(true)
		until = failing
	}
	world.roll(model) // so that something has changed
	if err := settled(ctx, loop, until); err != nil {
		return err
	}
	handler, err := health.MetricsHandler(healthz.Pages{Version: "v0.2.0", Statusz: true})
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: page.Over(handler, page.Options{
		Node: thisNode, Answers: inspect.New(loop, inspect.About{Version: "v0.2.0", Since: time.Now().Add(-76*time.Hour - 12*time.Minute), Kernel: "6.1.0-42-amd64"}).
			WithPackets(preview.Clients{Pods: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}, model.Asking),
		Counter: &counter{loop}, Log: zap.NewNop(),
		Health: func() page.Health { return page.Health{OK: health.Healthy(), APIAge: 3 * time.Second} },
		Links:  []page.Link{{Path: "/metrics", Text: "Metrics"}, {Path: "/healthz?verbose", Text: "Health"}, {Path: "/configz", Text: "Configuration"}, {Path: "/statusz", Text: "Status of the process"}},
	})}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	fmt.Printf("http://%s\n", listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-ended
}

func programmed(s sync.Standing) bool { return s.Programmed }

func failing(s sync.Standing) bool { return s.Failing > 0 }

// settled waits until the loop stands so.
func settled(ctx context.Context, loop *sync.Loop, so func(sync.Standing) bool) error {
	for ctx.Err() == nil {
		done := false
		if err := loop.Ask(ctx, func(v *sync.View) { done = so(v.Standing()) }); err != nil {
			return err
		}
		if done {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return ctx.Err()
}

// kernel is one in memory that reads all of itself at once, as it costs the same.
type kernel struct {
	*fake.Kernel
	full atomic.Bool // there is no room for another real server
}

// takes is an error where there is no room for what a write adds.
func (k *kernel) takes(op ipvs.Op) error {
	if _, adds := op.(ipvs.AddReal); adds && k.full.Load() {
		return syscall.ENOMEM
	}
	return nil
}

// Detect reads everything.
func (k *kernel) Detect(ctx context.Context, f func(ipvs.Key, *ipvs.Frontend, uint32)) (done bool, err error) {
	err = k.Scan(ctx, func(key ipvs.Key, o ipvs.Observed) {
		if o.Have != nil {
			o.Have.Server.Timeout = 0
			o.Have.Server.Flags &= ipvs.Persistent
			f(key, o.Have, ipvs.SumOf(o.Conns))
		}
	})
	return true, err
}

// counter is what a kernel might have counted: numbers made of addresses, the same each time.
type counter struct{ loop *sync.Loop }

// Of counts what the loop wants of some Keys.
func (c *counter) Of(ctx context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error {
	var list []ipvs.Counted
	err := c.loop.Ask(ctx, func(v *sync.View) {
		for _, k := range keys {
			if f := v.Frontend(k); f.Want != nil && f.Want.Server.Exists() {
				list = append(list, counted(f))
			}
		}
	})
	for _, one := range list {
		if err == nil {
			err = visit(one)
		}
	}
	return err
}

func counted(f sync.Frontend) ipvs.Counted {
	c := ipvs.Counted{Key: f.Key, Server: f.Want.Server}
	c.Server.Reals = nil
	busy := uint64(f.Key.Addr.As4()[3])*uint64(f.Key.Addr.As4()[2]+3)%400 + 3
	add := func(r ipvs.Real, active uint32, conns uint64) {
		one := ipvs.CountedReal{Real: r, Conns: ipvs.Conns{Active: active, Inactive: uint32(conns % 17)},
			Counters: ipvs.Counters{Conns: conns, In: ipvs.Volume{Bytes: conns * 2112}, Out: ipvs.Volume{Bytes: conns * 48_611}}}
		c.Reals = append(c.Reals, one)
		c.Counters.Conns += conns
		c.Counters.In.Bytes += one.Counters.In.Bytes
		c.Counters.Out.Bytes += one.Counters.Out.Bytes
	}
	for i, r := range f.Want.Server.Reals {
		add(r, uint32(busy)%90, busy*977+uint64(i)*busy*31)
	}
	for _, d := range f.Drains {
		add(ipvs.Real{Addr: d.Addr}, 2, busy*811)
	}
	return c
}
