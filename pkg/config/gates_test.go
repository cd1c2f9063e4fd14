package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// B14, B50: AllowServiceExternalIPs counts where it is given, by file or flag; of other gates it is said that they
// have no effect.
func TestB50FeatureGates(t *testing.T) {
	const ranges = "--external-ip-cidrs=198.51.100.0/24"
	conf := file(t, proxyHead+"clusterCIDR: 10.244.0.0/16\nfeatureGates: {AllowServiceExternalIPs: true}")
	for _, c := range []struct{ args, want string }{
		{"", "[]"},
		{ranges, "[198.51.100.0/24]"},
		{"--feature-gates=AllowServiceExternalIPs=true", "[0.0.0.0/0 ::/0]"},
		{"--config=" + conf, "[0.0.0.0/0 ::/0]"},
		{ranges + " --feature-gates=AllowServiceExternalIPs=true", "[198.51.100.0/24]"},
		{ranges + " --feature-gates=AllowServiceExternalIPs=false", "[]"},
	} {
		args := strings.Fields(c.args)
		if !strings.HasPrefix(c.args, "--config") {
			args = append(args, "--cluster-cidr=10.244.0.0/16")
		}
		cfg, warnings := loaded(t, args...)
		if got := fmt.Sprint(cfg.ExternalIPs()); got != c.want || len(warnings) > 0 {
			t.Errorf("%s: %s, want %s; warnings %q", c.args, got, c.want, warnings)
		}
	}
	_, warnings := loaded(t, "--cluster-cidr=10.244.0.0/16", "--feature-gates=Unheard=false,AllowServiceExternalIPs=true")
	if len(warnings) != 1 || !strings.HasPrefix(warnings[0], "featureGates.Unheard: no effect: ") {
		t.Errorf("a gate that nobody knows: %q", warnings)
	}
}

// B50: the addresses of the servers are defaulted as kube-proxy does it: empty is the default, in the file and, with a
// warning, as a flag, and an address without a port gets it.
func TestB50BindAddresses(t *testing.T) {
	for _, c := range []struct{ args, text, want string }{
		{"", "", "0.0.0.0:10256 127.0.0.1:10249"},
		{"", `{healthzBindAddress: "", metricsBindAddress: ""}`, "0.0.0.0:10256 127.0.0.1:10249"},
		{"", `{bindAddress: "::"}`, "[::]:10256 [::1]:10249"},
		{"", `{healthzBindAddress: 192.0.2.1, metricsBindAddress: "::1"}`, "192.0.2.1:10256 [::1]:10249"},
		{"", `{healthzBindAddress: "192.0.2.1:1", metricsBindAddress: "[::1]:2"}`, "192.0.2.1:1 [::1]:2"},
		{"--healthz-bind-address= --metrics-bind-address=", "", "0.0.0.0:10256 127.0.0.1:10249"},
		{"--healthz-bind-address= --metrics-bind-address= --bind-address=::", "", "0.0.0.0:10256 127.0.0.1:10249"},
		{"--bind-address=", "", "0.0.0.0:10256 127.0.0.1:10249"},
		{"--metrics-bind-address=192.0.2.1", "", "0.0.0.0:10256 192.0.2.1:10249"},
		{"--healthz-bind-address=", "{}", "0.0.0.0:10256 127.0.0.1:10249"}, // beside a file the flag does not count
	} {
		args := strings.Fields(c.args)
		if c.text != "" {
			body := strings.NewReplacer("{", "", "}", "", ", ", "\n").Replace(c.text)
			args = append(args, "--config="+file(t, proxyHead+body))
		}
		cfg, _ := loaded(t, args...)
		if got := cfg.Proxy.HealthzBindAddress + " " + cfg.Proxy.MetricsBindAddress; got != c.want {
			t.Errorf("%s %s: %q, want %q", c.args, c.text, got, c.want)
		}
	}
	_, warnings := loaded(t, "--detect-local-mode=NodeCIDR", "--bind-address=", "--healthz-bind-address=", "--metrics-bind-address=")
	want := []string{"--healthz-bind-address: no effect, as with kube-proxy: empty means the default, 0.0.0.0:10256; --healthz-port=0 switches the server off",
		"--metrics-bind-address: no effect, as with kube-proxy: empty means the default, 127.0.0.1:10249; --metrics-port=0 switches the server off"}
	if diff := cmp.Diff(want, warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}
