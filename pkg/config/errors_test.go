package config

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// refused are values that cannot be used, by document, and the whole message about each, but for file and document.
var refused = []struct{ text, want string }{
	{"conntrack: {maxPerCore: -1}", `conntrack.maxPerCore: -1: want 0, which leaves the kernel's value alone, or more`},
	{"conntrack: {min: -1}", `conntrack.min: -1: want 0, which leaves the kernel's value alone, or more`},
	{"conntrack: {tcpEstablishedTimeout: -1s}", `conntrack.tcpEstablishedTimeout: "-1s": want 0, which leaves the kernel's value alone, or more`},
	{"conntrack: {tcpCloseWaitTimeout: -1s}", `conntrack.tcpCloseWaitTimeout: "-1s": want 0, which leaves the kernel's value alone, or more`},
	{"conntrack: {udpTimeout: -1s}", `conntrack.udpTimeout: "-1s": want 0, which leaves the kernel's value alone, or more`},
	{"conntrack: {udpStreamTimeout: -1s}", `conntrack.udpStreamTimeout: "-1s": want 0, which leaves the kernel's value alone, or more`},
	{"ipvs: {tcpTimeout: -1s}", `ipvs.tcpTimeout: "-1s": want 0, which leaves the kernel's value alone, or more`},
	{"ipvs: {tcpFinTimeout: -1s}", `ipvs.tcpFinTimeout: "-1s": want 0, which leaves the kernel's value alone, or more`},
	{"ipvs: {udpTimeout: -1s}", `ipvs.udpTimeout: "-1s": want 0, which leaves the kernel's value alone, or more`},
	{"ipvs: {syncPeriod: -1s}", `ipvs.syncPeriod: "-1s": want more than 0`},
	{"ipvs: {minSyncPeriod: -1s}", `ipvs.minSyncPeriod: "-1s": want 0 or more`},
	{"ipvs: {excludeCIDRs: [192.0.2.0/24, 1.2.3.4]}", `ipvs.excludeCIDRs: "1.2.3.4": want address ranges like 192.0.2.0/24`},
	{"ipvs: {excludeCIDRs: ['::ffff:1.2.3.0/120']}", `ipvs.excludeCIDRs: "::ffff:1.2.3.0/120": want address ranges like 192.0.2.0/24`},
	{"configSyncPeriod: -1s", `configSyncPeriod: "-1s": want more than 0`},
	{"clientConnection: {burst: -1}", `clientConnection.burst: -1: want 0 or more`},
	{"oomScoreAdj: 2000", `oomScoreAdj: 2000: want -1000 to 1000`},
	{"oomScoreAdj: -2000", `oomScoreAdj: -2000: want -1000 to 1000`},
	{"iptables: {masqueradeBit: 32}", `iptables.masqueradeBit: 32: want 0 to 31`},
	{"bindAddress: here", `bindAddress: "here": want an IP address`},
	{"healthzBindAddress: 'here:1'", `healthzBindAddress: "here:1": want an IP address and a port, like 0.0.0.0:10256`},
	{"healthzBindAddress: 'here'", `healthzBindAddress: "here": want an IP address and a port, like 0.0.0.0:10256`},
	{"metricsBindAddress: ':10249'", `metricsBindAddress: ":10249": want an IP address and a port, like 0.0.0.0:10256`},
	{"metricsBindAddress: '127.0.0.1:0'", `metricsBindAddress: "127.0.0.1:0": want an IP address and a port, like 0.0.0.0:10256`},
	{"metricsBindAddress: '127.0.0.1:70000'", `metricsBindAddress: "127.0.0.1:70000": want an IP address and a port, like 0.0.0.0:10256`},
	{"clusterCIDR: 10.244.0.0", `clusterCIDR: "10.244.0.0": want an address range like 10.244.0.0/16, or one of each family with a comma between`},
	{"clusterCIDR: '10.0.0.0/8,10.244.0.0/16'", `clusterCIDR: "10.0.0.0/8,10.244.0.0/16": want an address range like 10.244.0.0/16, or one of each family with a comma between`},
	{"clusterCIDR: '10.244.0.0/16,'", `clusterCIDR: "10.244.0.0/16,": want an address range like 10.244.0.0/16, or one of each family with a comma between`},
	{"clusterCIDR: '::ffff:10.244.0.0/112'", `clusterCIDR: "::ffff:10.244.0.0/112": want an address range like 10.244.0.0/16, or one of each family with a comma between`},
	{"detectLocalMode: Magic", `detectLocalMode: "Magic": want ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix`},
	{"detectLocalMode: BridgeInterface", `detectLocal.bridgeInterface: "": want the name of the pods' bridge, as detectLocalMode is BridgeInterface`},
	{"detectLocalMode: InterfaceNamePrefix", `detectLocal.interfaceNamePrefix: "": want the beginning of the names of the pods' interfaces, as detectLocalMode is InterfaceNamePrefix`},
	{"featureGates: {no gate: true}", `featureGates: "no gate=true": want names of feature gates like AllowServiceExternalIPs`},
	{"logging: {format: xml}", `logging.format: "xml": want text or json`},
	{"mode: userspace", `mode: "userspace": want ipvs or nothing; iptables and nftables are accepted, too, and served as ipvs`},
	{"oomScoreAdj: 2000\nmode: x\nhealthzBindAddress: a\nmetricsBindAddress: b", `oomScoreAdj: 2000: want -1000 to 1000
healthzBindAddress: "a": want an IP address and a port, like 0.0.0.0:10256
metricsBindAddress: "b": want an IP address and a port, like 0.0.0.0:10256
mode: "x": want ipvs or nothing; iptables and nftables are accepted, too, and served as ipvs`},

	// Not of the key's type.
	{"conntrack: {min: many}", `conntrack.min: "many": want a whole number that fits into 32 bits`},
	{"conntrack: {min: 3000000000}", `conntrack.min: 3000000000: want a whole number that fits into 32 bits`},
	{"conntrack: {min: 1.5}", `conntrack.min: 1.5: want a whole number that fits into 32 bits`},
	{"conntrack: 7", `conntrack: 7: want keys with values`},
	{"conntrack: {udpTimeout: 5, tcpCloseWaitTimeout: soon}", `conntrack.tcpCloseWaitTimeout: "soon": want a duration like 30s or 1h30m
conntrack.udpTimeout: 5: want a duration like 30s or 1h30m`},
	{"conntrack: {tcpBeLiberal: 'on'}", `conntrack.tcpBeLiberal: "on": want true or false`},
	{"clientConnection: {qps: fast}", `clientConnection.qps: "fast": want a number`},
	{"clusterCIDR: 10", `clusterCIDR: 10: want text, in quotes where it looks like something else`},
	{"clusterCIDR: {v4: 10.0.0.0/8}", `clusterCIDR: "10.0.0.0/8": want text, in quotes where it looks like something else`},
	{"nodePortAddresses: 10.0.0.0/8", `nodePortAddresses: "10.0.0.0/8": want a list`},
	{"featureGates: {A: yes please}", `featureGates.A: "yes please": want true or false`},
	{"logging: {verbosity: -1}", `logging.verbosity: -1: want a whole number, 0 or more, that fits into 32 bits`},
}

