package main

import (
	"net/http"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// newHealth is how the loop's fate is kept: as with kube-proxy, work may wait for two sync periods. dropped counts lines of
// the log, t is what is read at a scrape.
func newHealth(c *config.Config, src source, dropped func() uint64, t healthz.Traffic, log *zap.Logger) *healthz.Health {
	o := healthz.Options{Timeout: 2 * c.Proxy.IPVS.SyncPeriod.Duration, Version: version, Revision: revision(), LogLinesDropped: dropped,
		Traffic: t, Log: log}
	if src.api != nil {
		o.ClusterAge = src.api.Age
	}
	return healthz.New(o)
}

// metricsServer is the name of the server on metricsBindAddress.
const metricsServer = "metrics"

// servers are kube-proxy's two: for health, and for metrics and what else helps to look into the agent.
func servers(c *config.Config, h *healthz.Health, flags map[string]string, log *zap.Logger) (list []healthz.Server, err error) {
	p := &c.Proxy
	pages := healthz.Pages{Config: p, Version: version, Profiling: p.EnableProfiling, Statusz: gate(c, "ComponentStatusz")}
	if gate(c, "ComponentFlagz") {
		pages.Flags = flags
	}
	metrics, err := h.MetricsHandler(pages)
	if err != nil {
		return nil, err
	}
	for _, s := range []struct {
		name, key, address string
		port               uint16
		handler            http.Handler
	}{
		{"health", "healthzBindAddress", p.HealthzBindAddress, 10256, h.HealthHandler()},
		{metricsServer, "metricsBindAddress", p.MetricsBindAddress, 10249, metrics},
	} {
		address, err := healthz.Address(s.address, s.port)
		if err != nil {
			return nil, c.Invalid(s.key, s.address, "an IP address and a port, such as 127.0.0.1:10249")
		}
		list = append(list, healthz.Server{Name: s.name, Address: address, Handler: s.handler, HardFail: p.BindAddressHardFail, Log: log})
	}
	return list, nil
}

// questions answers the commands that ask the agent, on the socket that says that it is here.
func questions(place *node.Place, handler http.Handler, log *zap.Logger) healthz.Server {
	return healthz.Server{Name: "questions", Listener: place.Questions(), Handler: handler, Log: log}
}

// inspected is this node, to be asked.
func inspected(c *config.Config, loop *sync.Loop, model *cluster.Model, log *zap.Logger) *inspect.Node {
	release, err := node.KernelRelease()
	if err != nil {
		log.Warn("the kernel's release is not known", zap.Error(err))
	}
	return inspect.New(loop, inspect.About{Version: version, Since: time.Now(), Kernel: release}).WithPackets(clients(c), model.Asking)
}

// gate reports whether one of upstream's feature gates is open that are so by default.
func gate(c *config.Config, name string) bool {
	open, given := c.Proxy.FeatureGates[name]
	return open || !given
}

// flagValues are the flags of a command with their values.
func flagValues(fs *pflag.FlagSet) map[string]string {
	values := map[string]string{}
	fs.VisitAll(func(f *pflag.Flag) { values[f.Name] = f.Value.String() })
	return values
}
