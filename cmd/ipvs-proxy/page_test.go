package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// Who gets the status page is what statusPage says; what else the port serves stays.
func TestB73StatusPageKey(t *testing.T) {
	model := cluster.NewModel(cluster.Options{NodeName: "node1"})
	model.SetSynced()
	model.SetComplete()
	loop := sync.New(fake.New(), model, zap.NewNop(), sync.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	for _, row := range []struct {
		key       string
		here, far int
	}{
		{config.StatusPageLoopback, 200, 404}, {config.StatusPageAlways, 200, 200}, {config.StatusPageNever, 404, 404},
	} {
		c := config.Default()
		c.Own.StatusPage = row.key
		h := healthz.New(healthz.Options{Registry: metrics.NewKubeRegistry()})
		h.SetSetup([]string{"net.ipv4.vs.conntrack: not written"})
		list, err := servers(c, h, nil, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		defer addPage(ctx, c, list, pageOptions(c, "node1", source{}, h, inspected(c, loop, model, zap.NewNop()), zap.NewNop()))()
		get := func(path, local, remote, host string) *httptest.ResponseRecorder {
			a, err := net.ResolveTCPAddr("tcp", local)
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.RemoteAddr, r.Host = remote, host
			w := httptest.NewRecorder()
			list[1].Handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(a))))
			return w
		}
		here := get("/", "127.0.0.1:10249", "127.0.0.1:1", "localhost")
		if far := get("/", "192.0.2.1:10249", "192.0.2.2:1", "node1.example"); here.Code != row.here || far.Code != row.far {
			t.Errorf("%s: %d here, %d from elsewhere; want %d and %d", row.key, here.Code, far.Code, row.here, row.far)
		}
		if metrics := get("/metrics", "192.0.2.1:10249", "192.0.2.2:1", "node1.example"); metrics.Code != 200 {
			t.Errorf("%s: /metrics: %d", row.key, metrics.Code)
		}
		for _, want := range []string{"node1", "0 Services", "none: files", "net.ipv4.vs.conntrack: not written", version, `href="/statusz"`} {
			if row.here == 200 && !strings.Contains(here.Body.String(), want) {
				t.Errorf("%s: the page does not say %q:\n%s", row.key, want, here.Body)
			}
		}
	}
}

// The links of the page are pages of the port.
func TestB73StatusPageLinks(t *testing.T) {
	for _, open := range []bool{true, false} {
		c := config.Default()
		c.Proxy.EnableProfiling = open
		c.Proxy.FeatureGates = map[string]bool{"ComponentFlagz": open, "ComponentStatusz": open}
		list, err := servers(c, healthz.New(healthz.Options{Registry: metrics.NewKubeRegistry()}), map[string]string{}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		links := pageLinks(c)
		if len(links) < 3 {
			t.Errorf("%d links", len(links))
		}
		for _, l := range links {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			w := httptest.NewRecorder()
			list[1].Handler.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, l.Path, nil))
			cancel()
			if w.Code != 200 {
				t.Errorf("%s: %d", l.Path, w.Code)
			}
		}
	}
}