// refusedOwn is the same of our own document, in which unknown keys are errors, too.
var refusedOwn = []struct{ text, want string }{
	{"takeover: {leftovers: Delete}", `takeover.leftovers: "Delete": want Remove or Keep`},
	{"takeover: {leftover: Keep}", `unknown field "takeover.leftover", did you mean takeover.leftovers?`},
	{"statusPage: always", `statusPage: "always": want Loopback, Always or Never`},
	{"statusPage: true", `statusPage: true: want text, in quotes where it looks like something else`},
	{"vipBinding: bridge", `vipBinding: "bridge": want address or route`},
	{"drainDeadlin: 5m\nauditCUP: 1", "unknown field \"auditCUP\", did you mean auditCPU?\nunknown field \"drainDeadlin\", did you mean drainDeadline?"},
	{"vipBinding: route\nvipBinding: address", `line 4 of the document: "vipBinding" a second time: want it once`},
	{"takeover: {}\nx: 1\ntakeover: {}", "unknown field \"x\"\nline 5 of the document: \"takeover\" a second time: want it once"},
	{"drainDeadline: 0s", `drainDeadline: "0s": want more than 0`},
	{"auditPeriod: -3s", `auditPeriod: "-3s": want more than 0`},
	{"serviceMetrics: {mode: some}", `serviceMetrics.mode: "some": want Off, Selected or All`},
	{"serviceMetrics: {mode: selected, limit: 0}", `serviceMetrics.limit: 0: want 1 to 10000; mode: Off switches them off
serviceMetrics.mode: "selected": want Off, Selected or All; did you mean Selected?`},
	{"serviceMetrics: {limit: 10001}", `serviceMetrics.limit: 10001: want 1 to 10000; mode: Off switches them off`},
	{"serviceMetrics: {limit: many}", `serviceMetrics.limit: "many": want a whole number that fits into 32 bits`},
	{"serviceMetrics: {limits: 5}", `unknown field "serviceMetrics.limits", did you mean serviceMetrics.limit?`},
	{"auditCPU: 2", `auditCPU: 2: want a share of one processor, above 0 and up to 1`},
	{"auditCPU: 0", `auditCPU: 0: want a share of one processor, above 0 and up to 1`},
	{"externalIPCIDRs: [all]", `externalIPCIDRs: "all": want address ranges like 192.0.2.0/24`},
	{"externalIPCIDRs: ['::ffff:192.0.2.1/64']", `externalIPCIDRs: "::ffff:192.0.2.1/64": want address ranges like 192.0.2.0/24`},
	{"protectedCIDRs: [10.0.0.1]", `protectedCIDRs: "10.0.0.1": want address ranges like 192.0.2.0/24`},
	{"protectedCIDRs: ['::ffff:192.0.2.0/120']", `protectedCIDRs: "::ffff:192.0.2.0/120": want address ranges like 192.0.2.0/24`},
	{"serviceProxyName: 7", `serviceProxyName: 7: want text, in quotes where it looks like something else`},
}

