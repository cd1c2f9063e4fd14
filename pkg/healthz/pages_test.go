package healthz

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"

	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

func (r *rig) pages(p Pages) http.Handler {
	r.t.Helper()
	h, err := r.MetricsHandler(p)
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

func TestB51MetricsPort(t *testing.T) {
	r := newRig(t)
	c := &kubeproxy.KubeProxyConfiguration{Mode: "ipvs", ClusterCIDR: "10.1.0.0/16"}
	c.APIVersion, c.Kind = kubeproxy.SchemeGroupVersion.String(), "KubeProxyConfiguration"
	h := r.pages(Pages{Config: c, Flags: map[string]string{"v": "2", "config": "/c"}, Version: "v9", Statusz: true})
	r.wants(h, "/healthz", 200, "ok")
	r.wants(h, "/healthz/ping", 200, "ok")
	r.wants(h, "/proxyMode", 200, "ipvs")
	if got := r.get(h, "/proxyMode").Header().Get("Content-Type"); got != "text/plain; charset=utf-8" {
		t.Errorf("/proxyMode: %s", got)
	}
	r.SetSetup([]string{"cannot write net/ipv4/x"})
	r.wants(h, "/healthz", 200, "ok")
	r.wants(h, "/healthz?verbose", 200, "[+]ping ok\n[!]node cannot write net/ipv4/x\nhealthz check passed\n")

	var shown map[string]*kubeproxy.KubeProxyConfiguration
	w := r.get(h, "/configz")
	if err := json.Unmarshal(w.Body.Bytes(), &shown); err != nil || len(shown) != 1 || shown["kubeproxy.config.k8s.io"] == nil {
		t.Fatalf("/configz: %v %s", err, w.Body)
	}
	if got := shown["kubeproxy.config.k8s.io"]; got.ClusterCIDR != c.ClusterCIDR || got.Kind != c.Kind || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("/configz: %s", w.Body)
	}
	for _, want := range []string{`kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv6"} 0`, `ipvsproxy_build_info{go_version="go`} {
		if body := r.get(h, "/metrics").Body.String(); !strings.Contains(body, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/profile", "/debug/pprof/heap", "/nothing"} {
		if w := r.get(h, path); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	r.pages(Pages{}) // a second one takes the place of the first
}

func TestB51Profiling(t *testing.T) {
	r := newRig(t)
	h := r.pages(Pages{Profiling: true})
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/goroutine", "/debug/pprof/heap", "/debug/pprof/symbol"} {
		if w := r.get(h, path); w.Code != http.StatusOK {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	for _, path := range []string{"/flagz", "/statusz"} { // their gates are closed
		if w := r.get(h, path); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// The pages for people have upstream's form; upstream draws the character between name and value by lot.
func TestB51ZPages(t *testing.T) {
	r := newRig(t)
	h := r.pages(Pages{Flags: map[string]string{"v": "2", "config": "/c"}, Version: "v9", Statusz: true})
	const warning = "\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n"
	r.wants(h, "/flagz", 200, "\nkube-proxy flagz"+warning+"config=/c\nv=2\n")
	form := regexp.MustCompile(`^\nkube-proxy statusz` + regexp.QuoteMeta(warning) + `
Started= \w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \S+ \d{4}
Up= \d+ hr \d\d min \d\d sec
Go version= go\S+.*
Binary version= v9

Paths= /configz /flagz /healthz /metrics /proxyMode
$`)
	if body := r.get(h, "/statusz").Body.String(); !form.MatchString(body) {
		t.Errorf("/statusz: %q", body)
	}
	for _, c := range []struct {
		path, accept string
		code         int
		starts       string
	}{
		{"/flagz", "*/*", 200, "\nkube-proxy flagz"},
		{"/flagz", "text/html, text/plain;q=0.5", 200, "\nkube-proxy flagz"},
		{"/flagz", "application/json;v=v1beta1;g=config.k8s.io;as=Flagz", 200,
			`{"kind":"Flagz","apiVersion":"config.k8s.io/v1beta1","metadata":{"name":"kube-proxy"},"flags":{"config":"/c","v":"2"}}`},
		{"/statusz", "application/json;v=v1alpha1;g=config.k8s.io;as=Statusz", 200,
			`{"kind":"Statusz","apiVersion":"config.k8s.io/v1alpha1","metadata":{"name":"kube-proxy"},"startTime":"`},
		{"/statusz", "application/json", 406, "only the following media types"},
		{"/flagz", "application/json;v=v1beta1;g=config.k8s.io;as=Statusz", 406, "only the following media types"},
	} {
		if w := r.get(h, c.path, "Accept", c.accept); w.Code != c.code || !strings.HasPrefix(w.Body.String(), c.starts) {
			t.Errorf("%s as %s: %d %s", c.path, c.accept, w.Code, w.Body)
		}
	}
}
