package config

import (
	"flag"
	"fmt"
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
			golden(t, filepath.Join("testdata", name+".golden"), got)

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
		"--config-sync-period: no effect: changes are watched, and the agent looks at the kernel by itself: nothing is repeated"}
	if diff := cmp.Diff(want, warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

// Every flag stands for a key of the documents, and is bound to that key and no other.
func TestFlagsAndKeys(t *testing.T) {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	RunFlags(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && keys[f.Name] == "" && keyless[f.Name].usual == "" {
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
		"ipvs.scheduler", "ipvs.strictARP", "ipvs.excludeCIDRs", "iptables.masqueradeAll", "iptables.masqueradeBit", "nftables.masqueradeBit", "conntrack", "logging.verbosity", "logging.format",
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
	ofTools, err := filepath.Glob(filepath.Join(toolsDir, "*.yaml"))
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range append(ofTools, "testdata/kubeadm.conf", "testdata/tuned.conf") {
		text, err := os.ReadFile(name)
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