// TestB50Errors: a value that cannot be used is an error whose every line names the file, which document of it, the key,
// the value, and what is allowed.
func TestB50Errors(t *testing.T) {
	for _, c := range refused {
		wantError(t, proxyHead+c.text, "document 1 (KubeProxyConfiguration): ", c.want)
		wantError(t, "# ours first\n"+ownHead+"---\n"+proxyHead+c.text, "document 2 (KubeProxyConfiguration): ", c.want)
	}
	for _, c := range refusedOwn {
		wantError(t, ownHead+c.text, "document 1 (IPVSProxyConfiguration): ", c.want)
		wantError(t, "---\n"+proxyHead+"---\n"+ownHead+c.text, "document 2 (IPVSProxyConfiguration): ", c.want)
	}
	const kinds = "want kubeproxy.config.k8s.io/v1alpha1, KubeProxyConfiguration, or ipvs-proxy.io/v1alpha1, IPVSProxyConfiguration"
	const none = "no document in it: want one of kind KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1), and IPVSProxyConfiguration (ipvs-proxy.io/v1alpha1) beside it where needed"
	for _, c := range []struct{ text, want string }{
		{"", none},
		{"# nothing\n---\n", none},
		{"kind: [", "document 1: yaml: line 1: did not find expected node content"},
		{"- a list", `document 1: ["a list"]: want keys with values, apiVersion and kind among them`},
		{"text", `document 1: "text": want keys with values, apiVersion and kind among them`},
		{proxyHead + "---\nkind: 7", "document 2: kind: 7: want text, in quotes where it looks like something else"},
		{proxyHead + "---\n" + proxyHead, "document 2 (KubeProxyConfiguration): document 1 is of this kind, too: want one"},
		{proxyHead + "---\nkind: Pod\napiVersion: v1", `document 2: apiVersion: "v1", kind: "Pod": ` + kinds},
		{strings.Replace(ownHead, "v1alpha1", "v1", 1), `document 1: apiVersion: "ipvs-proxy.io/v1", kind: "IPVSProxyConfiguration": ` + kinds},
		{proxyHead + "oomScoreAdj: 2000\n---\n" + ownHead + "vipBinding: bridge", "document 1 (KubeProxyConfiguration): oomScoreAdj: 2000: want -1000 to 1000\n" +
			`document 2 (IPVSProxyConfiguration): vipBinding: "bridge": want address or route`},
	} {
		wantError(t, c.text, "", c.want)
	}
	if _, _, err := load(t, "--config", "testdata/nowhere"); !errors.Is(err, fs.ErrNotExist) || err.Error() != "read the configuration: open testdata/nowhere: no such file or directory" {
		t.Errorf("no file: %v", err)
	}
}

