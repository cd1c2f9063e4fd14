package config

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the golden files anew")

// load does what a command line does.
func load(t *testing.T, args ...string) (*Config, []string, error) {
	t.Helper()
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f := RunFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return f.Load(fs)
}

func loaded(t *testing.T, args ...string) (*Config, []string) {
	t.Helper()
	c, warnings, err := load(t, args...)
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return c, warnings
}

func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.conf")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func written(t *testing.T, c *Config) string {
	t.Helper()
	name := file(t, "")
	if err := c.Write(name); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestB50Files: what a file comes to, with the warnings, and that what is written is read as the same.
func TestB50Files(t *testing.T) {
	for name, args := range map[string][]string{
		// The arguments that kubeadm's DaemonSet has beside its file.
		"kubeadm": {"--hostname-override=Node1"},
		"tuned":   nil,
	} {
		t.Run(name, func(t *testing.T) {
			c, warnings := loaded(t, append(args, "--config", "testdata/"+name+".conf")...)
			node, err := c.NodeName()
			if err != nil {
				t.Fatal(err)
			}
			text := written(t, c)
			got := fmt.Sprintf("warnings:\n  %s\nnode: %s\npod ranges: %s\npod interface: %q\n\n%s", strings.Join(warnings, "\n  "), node,
				c.ClusterCIDRs(), c.PodInterface(), text)
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("not as %s has it (-want +got):\n%s", golden, diff)
			}

			again, _ := loaded(t, "--config", file(t, text))
			if diff := cmp.Diff(c, again, cmpopts.IgnoreUnexported(Config{})); diff != "" {
				t.Errorf("read again after writing (-before +after):\n%s", diff)
			}
		})
	}
}

const (
	proxyHead = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
	ownHead   = "apiVersion: ipvs-proxy.io/v1alpha1\nkind: IPVSProxyConfiguration\n"
)

