package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// elsewhere are the flags of kube-proxy's that cmd has, as they are no configuration; help is cobra's.
var elsewhere = []string{"help", "version", "write-config-to", "cleanup", "init-only", "master"}

// ofKubeProxy reads the flags of each minor release of kube-proxy's, as hack/kubeproxyflags wrote them down.
func ofKubeProxy(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, minor := range []string{"1.33", "1.34", "1.35", "1.36", "1.37"} {
		text, err := os.ReadFile(filepath.Join("testdata", "flags", minor))
		if err != nil {
			t.Fatal(err)
		}
		_, list, _ := strings.Cut(string(text), "\n")
		out[minor] = strings.Fields(list)
		if len(out[minor]) < 50 {
			t.Fatalf("kube-proxy %s has %d flags", minor, len(out[minor]))
		}
	}
	return out
}

// valueOf is a usable value of a flag that is not its default.
var valueOf = map[string]string{
	"bind-address": "192.0.2.1", "healthz-bind-address": "192.0.2.1:1", "metrics-bind-address": "192.0.2.1:2", "proxy-mode": "ipvs",
	"cluster-cidr": "10.9.0.0/16", "detect-local-mode": "NodeCIDR", "ipvs-scheduler": "lc", "ipvs-exclude-cidrs": "192.0.2.0/24",
	"feature-gates": "SomeGate=true", "nodeport-addresses": "primary", "logging-format": "json", "vmodule": "a=7",
	"healthz-port": "1", "metrics-port": "1", "kube-api-content-type": "application/json", "show-hidden-metrics-for-version": "1.36",
	"pod-bridge-interface": "br0", "pod-interface-name-prefix": "cali", "iptables-localhost-nodeports": "false",
}

// effectless are the flags that are accepted with one warning.
var effectlessFlags = strings.Fields("bind-address boot-id-file machine-id-file config-sync-period feature-gates healthz-port metrics-port " +
	"iptables-min-sync-period iptables-sync-period ipvs-min-sync-period log-flush-frequency log-json-info-buffer-size log-json-split-stream " +
	"log-text-info-buffer-size log-text-split-stream show-hidden-metrics-for-version vmodule")

// TestB50KubeProxysFlags: every flag that kube-proxy 1.33 to 1.37 takes is taken, alone and beside --config, with one
// warning where it has no effect.
func TestB50KubeProxysFlags(t *testing.T) {
	conf := file(t, proxyHead+"clusterCIDR: 10.244.0.0/16\n")
	quiet := map[string]bool{}
	for _, name := range effectlessFlags {
		quiet[name] = true
	}
	for minor, names := range ofKubeProxy(t) {
		for _, name := range names {
			if strings.Contains(" "+strings.Join(elsewhere, " ")+" config ", " "+name+" ") {
				continue
			}
			args := []string{"--" + name + "=" + flagValue(t, name)}
			if name != "cluster-cidr" {
				args = append(args, "--cluster-cidr=10.244.0.0/16")
			}
			_, warnings := loaded(t, args...)
			if want := quiet[name]; len(warnings) > 1 || (len(warnings) == 1) != want || want && !strings.HasPrefix(warnings[0], "--"+name+": no effect") && name != "feature-gates" {
				t.Errorf("%s --%s: warnings %q; has no effect: %t", minor, name, warnings, want)
			}
			_, warnings = loaded(t, "--config="+conf, args[0])
			if want := !over[name] || quiet[name]; (len(warnings) == 1) != want || len(warnings) > 1 {
				t.Errorf("%s --%s beside --config: warnings %q", minor, name, warnings)
			}
		}
	}
}

func flagValue(t *testing.T, name string) string {
	if v := valueOf[name]; v != "" {
		return v
	}
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	RunFlags(fs)
	f := fs.Lookup(name)
	if f == nil {
		t.Fatalf("no flag --%s", name)
	}
	switch f.Value.Type() {
	case "bool":
		return "true"
	case "duration":
		return "7s"
	}
	return "7"
}

