package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
)

// The keys of both servers have their effect (B51).
func TestB51Servers(t *testing.T) {
	health := func() *healthz.Health { return healthz.New(healthz.Options{Registry: metrics.NewKubeRegistry()}) }
	c := config.Default()
	list, err := servers(c, health(), map[string]string{"v": "2"}, zap.NewNop())
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	if list[0].Address != "0.0.0.0:10256" || list[1].Address != "127.0.0.1:10249" || list[0].HardFail || list[1].HardFail {
		t.Errorf("%+v", list)
	}
	codes := func(list []healthz.Server, want map[string]int) {
		t.Helper()
		for path, code := range want {
			w := httptest.NewRecorder()
			list[1].Handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			if w.Code != code {
				t.Errorf("%s: %d, want %d", path, w.Code, code)
			}
		}
	}
	codes(list, map[string]int{"/flagz": 200, "/statusz": 200, "/configz": 200, "/debug/pprof/": 404})

	c.Proxy.HealthzBindAddress, c.Proxy.MetricsBindAddress, c.Proxy.BindAddressHardFail, c.Proxy.EnableProfiling = "", "::1", true, true
	c.Proxy.FeatureGates = map[string]bool{"ComponentFlagz": false, "ComponentStatusz": false}
	if list, err = servers(c, health(), map[string]string{"v": "2"}, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	if list[0].Address != "" || list[1].Address != "[::1]:10249" || !list[0].HardFail || !list[1].HardFail {
		t.Errorf("%+v", list)
	}
	codes(list, map[string]int{"/flagz": 404, "/statusz": 404, "/configz": 200, "/debug/pprof/": 200})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := list[0].Run(ctx); err != nil {
		t.Errorf("switched off: %v", err)
	}

	c.Proxy.MetricsBindAddress = "localhost"
	if _, err := servers(c, health(), nil, zap.NewNop()); err == nil || !strings.HasPrefix(err.Error(), "--metrics-bind-address=localhost: want an IP address and a port") {
		t.Errorf("no address: %v", err)
	}
}

// /flagz has every flag with its value.
func TestFlagValues(t *testing.T) {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	config.RunFlags(fs)
	if err := fs.Parse([]string{"--cluster-cidr=10.1.0.0/16"}); err != nil {
		t.Fatal(err)
	}
	if got := flagValues(fs); got["cluster-cidr"] != "10.1.0.0/16" || got["ipvs-scheduler"] != "rr" {
		t.Errorf("%v", got)
	}
}