// wantError loads a file and compares the error, of which each line begins with the file and the document.
func wantError(t *testing.T, text, document, want string) {
	t.Helper()
	name := file(t, text)
	_, _, err := load(t, "--config", name)
	front := name + ": " + document
	want = front + strings.ReplaceAll(want, "\n", "\n"+front)
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Errorf("%s\n(-want +got):\n%s", text, diff)
	}
}

// Each key of both documents is named, with the value, where that is of no type at all that a key has.
func TestB50EveryKeyIsNamed(t *testing.T) {
	for head, of := range map[string]struct {
		kind string
		t    reflect.Type
	}{
		proxyHead: {"KubeProxyConfiguration", reflect.TypeOf(Default().Proxy)},
		ownHead:   {"IPVSProxyConfiguration", reflect.TypeOf(Default().Own)},
	} {
		for _, key := range keysOf(of.t, "") {
			parts := strings.Split(key, ".")
			name := file(t, head+strings.Join(parts, ": {")+": [[1]]"+strings.Repeat("}", len(parts)-1))
			want := fmt.Sprintf("%s: document 1 (%s): %s: [[1]]: want ", name, of.kind, key)
			if _, _, err := load(t, "--config", name); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v, want it to begin with %s", key, err, want)
			}
		}
	}
}

// A flag that cannot be used is named as a flag, also where a file is read.
func TestFlagErrors(t *testing.T) {
	conf := file(t, proxyHead)
	for _, c := range []struct{ args, want string }{
		{"--cluster-cidr=10.244.0.0", "--cluster-cidr=10.244.0.0: want an address range like 10.244.0.0/16, or one of each family with a comma between"},
		{"--detect-local-mode=BridgeInterface", "--pod-bridge-interface=: want the name of the pods' bridge, as detectLocalMode is BridgeInterface"},
		{"--vip-binding=bridge", "--vip-binding=bridge: want address or route"},
		{"--protected-cidrs=10.0.0.0/8,x", "--protected-cidrs=x: want address ranges like 192.0.2.0/24"},
		{"--feature-gates=A=true,=true", "--feature-gates==true: want names of feature gates like AllowServiceExternalIPs"},
		{"--kube-api-qps=NaN", "--kube-api-qps=NaN: want a number"},
		{"--proxy-mode=userspace", "--proxy-mode=userspace: want ipvs or nothing; iptables and nftables are accepted, too, and served as ipvs"},
		{"--vip-binding=bridge --config=" + conf, "--vip-binding=bridge: want address or route"},
	} {
		if _, _, err := load(t, strings.Fields(c.args)...); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v; want %s", c.args, err, c.want)
		}
	}
}
