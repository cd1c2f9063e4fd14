package page

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	loop "github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// world is a node of its own: so many Services, each with a frontend or a few, and a kernel that counts.
type world struct {
	head     inspect.Head
	services []inspect.Service
	changes  []inspect.Change
	health   Health
	err      error // of each answer
	mute     error // of the kernel's counters
	asked    []inspect.Query
	heads    atomic.Int32  // counts who asked for a list
	wait     chan struct{} // closed when answers may be given; nil: at once
}

// now is the time of these tests.
var now = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func before(d time.Duration) *time.Time { return new(now.Add(-d)) }

func newWorld(n int) *world {
	w := &world{head: inspect.Head{Node: "node1", Version: "v0.2.0", Kernel: "6.1.0", Since: before(76 * time.Hour), Services: n, Frontends: n + n/5,
		Programmed: true, LastWrite: before(12 * time.Second)}, health: Health{OK: true, APIAge: 3 * time.Second}}
	for i := range n {
		w.services = append(w.services, service(i))
	}
	slices.SortFunc(w.services, func(a, b inspect.Service) int { return strings.Compare(a.Service, b.Service) })
	for i := range 12 {
		w.changes = append(w.changes, inspect.Change{Number: uint64(i + 1), At: now.Add(-time.Duration((11-i)*(11-i)+12) * time.Second), Service: w.services[i%n].Service,
			Line: fmt.Sprintf("ipvsadm -a -t 10.96.0.%d:80 -r 10.244.1.%d:8080 -m -w 1", i, i), Cause: "object"})
	}
	return w
}

const why = "The endpoint is not ready."

func service(i int) inspect.Service {
	id := fmt.Sprintf("team-%02d/service-%05d", i%40, i)
	s := inspect.Service{Service: id, Type: "ClusterIP", InternalPolicy: "Cluster"}
	f := inspect.Frontend{Row: inspect.Row{Service: id, Port: "http", Protocol: "TCP", Frontend: fmt.Sprintf("10.96.%d.%d:80", i/250, i%250+1), By: "ClusterIP",
		Scheduler: "rr", Backends: 2, Here: i % 2, State: inspect.Open}, Of: []inspect.Backend{
		{Address: fmt.Sprintf("10.244.1.%d:8080", i%250+1), Node: "node1", State: inspect.Ready},
		{Address: fmt.Sprintf("10.244.2.%d:8080", i%250+1), Node: "node2", State: inspect.Ready},
		{Address: fmt.Sprintf("10.244.3.%d:8080", i%250+1), Node: "node3", State: inspect.LeftOut, Reason: inspect.Reason{Code: "IPX0101", Why: why, Do: "See why its pod is not."}},
	}}
	s.Frontends = []inspect.Frontend{f}
	if i%5 == 4 {
		s.Type, s.ExternalPolicy = "NodePort", "Local"
		s.Frontends = append(s.Frontends, inspect.Frontend{Row: inspect.Row{Service: id, Port: "http", Protocol: "TCP", Frontend: fmt.Sprintf("172.28.128.11:%d", 30000+i%2767),
			By: "node port", State: inspect.NoLocal, Reason: inspect.Reason{Code: "IPX0303", Why: "A Local policy leaves no endpoint for the client."}}})
	}
	return s
}

func (w *world) answer(ctx context.Context) error {
	if w.wait != nil {
		select {
		case <-w.wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return w.err
}

func (w *world) Head(ctx context.Context) (inspect.Head, error) { return w.head, w.answer(ctx) }

func (w *world) List(ctx context.Context, q inspect.Query) (l inspect.List, err error) {
	w.heads.Add(1)
	if w.wait == nil {
		w.asked = append(w.asked, q)
	}
	l.Head = w.head
	for _, s := range w.services {
		if s.Service <= q.After {
			continue
		}
		if len(l.Rows) >= q.Most {
			l.Next = l.Rows[len(l.Rows)-1].Service
			break
		}
		for _, f := range s.Frontends {
			at, _ := netip.ParseAddrPort(f.Frontend)
			if strings.Contains(s.Service, q.Text) && (!q.Address.IsValid() || at.Addr() == q.Address) && (q.State == "" || (f.State == q.State) != q.Not) {
				l.Rows = append(l.Rows, f.Row)
			}
		}
	}
	return l, w.answer(ctx)
}

func (w *world) Service(ctx context.Context, id cluster.ID) (*inspect.Service, error) {
	if err := w.answer(ctx); err != nil {
		return nil, err
	}
	for _, s := range w.services {
		if s.Service == id.String() {
			s.Frontends = slices.Clone(s.Frontends)
			for i := range s.Frontends {
				s.Frontends[i].Of = slices.Clone(s.Frontends[i].Of)
			}
			return &s, nil
		}
	}
	namespace, name, _ := strings.Cut(w.services[0].Service, "/")
	return nil, &preview.UnknownServiceError{Service: id, Near: []cluster.ID{{Namespace: namespace, Name: name}}}
}

func (w *world) Log(ctx context.Context, which loop.Selection) (log inspect.Log, err error) {
	for _, c := range w.changes {
		if which.Service == (cluster.ID{}) || which.Service.String() == c.Service {
			log.Changes = append(log.Changes, c)
		}
	}
	if which.Last > 0 {
		log.Changes = log.Changes[max(len(log.Changes)-which.Last, 0):]
	}
	return log, w.answer(ctx)
}

// Packet is served, by the endpoint asked for.
func (w *world) Packet(ctx context.Context, q preview.Question) (*preview.Answer, error) {
	a := &preview.Answer{Client: q.Client.String(), Address: q.To.String(), Verdict: preview.Served, Service: w.services[0].Service,
		Kernel: &preview.KernelSays{Verdict: preview.Refused, Writes: []string{"ipvsadm -A -u " + q.To.Addr.String()}}, Steps: []preview.Stage{{At: "address", Says: q.To.Addr.String() + " is a ClusterIP of " + w.services[0].Service}}}
	for i := range 150 {
		a.Backends = append(a.Backends, preview.Backend{Addr: fmt.Sprintf("10.244.1.%d:8080", i), Node: "node1", Chance: 1. / 150, Sees: a.Client})
	}
	a.LeftOut = []preview.Endpoint{{Addr: "10.244.3.1:8080", Node: "node3", Reason: preview.Reason{Code: "IPX0101", Why: why}}}
	return a, w.answer(ctx)
}

// Of counts 60 connections of the first real server and 40 of the second.
func (w *world) Of(_ context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error {
	for _, k := range keys {
		if w.mute != nil {
			return w.mute
		}
		host := k.Addr.As4()[3]
		real := func(node byte, conns uint64) ipvs.CountedReal {
			return ipvs.CountedReal{Real: ipvs.Real{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, node, host}), 8080), Weight: 1},
				Conns: ipvs.Conns{Active: 2}, Counters: ipvs.Counters{Conns: conns, In: ipvs.Volume{Bytes: conns * 1000}, Out: ipvs.Volume{Bytes: conns * 100_000}}}
		}
		c := ipvs.Counted{Key: k, Server: ipvs.Server{Scheduler: "rr"}, Counters: ipvs.Counters{Conns: 1100}}
		if k.Addr.As4()[1] == 96 {
			c.Counters.Conns, c.Reals = 100, []ipvs.CountedReal{real(1, 60), real(2, 40)}
		}
		if err := visit(c); err != nil {
			return err
		}
	}
	return nil
}