// TestB50OldPorts: --healthz-port and --metrics-port do what they do with kube-proxy: 0 switches the server off, another
// value is the port of an address that has none. Where kube-proxy does not look at them no value ends the agent.
func TestB50OldPorts(t *testing.T) {
	const none = ": no effect, as with kube-proxy: it counts where --healthz-bind-address is given without a port"
	for _, c := range []struct{ args, healthz, metrics, warnings string }{
		{"--healthz-port=0 --metrics-port=0", "", "", ""},
		{"--healthz-port=0x0 --metrics-port=00", "", "", ""},
		{"--healthz-port=0 --healthz-bind-address=192.0.2.1:7", "", "127.0.0.1:10249", ""},
		{"--healthz-port=77 --healthz-bind-address=192.0.2.1", "192.0.2.1:77", "127.0.0.1:10249", ""},
		{"--healthz-port=0x4d --healthz-bind-address=192.0.2.1", "192.0.2.1:77", "127.0.0.1:10249", ""},
		{"--metrics-port=78 --metrics-bind-address=::1", "0.0.0.0:10256", "[::1]:78", ""},
		{"--healthz-port=10256 --metrics-port=10249", "0.0.0.0:10256", "127.0.0.1:10249", ""}, // the default
		{"--healthz-port=77", "0.0.0.0:10256", "127.0.0.1:10249", "--healthz-port" + none},
		{"--healthz-port=70000", "0.0.0.0:10256", "127.0.0.1:10249", "--healthz-port" + none},
		{"--healthz-port=-1 --healthz-bind-address=192.0.2.1:7", "192.0.2.1:7", "127.0.0.1:10249", "--healthz-port" + none},
	} {
		conf, warnings := loaded(t, append(strings.Fields(c.args), "--cluster-cidr=10.244.0.0/16")...)
		got := []string{conf.Proxy.HealthzBindAddress, conf.Proxy.MetricsBindAddress, strings.Join(warnings, "\n")}
		if diff := cmp.Diff([]string{c.healthz, c.metrics, c.warnings}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.args, diff)
		}
	}
	for _, c := range []struct{ args, value string }{ // kube-proxy ends as well
		{"--healthz-port=70000 --healthz-bind-address=192.0.2.1", "70000"},
		{"--healthz-port=3000000000", "3000000000"},
		{"--healthz-port=http", "http"},
	} {
		if _, _, err := load(t, strings.Fields(c.args)...); err == nil || err.Error() != "--healthz-port="+c.value+": want a port, or 0 for no server" {
			t.Errorf("%s: %v", c.args, err)
		}
	}
}

// TestB50BesideAFile: a flag that does not count beside a file is worth a warning where the file says something else, whatever
// the flag's value; those of the log count, and an empty --hostname-override leaves the file's.
func TestB50BesideAFile(t *testing.T) {
	conf := file(t, proxyHead+"clusterCIDR: 10.244.0.0/16\nmode: ipvs\nhostnameOverride: node7\nlogging: {format: text}\nipvs: {scheduler: lc}\nmetricsBindAddress: 0.0.0.0:9")
	const ignored = " is ignored, as kube-proxy does it: --config is given, and "
	for args, want := range map[string]string{
		"--proxy-mode=ipvs --ipvs-scheduler=lc --cluster-cidr=10.244.0.0/16 --metrics-port=9 --healthz-port=10256": "",
		"--ipvs-scheduler=rr":     "--ipvs-scheduler" + ignored + "ipvs.scheduler in it counts",
		"--healthz-port=0":        "--healthz-port" + ignored + "healthzBindAddress in it counts",
		"--metrics-port=10249":    "--metrics-port" + ignored + "metricsBindAddress in it counts",
		"--metrics-port=99999":    "--metrics-port" + ignored + "metricsBindAddress in it counts",
		"--metrics-bind-address=": "--metrics-bind-address" + ignored + "metricsBindAddress in it counts",
		"--hostname-override=":    "",
	} {
		c, warnings := loaded(t, append(strings.Fields(args), "--logging-format=json", "--config="+conf)...)
		if got := strings.Join(warnings, "\n"); got != want {
			t.Errorf("%s: warnings\n%s\nwant\n%s", args, got, want)
		}
		got := []string{c.Proxy.HealthzBindAddress, c.Proxy.MetricsBindAddress, c.Proxy.IPVS.Scheduler, c.Proxy.HostnameOverride, c.Proxy.Logging.Format}
		if diff := cmp.Diff([]string{"0.0.0.0:10256", "0.0.0.0:9", "lc", "node7", "json"}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", args, diff)
		}
	}
}

// TestB50DefaultFlags: a flag of kube-proxy's that is given the value that it has anyway, by whoever lists all, is worth no word.
func TestB50DefaultFlags(t *testing.T) {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	RunFlags(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		value := strings.Trim(f.DefValue, "[]") // of a list
		if _, warnings := loaded(t, "--"+f.Name+"="+value, "--detect-local-mode=NodeCIDR"); len(warnings) > 0 {
			t.Errorf("--%s=%s: warnings %q", f.Name, value, warnings)
		}
	})
}

