package healthz

import (
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/component-base/configz"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/component-base/metrics/prometheus/slis"
)

// Pages say what the port of metricsBindAddress serves besides metrics.
type Pages struct {
	// Config is what /configz shows, under kube-proxy's name.
	Config runtime.Object
	// Flags are the command line's flags with their values, for /flagz; nil: there is no such page.
	Flags map[string]string
	// Statusz serves /statusz.
	Statusz bool
	// Version is the agent's, for /statusz.
	Version string
	// Profiling serves /debug/pprof (kube-proxy's enableProfiling).
	Profiling bool
}

// configName is the group of kube-proxy's configuration, under which it shows it.
const configName = "kubeproxy.config.k8s.io"

// component is the name that dashboards and scripts know.
const component = "kube-proxy"

// paths is a ServeMux that knows what it serves.
type paths struct {
	*http.ServeMux
	listed []string
}

func (p *paths) Handle(path string, h http.Handler) {
	p.listed = append(p.listed, path)
	p.ServeMux.Handle(path, h)
}

func (p *paths) text(path, text string) {
	p.Handle(path, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		plain(w)
		_, _ = io.WriteString(w, text)
	}))
}

func plain(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
}

// MetricsHandler is what the port of metricsBindAddress serves.
func (h *Health) MetricsHandler(p Pages) (http.Handler, error) {
	mux := &paths{ServeMux: http.NewServeMux()}
	mux.Handle("/healthz", http.HandlerFunc(h.servePing))
	mux.text("/healthz/ping", "ok")
	mux.text("/proxyMode", "ipvs")
	mux.Handle("/metrics", h.metricsPage())
	slis.SLIMetricsWithReset{}.Install(mux)
	if err := setConfig(p.Config); err != nil {
		return nil, err
	}
	configz.InstallHandler(mux)
	if p.Flags != nil {
		mux.Handle("/flagz", flagz(p.Flags))
	}
	if p.Profiling {
		mux.Handle("/debug/pprof/", http.HandlerFunc(pprof.Index))
		mux.Handle("/debug/pprof/profile", http.HandlerFunc(pprof.Profile))
		mux.Handle("/debug/pprof/symbol", http.HandlerFunc(pprof.Symbol))
		mux.Handle("/debug/pprof/trace", http.HandlerFunc(pprof.Trace))
	}
	if p.Statusz {
		mux.Handle("/statusz", statusz(p.Version, mux.listed))
	}
	return mux, nil
}

// setConfig shows a configuration, in the place of the one before.
func setConfig(c runtime.Object) error {
	configz.Delete(configName)
	if c == nil {
		return nil
	}
	z, err := configz.New(configName)
	if err == nil {
		err = z.Set(c)
	}
	if err != nil {
		return fmt.Errorf("show the configuration: %w", err)
	}
	return nil
}

func (h *Health) metricsPage() http.Handler {
	if h.registry == nil {
		return newScrapes(legacyregistry.Handler(), h.log)
	}
	return newScrapes(metrics.HandlerFor(h.registry, metrics.HandlerOpts{}), h.log)
}

// servePing says that the process answers, no more: as kube-proxy's. With ?verbose it names what of the node could
// not be set up, and what of another proxy's is in the way.
func (h *Health) servePing(w http.ResponseWriter, r *http.Request) {
	plain(w)
	if !r.URL.Query().Has("verbose") {
		_, _ = io.WriteString(w, "ok")
		return
	}
	lines, away := h.Trouble()
	_, _ = io.WriteString(w, "[+]ping ok\n")
	if away != "" {
		_, _ = fmt.Fprintf(w, "[!]stepped back: %s\n", away)
	}
	for _, line := range lines {
		_, _ = fmt.Fprintf(w, "[!]%s\n", line)
	}
	_, _ = io.WriteString(w, "healthz check passed\n")
}
