package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const toolsDir = "testdata/tools"

// ofTools is what is special about each tool's configuration: values by key, among them some that are the default and so
// in no golden file, and how the warnings begin.
var ofTools = map[string]struct {
	values   string
	warnings []string
}{
	"kubeadm":   {"mode=ipvs ipvs.scheduler=rr ipvs.syncPeriod=30s conntrack.maxPerCore=32768 hostnameOverride=worker-1 clusterCIDR=10.244.0.0/16,fd00:10:244::/56", nil},
	"kubespray": {"ipvs.scheduler=rr ipvs.strictARP=false ipvs.excludeCIDRs=[] ipvs.syncPeriod=30s ipvs.minSyncPeriod=0s ipvs.tcpTimeout=0s ipvs.tcpFinTimeout=0s ipvs.udpTimeout=0s conntrack.maxPerCore=32768 conntrack.min=131072 conntrack.tcpCloseWaitTimeout=1h0m0s conntrack.tcpEstablishedTimeout=24h0m0s clientConnection.acceptContentTypes= clientConnection.kubeconfig= portRange=", nil},
	"kubekey":   {"mode=ipvs ipvs.scheduler=rr ipvs.strictARP=false iptables.masqueradeBit=14 iptables.syncPeriod=30s", nil},
	"sealos":    {"metricsBindAddress=0.0.0.0:10249 ipvs.excludeCIDRs=[\"10.103.97.2/32\"]", nil},
	"gardener":  {"conntrack.maxPerCore=524288 clusterCIDR= detectLocalMode=ClusterCIDR nftables.syncPeriod=30s", []string{"clusterCIDR: empty, "}},
	"kkp": {"ipvs.strictARP=true ipvs.scheduler=rr ipvs.syncPeriod=30s ipvs.minSyncPeriod=0s conntrack.maxPerCore=0 conntrack.min=524288 conntrack.tcpCloseWaitTimeout=15m0s conntrack.tcpEstablishedTimeout=2h0m0s clusterCIDR=172.25.0.0/16,fd01::/48",
		[]string{toolsDir + `/kkp.yaml: unknown field "resourceContainer"`, toolsDir + `/kkp.yaml: unknown field "udpIdleTimeout"`}},
	"sighup":  {"ipvs.excludeCIDRs=null ipvs.scheduler=rr metricsBindAddress=0.0.0.0:10249", nil},
	"kubeone": {"ipvs.strictARP=true ipvs.scheduler=lc ipvs.excludeCIDRs=[\"192.0.2.0/24\",\"198.51.100.7/32\"] ipvs.tcpTimeout=15m0s ipvs.tcpFinTimeout=2m0s ipvs.udpTimeout=5m0s", nil},
	"k0s": {"conntrack.maxPerCore=0 ipvs.syncPeriod=30s iptables.minSyncPeriod=1s hostnameOverride=controller-0",
		[]string{toolsDir + `/k0s.yaml: unknown field "udpIdleTimeout"`}},
	"k3s":           {"healthzBindAddress=127.0.0.1:10256 conntrack.maxPerCore=0 conntrack.tcpEstablishedTimeout=0s conntrack.tcpCloseWaitTimeout=0s mode=ipvs ipvs.scheduler=lc ipvs.strictARP=true", nil},
	"rke2":          {"healthzBindAddress=[::1]:10256 conntrack.maxPerCore=0 mode=ipvs ipvs.scheduler=lc ipvs.strictARP=true", nil},
	"eks":           {"ipvs.scheduler=rr ipvs.excludeCIDRs=null ipvs.syncPeriod=30s ipvs.minSyncPeriod=0s oomScoreAdj=-998", []string{"clusterCIDR: empty, "}},
	"aks":           {"mode=ipvs ipvs.scheduler=lc ipvs.tcpTimeout=15m0s ipvs.tcpFinTimeout=2m0s ipvs.udpTimeout=5m0s", []string{"--proxy-mode: IPVS is taken for ipvs"}},
	"by-hand":       {"ipvs.scheduler=lc ipvs.syncPeriod=3s ipvs.minSyncPeriod=1s ipvs.tcpTimeout=2h0m0s ipvs.tcpFinTimeout=2m0s ipvs.udpTimeout=5m0s iptables.masqueradeAll=false iptables.masqueradeBit=14", []string{toolsDir + `/by-hand.yaml: unknown field "conntrack.max"`, toolsDir + `/by-hand.yaml: unknown field "ipvs.masqueradeAll", did you mean iptables.masqueradeAll?: ignored`, "ipvs.minSyncPeriod: no effect"}},
	"by-hand-nulls": {"conntrack.maxPerCore=32768 conntrack.min=131072 conntrack.tcpCloseWaitTimeout=1h0m0s iptables.masqueradeBit=14 ipvs.scheduler=lc ipvs.excludeCIDRs=null nodePortAddresses=null", nil},
}