// TestB50Errors: a value that cannot be used is an error that names file, key, value, and what is allowed.
func TestB50Errors(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{proxyHead + "conntrack: {min: many}", []string{`conntrack.min: "many": want a whole number`}},
		{proxyHead + "conntrack: {min: 3000000000}", []string{`conntrack.min: 3000000000: want a whole number`}},
		{proxyHead + "conntrack: {min: 1.5}", []string{`conntrack.min: 1.5: want a whole number`}},
		{proxyHead + "conntrack: {min: -1}", []string{`conntrack.min: "-1": want 0, which leaves`}},
		{proxyHead + "conntrack: 7", []string{`conntrack: 7: want keys with values`}},
		{proxyHead + "conntrack: {udpTimeout: 5, tcpCloseWaitTimeout: soon}", []string{`conntrack.udpTimeout: 5: want a duration like 30s`,
			`conntrack.tcpCloseWaitTimeout: "soon": want a duration like 30s`}},
		{proxyHead + "conntrack: {udpStreamTimeout: -1s}", []string{`conntrack.udpStreamTimeout: "-1s": want 0, which leaves`}},
		{proxyHead + "conntrack: {tcpBeLiberal: 'on'}", []string{`conntrack.tcpBeLiberal: "on": want true or false`}},
		{proxyHead + "clusterCIDR: 10", []string{`clusterCIDR: 10: want text`}},
		{proxyHead + "clusterCIDR: {v4: 10.0.0.0/8}", []string{`clusterCIDR: "10.0.0.0/8": want text`}},
		{proxyHead + "clusterCIDR: 10.244.0.0", []string{`clusterCIDR: "10.244.0.0": want an address range like 10.244.0.0/16`}},
		{proxyHead + "clusterCIDR: '10.0.0.0/8,10.244.0.0/16'", []string{`clusterCIDR: "10.0.0.0/8,10.244.0.0/16": want`, "one of each family"}},
		{proxyHead + "clusterCIDR: '10.244.0.0/16,'", []string{`clusterCIDR: "10.244.0.0/16,": want`}},
		{proxyHead + "nodePortAddresses: 10.0.0.0/8", []string{`nodePortAddresses: "10.0.0.0/8": want a list`}},
		{proxyHead + "featureGates: {A: yes please}", []string{`featureGates.A: "yes please": want true or false`}},
		{proxyHead + "featureGates: {no gate: true}", []string{`featureGates: "no gate=true": want names of feature gates like AllowServiceExternalIPs`}},
		{proxyHead + "logging: {format: xml}", []string{`logging.format: "xml": want text or json`}},
		{proxyHead + "mode: userspace", []string{`mode: "userspace": want ipvs or nothing`}},
		{proxyHead + "detectLocalMode: Magic", []string{`detectLocalMode: "Magic": want ClusterCIDR, NodeCIDR`}},
		{proxyHead + "detectLocalMode: BridgeInterface", []string{`detectLocal.bridgeInterface: "": want the name`}},
		{proxyHead + "detectLocalMode: InterfaceNamePrefix", []string{`detectLocal.interfaceNamePrefix: "": want the beginning`}},
		{proxyHead + "oomScoreAdj: 2000", []string{`oomScoreAdj: "2000": want -1000 to 1000`}},
		{proxyHead + "iptables: {masqueradeBit: 32}", []string{`iptables.masqueradeBit: "32": want 0 to 31`}},
		{proxyHead + "ipvs: {excludeCIDRs: [1.2.3.4]}", []string{`ipvs.excludeCIDRs: "1.2.3.4": want address ranges`}},
		{proxyHead + "ipvs: {tcpTimeout: -1s}", []string{`ipvs.tcpTimeout: "-1s": want 0`}},
		{proxyHead + "bindAddress: here", []string{`bindAddress: "here": want an IP address`}},
		{proxyHead + "healthzBindAddress: 'here:1'", []string{`healthzBindAddress: "here:1": want an IP address and a port`}},
		{proxyHead + "logging: {verbosity: -1}", []string{`logging.verbosity: -1: want a whole number, 0 or more`}},

		{ownHead + "takeover: {leftovers: Delete}", []string{`takeover.leftovers: "Delete": want Remove or Keep`}},
		{ownHead + "takeover: {leftover: Keep}", []string{"takeover", "leftover"}},
		{ownHead + "vipBinding: bridge", []string{`vipBinding: "bridge": want address or route`}},
		{ownHead + "drainDeadlin: 5m", []string{`unknown field "drainDeadlin"`}},
		{ownHead + "vipBinding: route\nvipBinding: address", []string{`vipBinding`, "already set"}},
		{ownHead + "drainDeadline: 0s", []string{`drainDeadline: "0s": want more than 0`}},
		{ownHead + "auditPeriod: -3s", []string{`auditPeriod: "-3s": want more than 0`}},
		{ownHead + "auditCPU: 2", []string{`auditCPU: "2": want a share of one processor`}},
		{ownHead + "externalIPCIDRs: [all]", []string{`externalIPCIDRs: "all": want address ranges`}},
		{ownHead + "protectedCIDRs: ['::ffff:192.0.2.0/120']", []string{`protectedCIDRs: "::ffff:192.0.2.0/120": want address ranges`}},
		{ownHead + "externalIPCIDRs: ['::ffff:192.0.2.1/64']", []string{`externalIPCIDRs: "::ffff:192.0.2.1/64": want address ranges`}},
		{proxyHead + "ipvs: {excludeCIDRs: ['::ffff:1.2.3.0/120']}", []string{`ipvs.excludeCIDRs: "::ffff:1.2.3.0/120": want address ranges`}},
		{proxyHead + "clusterCIDR: '::ffff:10.244.0.0/112'", []string{`clusterCIDR: "::ffff:10.244.0.0/112": want an address range`}},
		{ownHead + "protectedCIDRs: [10.0.0.1]", []string{`protectedCIDRs: "10.0.0.1": want address ranges`}},

		{"", []string{"no document in it: want one of kind KubeProxyConfiguration"}},
		{"# nothing\n---\n", []string{"no document in it"}},
		{"kind: [", []string{"document 1"}},
		{"- a list", []string{"document 1: not a document with apiVersion and kind"}},
		{proxyHead + "---\n" + proxyHead, []string{"document 2: a second document of kind KubeProxyConfiguration"}},
		{proxyHead + "---\nkind: Pod\napiVersion: v1", []string{`document 2: apiVersion: "v1", kind: "Pod": want kubeproxy.config.k8s.io/v1alpha1`}},
		{strings.Replace(ownHead, "v1alpha1", "v1", 1), []string{`apiVersion: "ipvs-proxy.io/v1"`, "ipvs-proxy.io/v1alpha1, IPVSProxyConfiguration"}},
	} {
		name := file(t, c.text)
		_, _, err := load(t, "--config", name)
		for _, want := range append(c.want, name) {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s\nerror: %v\nit does not say: %s", c.text, err, want)
			}
		}
	}
	if _, _, err := load(t, "--config", "testdata/nowhere"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// A flag that cannot be used is named as a flag, also where a file is read.
func TestFlagErrors(t *testing.T) {
	conf := file(t, proxyHead)
	for _, c := range []struct{ args, want string }{
		{"--cluster-cidr=10.244.0.0", "--cluster-cidr=10.244.0.0: want an address range like 10.244.0.0/16"},
		{"--detect-local-mode=BridgeInterface", "--pod-bridge-interface=: want the name of the pods' bridge"},
		{"--vip-binding=bridge", "--vip-binding=bridge: want address or route"},
		{"--protected-cidrs=10.0.0.0/8,x", "--protected-cidrs=x: want address ranges"},
		{"--feature-gates=A=true,=true", "--feature-gates==true: want names of feature gates"},
		{"--kube-api-qps=NaN", "--kube-api-qps=NaN: want a number"},
		{"--proxy-mode=userspace", "--proxy-mode=userspace: want ipvs or nothing"},
		{"--vip-binding=bridge --config=" + conf, "--vip-binding=bridge: want address or route"},
	} {
		if _, _, err := load(t, strings.Fields(c.args)...); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v; want %s", c.args, err, c.want)
		}
	}
}