// TestB50NoClusterCIDR: an empty clusterCIDR is said, with what comes of it, where nothing else tells pods from others.
func TestB50NoClusterCIDR(t *testing.T) {
	const said = "clusterCIDR: empty, and detectLocalMode is ClusterCIDR: nothing tells pods from clients outside the cluster: "
	const local = "; with externalTrafficPolicy Local pods get what clients outside get"
	for text, want := range map[string][]string{
		"": {said + "no client is masqueraded on its way to a ClusterIP, but for the node itself and a pod that reaches itself; " +
			"to node ports and external addresses all are, as ever" + local},
		"iptables: {masqueradeAll: true}": {said + "every client is masqueraded on its way to a ClusterIP, as iptables.masqueradeAll has it" + local},
		"detectLocalMode: NodeCIDR":       nil,
		"clusterCIDR: 10.244.0.0/16":      nil,
	} {
		name := file(t, proxyHead+text+"\n")
		check := pflag.NewFlagSet("check", pflag.ContinueOnError)
		flags := SetupFlags(check)
		if err := check.Parse([]string{"--config=" + name}); err != nil {
			t.Fatal(err)
		}
		_, byCheck, err := flags.Load(check)
		_, byRun := loaded(t, "--config", name)
		if diff := cmp.Diff([][]string{want, want}, [][]string{byRun, byCheck}); diff != "" || err != nil {
			t.Errorf("%q: %v, run and check (-want +got):\n%s", text, err, diff)
		}
	}
}

// TestB50Unread: what kube-proxy does not look at in mode ipvs ends no agent, whatever its value.
func TestB50Unread(t *testing.T) {
	for text, want := range map[string]string{
		"clusterCIDR: 10.0.0.0/8\nnftables: {masqueradeBit: 77}": "[nftables.masqueradeBit: no effect: a mark has the bits 0 to 31]",
		"detectLocalMode: NodeCIDR\nclusterCIDR: none":           "[]",
	} {
		if _, warnings := loaded(t, "--config", file(t, proxyHead+text)); fmt.Sprint(warnings) != want {
			t.Errorf("%s: warnings %q, want %s", text, warnings, want)
		}
	}
	_, warnings := loaded(t, "--cluster-cidr=10.0.0.0/8", "--iptables-sync-period=-1s", "--iptables-min-sync-period=-1s")
	want := []string{"--iptables-min-sync-period: no effect: for another proxy", "--iptables-sync-period: no effect: for another proxy"}
	if diff := cmp.Diff(want, warnings); diff != "" {
		t.Errorf("flags: warnings (-want +got):\n%s", diff)
	}
}

// TestB50DidYouMean: a key or a scheduler that looks misspelt is told from one that nobody knows.
func TestB50DidYouMean(t *testing.T) {
	for text, want := range map[string]string{
		"clusterCidr: 10.0.0.0/8":        `unknown field "clusterCidr", did you mean clusterCIDR?: ignored`,
		"ipvs: {shceduler: lc}":          `unknown field "ipvs.shceduler", did you mean ipvs.scheduler?: ignored`,
		"ipvs: {masqueradeAll: true}":    `unknown field "ipvs.masqueradeAll", did you mean iptables.masqueradeAll?: ignored`,
		"strictARP: true":                `unknown field "strictARP", did you mean ipvs.strictARP?: ignored`,
		"conntrack: {max: 7}":            `unknown field "conntrack.max": ignored`,
		"resourceContainer: /kube-proxy": `unknown field "resourceContainer": ignored`,
		"ipvs: {scheduler: wlcc}":        `ipvs.scheduler: "wlcc" is no scheduler of the kernel's source, which has rr, wrr, lc, wlc, lblc, lblcr, dh, sh, mh, sed, nq, fo, ovf: did you mean wlc?`,
		"ipvs: {scheduler: fastest}":     `ipvs.scheduler: "fastest" is no scheduler of the kernel's source, which has rr, wrr, lc, wlc, lblc, lblcr, dh, sh, mh, sed, nq, fo, ovf`,
		"ipvs: {scheduler: sed}":         "",
	} {
		name := file(t, proxyHead+"detectLocalMode: NodeCIDR\n"+text+"\n")
		_, warnings := loaded(t, "--config", name)
		if got := strings.ReplaceAll(strings.Join(warnings, "\n"), name+": ", ""); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", text, got, want)
		}
	}
	name := file(t, ownHead+"drainDeadlin: 5m\n")
	if _, _, err := load(t, "--config", name); err == nil || err.Error() != name+`: document 1 (IPVSProxyConfiguration): unknown field "drainDeadlin", did you mean drainDeadline?` {
		t.Errorf("our own document: %v", err)
	}
}