// TestB50Tools: the configuration that a cluster's tools write starts the agent, is warned of only where something in it has
// no effect or is wrong, and comes to the values in the golden file, which are those that differ from the defaults. The
// files are made anew from what the tools write: a row of theirs each.
func TestB50Tools(t *testing.T) {
	args := toolArgs(t)
	for name := range ofTools {
		if args[name] == nil {
			t.Errorf("%s: neither %s.yaml nor %s.args is in %s", name, name, name, toolsDir)
		}
	}
	for name, args := range args {
		t.Run(name, func(t *testing.T) {
			c, warnings := loaded(t, args...)
			golden(t, filepath.Join(toolsDir, name+".golden"), summary(t, c, warnings))

			special, known := ofTools[name]
			if !known {
				t.Errorf("nothing is known of it by hand")
			}
			tree := plain(c.Proxy)
			for _, field := range strings.Fields(special.values) {
				key, want, _ := strings.Cut(field, "=")
				if got, has := tree[key]; !has || got != want {
					t.Errorf("%s is %q, want %q", key, got, want)
				}
			}
			if !slices.EqualFunc(warnings, special.warnings, strings.HasPrefix) {
				t.Errorf("warnings %q, want such as begin with %q", warnings, special.warnings)
			}
		})
	}
}

// toolArgs are the command lines of tools, by name: what stands in the .args file, or --config with the .yaml file alone.
func toolArgs(t *testing.T) map[string][]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(toolsDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, file := range files {
		name, ext := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)), filepath.Ext(file)
		switch {
		case ext == ".yaml" && out[name] == nil:
			out[name] = []string{"--config=" + file}
		case ext == ".args":
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out[name] = nil
			for line := range strings.Lines(string(text)) {
				if !strings.HasPrefix(line, "#") {
					out[name] = append(out[name], strings.Fields(line)...)
				}
			}
		}
	}
	return out
}

// summary is what a configuration comes to: the warnings, the values that are not the default, and what is made of them.
func summary(t *testing.T, c *Config, warnings []string) string {
	t.Helper()
	node, err := c.NodeName()
	if err != nil {
		t.Fatal(err)
	}
	if c.Proxy.HostnameOverride == "" {
		node = "the host's name"
	}
	var b strings.Builder
	b.WriteString("warnings:\n")
	for _, w := range warnings {
		fmt.Fprintf(&b, "  %s\n", w)
	}
	b.WriteString("values:\n")
	usual := Default()
	for _, pair := range [][2]any{{c.Proxy, usual.Proxy}, {c.Own, usual.Own}} {
		was := plain(pair[1])
		for _, l := range leaves(asTree(pair[0])) {
			if v := text(l.value); v != was[l.key()] && !(empty(l.value) && was[l.key()] == "null") {
				fmt.Fprintf(&b, "  %s: %s\n", l.key(), v)
			}
		}
	}
	fmt.Fprintf(&b, "node: %s\npod ranges: %s\n", node, c.ClusterCIDRs())
	return b.String()
}

// plain are the values of a document, by key.
func plain(document any) map[string]string {
	out := map[string]string{}
	for _, l := range leaves(asTree(document)) {
		out[l.key()] = text(l.value)
	}
	return out
}

// text is a value as a file may have it.
func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("%s is no JSON: %v", reflect.TypeOf(v), err)) // it comes from JSON
	}
	return string(b)
}

// golden compares with a file, or writes it.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("not as %s has it (-want +got):\n%s", file, diff)
	}
}