// TestB50FlagsBesideAFile: as with kube-proxy, the file counts, but for the name of the node and the log; the
// flags that kube-proxy does not have count always.
func TestB50FlagsBesideAFile(t *testing.T) {
	conf := file(t, proxyHead+"clusterCIDR: 10.1.0.0/16\nhostnameOverride: a\nnodePortAddresses: [primary]\n---\n"+ownHead+"vipBinding: route\nprotectedCIDRs: [10.9.0.0/16]")
	c, warnings := loaded(t, "--config", conf, "--cluster-cidr=10.2.0.0/16", "--nodeport-addresses=all", "--ipvs-scheduler=sed",
		"--hostname-override=B", "-v4", "--vip-binding=address", "--protected-cidrs=10.8.0.0/16,10.7.0.0/16")
	name, err := c.NodeName()
	got := fmt.Sprint(c.ClusterCIDRs(), c.Proxy.NodePortAddresses, c.Proxy.IPVS.Scheduler, name, c.Proxy.Logging.Verbosity, c.Own.VIPBinding, c.Own.ProtectedCIDRs, err)
	if want := "[10.1.0.0/16] [primary] rr b 4 address [10.8.0.0/16 10.7.0.0/16] <nil>"; normal(got) != normal(want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	const ignored = "is ignored, as kube-proxy does it: --config is given, and "
	want := []string{"--cluster-cidr " + ignored + "clusterCIDR in it counts", "--ipvs-scheduler " + ignored + "ipvs.scheduler in it counts",
		"--nodeport-addresses " + ignored + "nodePortAddresses in it counts"}
	if diff := cmp.Diff(want, warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func normal(s string) string { return strings.ReplaceAll(s, " ", "") }

// A flag for a key that does nothing is named as the flag.
func TestFlagsWithoutEffect(t *testing.T) {
	_, warnings := loaded(t, "--cluster-cidr=10.244.0.0/16", "--kubeconfig=/k", "--config-sync-period=20m", "--iptables-masquerade-bit=3", "--ipvs-tcp-timeout=9s", "--proxy-mode=iptables", "--oom-score-adj=-999")
	want := []string{"--proxy-mode: iptables is another proxy; this one serves by IPVS",
		"--config-sync-period: no effect: changes are watched, and the agent looks at the kernel by itself: nothing is repeated", "--iptables-masquerade-bit: no effect: the agent marks no packets"}
	if diff := cmp.Diff(want, warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

// Every flag stands for a key of the documents, and is bound to that key and no other.
func TestFlagsAndKeys(t *testing.T) {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	RunFlags(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && keys[f.Name] == "" && keyless[f.Name] == "" {
			t.Errorf("--%s stands for no key", f.Name)
		}
	})
	for name, key := range keys {
		value := map[string]string{"bool": "true", "int32": "7", "uint32": "7", "float32": "7", "duration": "7s", "string": "7", "stringSlice": "7",
			"mapStringBool": "G=true", "quantity": "7", "pattern=N,...": "a=7"}
		f := fs.Lookup(name)
		if f == nil {
			t.Errorf("no flag --%s for %s", name, key)
			continue
		}
		one, c := pflag.NewFlagSet("one", pflag.ContinueOnError), Default()
		addSetup(one, c)
		addSpared(one, c)
		addRun(one, c)
		addUnused(one, c)
		set := value[f.Value.Type()]
		if f.DefValue == "true" {
			set = "false"
		}
		if err := one.Set(name, set); err != nil {
			t.Errorf("--%s: %v", name, err)
		}
		if got := strings.Join(append(changed(c), changedOwn(c)...), " "); got != key && got != key+".G" {
			t.Errorf("--%s changes %q, want %s", name, got, key)
		}
	}
}

func changedOwn(c *Config) (keys []string) {
	was := map[string]string{}
	for _, l := range leaves(asTree(Default().Own)) {
		was[l.key()] = fmt.Sprint(l.value)
	}
	for _, l := range leaves(asTree(c.Own)) {
		if was[l.key()] != fmt.Sprint(l.value) {
			keys = append(keys, l.key())
		}
	}
	return keys
}

// Every key of kube-proxy's document has an effect, or a warning that it has none.
func TestEveryKeyIsKnown(t *testing.T) {
	live := []string{"apiVersion", "kind", "hostnameOverride", "mode", "detectLocalMode", "detectLocal", "clusterCIDR", "nodePortAddresses",
		"clientConnection", "healthzBindAddress", "metricsBindAddress", "bindAddressHardFail", "enableProfiling", "ipvs.syncPeriod",
		"ipvs.scheduler", "ipvs.strictARP", "ipvs.excludeCIDRs", "iptables.masqueradeAll", "conntrack", "logging.verbosity", "logging.format",
		"ipvs.tcpTimeout", "ipvs.tcpFinTimeout", "ipvs.udpTimeout", "oomScoreAdj",
		// IPVS takes no packet from the loopback interface, so that false is what one gets, and true is the default.
		"iptables.localhostNodePorts"}
	for _, w := range without {
		live = append(live, w.key)
	}
next:
	for _, l := range leaves(asTree(Default().Proxy)) {
		for _, k := range live {
			if within(l.key(), k) {
				continue next
			}
		}
		t.Errorf("%s has neither an effect nor a warning", l.key())
	}
}

// FuzzFile: whatever a file holds, reading it does not panic, an error names the file, and what is accepted is
// read as the same after it was written.
func FuzzFile(f *testing.F) {
	for _, name := range []string{"kubeadm", "tuned"} {
		text, err := os.ReadFile("testdata/" + name + ".conf")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add(proxyHead + "conntrack: {udpTimeout: 5, min: x}")
	f.Fuzz(func(t *testing.T, text string) {
		c, _, err := parse("config.conf", []byte(text))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "config.conf: ") {
				t.Errorf("the error does not name the file: %v", err)
			}
			return
		}
		c.flags = map[string]string{}
		c.effectless()
		if c.Validate() != nil {
			return
		}
		again, _, err := parse("written", []byte(written(t, c)))
		if err != nil {
			t.Fatalf("what is accepted cannot be read after it was written: %v", err)
		}
		if diff := cmp.Diff(c, again, cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("read again after writing (-before +after):\n%s", diff)
		}
	})
}

// The configuration in the manifests is one that the agent takes without a word.
func TestManifests(t *testing.T) {
	c, warnings, err := read("../../manifests/fresh/config.conf")
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, warnings %q", err, warnings)
	}
	if err := c.Validate(); err != nil || c.Proxy.ClientConnection.Kubeconfig != "/var/lib/ipvs-proxy/kubeconfig.conf" {
		t.Errorf("%v; kubeconfig %s", err, c.Proxy.ClientConnection.Kubeconfig)
	}
}
