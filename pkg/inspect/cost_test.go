package inspect

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// thousands is a node with 10,000 Services of ten endpoints each.
func thousands(t testing.TB) *node {
	var objs []any
	for i := range 10_000 {
		svc := service(fmt.Sprintf("ns%02d/service-%05d", i%50, i), fmt.Sprintf("10.%d.%d.%d", 96+i/62500, i/250, i%250+1), 80)
		var eps []string
		for e := range 10 {
			eps = append(eps, fmt.Sprintf("10.244.%d.%d@node%d", (i+e)/250%250, (i+e)%250+1, e%5))
		}
		objs = append(objs, svc, slice(svc, eps...))
	}
	return newNode(t, objs...)
}

// cpu is what the process has used.
func cpu(t testing.TB) time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// served are both ends of the socket: what a command has the agent do, and does with the answer.
func served(t testing.TB, n *node) *Client {
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: n.Handler()}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() { _ = server.Close(); <-ended })
	return NewClient(func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", socket) })
}

// What an answer costs at 10,000 Services, at both ends of the socket, the kernel apart: one Service, what becomes of it and of a packet,
// and the first page of the list below 50 ms of processor time, and the loop for no question longer than a slice of its own work.
func TestB73Costs(t *testing.T) {
	n := thousands(t)
	c := served(t, n)
	id := cluster.ID{Namespace: "ns07", Name: "service-05007"}
	for what, do := range map[string]func() (any, error){
		"one Service":       func() (any, error) { return c.Service(t.Context(), id) },
		"explain a Service": func() (any, error) { return c.Explain(t.Context(), id) },
		"explain a packet": func() (any, error) {
			return c.Packet(t.Context(), preview.Question{Client: netip.MustParseAddr("10.244.1.9"), To: ipvs.Key{Addr: netip.MustParseAddr("10.96.20.8"), Port: 80, Proto: ipvs.TCP}})
		},
		"first page":            func() (any, error) { return c.List(t.Context(), Query{}) },
		"first page, one state": func() (any, error) { return c.List(t.Context(), Query{State: Open}) },
		"a namespace":           func() (any, error) { return c.List(t.Context(), Query{Namespace: "ns49"}) },
		"log, 500 writes":       func() (any, error) { return c.Log(t.Context(), sync.Selection{Last: 500}) },
		"a name misspelt": func() (any, error) {
			_, err := c.Service(t.Context(), cluster.ID{Namespace: "ns07", Name: "service-0500"})
			return err, nil
		},
	} {
		var took []time.Duration
		size := 0
		for range 5 {
			began := cpu(t)
			is, err := do()
			took = append(took, cpu(t)-began)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			text, _ := json.Marshal(is)
			size = len(text)
		}
		slices.Sort(took)
		t.Logf("%-22s %6.2f ms of processor time, median of 5; %d bytes", what+":", float64(took[2].Microseconds())/1000, size)
		if took[2] > costMost {
			t.Errorf("%s: %s", what, took)
		}
	}
	n.holdsUp(t)
}

// holdsUp measures for how long each question of the dearest kinds keeps the loop.
func (n *node) holdsUp(t *testing.T) {
	var after cluster.ID
	for what, ask := range map[string]func(*sync.View){
		"a page of Services": func(v *sync.View) {
			page, _ := v.Services(after)
			after = page[len(page)-1].ID
		},
		"names":  func(v *sync.View) { v.Names(cluster.ID{}) },
		"writes": func(v *sync.View) { v.Writes(sync.Selection{Last: 500}) },
		"head":   func(v *sync.View) { v.Standing() },
	} {
		var took []time.Duration
		for range 21 {
			err := n.loop.Ask(t.Context(), func(v *sync.View) {
				began := time.Now()
				ask(v)
				took = append(took, time.Since(began))
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(took)
		t.Logf("%-22s keeps the loop for %.3f ms, median of 21", what+":", float64(took[10].Nanoseconds())/1e6)
		if took[10] > costMost/5 {
			t.Errorf("%s keeps the loop for %s", what, took[10])
		}
	}
}
