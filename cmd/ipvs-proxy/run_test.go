package main

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// together ends all parts when one fails, and tells of every failure.
func TestTogether(t *testing.T) {
	wait := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	fail := func(context.Context) error { return errors.New("broken") }
	if err := together(context.Background(), wait, fail); err == nil || err.Error() != "broken" {
		t.Errorf("one part fails: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := together(ctx, wait, wait); err != nil {
		t.Errorf("stopped from outside: %v", err)
	}
}

// Row F40: whoever is asked to stop while the kernel's door is opened has not failed: the exit status is 0. A cleanup that
// was stopped is not done. The agent is this program anew: it has the process to itself.
func TestStoppedAtTheDoor(t *testing.T) {
	const mark = "IPVS_PROXY_STOPPED_AT_THE_DOOR"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if dir := os.Getenv(mark); dir != "" {
		score, err := os.ReadFile("/proc/self/oom_score_adj") // the one that it has
		if err != nil {
			t.Fatal(err)
		}
		cmd := newCommand()
		cmd.SetArgs([]string{"run", "--hostname-override=node1", "--source-dir", dir, "--oom-score-adj=" + strings.TrimSpace(string(score))})
		if err := cmd.ExecuteContext(ctx); err != nil {
			t.Errorf("asked to stop: %v", err)
		}
		return
	}
	agent := exec.Command(os.Args[0], "-test.run=^TestStoppedAtTheDoor$", "-test.v")
	agent.Env = append(os.Environ(), mark+"="+t.TempDir())
	if out, err := agent.CombinedOutput(); err != nil || !strings.Contains(string(out), "stopped before the kernel was looked at") {
		t.Errorf("the agent ends with %v:\n%s", err, out)
	}
	cmd := newCommand()
	cmd.SetArgs([]string{"cleanup"})
	if err := cmd.ExecuteContext(ctx); err == nil {
		t.Error("a cleanup that was stopped says that it was done")
	}
}

// A value that cannot be used is an error that names the flag, in each command that has it.
func TestSetupFlags(t *testing.T) {
	for _, flag := range []string{"conntrack-max-per-core=-1", "conntrack-min=-1", "conntrack-tcp-timeout-established=-1s",
		"conntrack-tcp-timeout-close-wait=-1s", "conntrack-udp-timeout=-1s", "conntrack-udp-timeout-stream=-1s"} {
		for _, args := range [][]string{{"run", "--source-dir=/nowhere", "--hostname-override=n"}, {"init"}, {"check"}} {
			cmd := newCommand()
			cmd.SetOut(io.Discard)
			cmd.SetArgs(append(args, "--"+flag))
			if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "--"+flag+": want 0") {
				t.Errorf("%s --%s: %v", args[0], flag, err)
			}
		}
	}
}

func TestVersion(t *testing.T) {
	for _, c := range []struct {
		args  string
		words int
	}{{"version", 5}, {"run --version", 5}, {"run --version=true", 5}, {"run --version=raw", 1}} {
		cmd := newCommand()
		var out strings.Builder
		cmd.SetOut(&out)
		cmd.SetArgs(strings.Fields(c.args))
		err := cmd.Execute()
		if words := strings.Fields(out.String()); err != nil || len(words) != c.words || !slices.Contains(words, version) {
			t.Errorf("%s: %q, %v", c.args, out.String(), err)
		}
	}
	cmd := newCommand()
	cmd.SetArgs([]string{"run", "--version=loud"})
	if err := cmd.Execute(); err == nil || !strings.HasPrefix(err.Error(), "--version=loud: want") {
		t.Errorf("--version=loud: %v", err)
	}
}

// TestB50KeysHaveTheirEffect: what the file says is what kernel, loop and model are started with.
func TestB50KeysHaveTheirEffect(t *testing.T) {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	flags := config.RunFlags(fs)
	if err := fs.Parse([]string{"--config", "../../pkg/config/testdata/tuned.conf"}); err != nil {
		t.Fatal(err)
	}
	c, _, err := flags.Load(fs)
	if err != nil {
		t.Fatal(err)
	}
	ranges := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	tuned := kernel.Conntrack{Min: 100, TCPEstablished: 2 * time.Hour, UDP: 17 * time.Second, UDPStream: 90 * time.Second, TCPBeLiberal: true}
	compare := func(what string, got, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	compare("kernel", kernelConfig(c), kernel.Config{PodInterface: "cali*", MasqueradeAll: true, ForeignMarks: 1<<17 | 1<<14, Binding: kernel.BindRoute, StrictARP: true, Conntrack: tuned,
		Timeouts: kernel.Timeouts{TCP: 15 * time.Minute}})
	compare("node", nodeOptions(c), node.Options{Kernel: kernel.Config{StrictARP: true, Conntrack: tuned}, Scheduler: "sed"})
	sopt, _, err := syncOptions(c)
	if err != nil {
		t.Fatal(err)
	}
	compare("loop", sopt, sync.Options{
		Desk: desk.Options{Scheduler: "sed", NodePorts: desk.NodePortAddresses{Ranges: ranges("192.168.0.0/16", "fd00::/8")},
			ExternalIPs: ranges("198.51.100.0/24"), Protected: ranges("192.168.0.0/24", "fd00::/64"), Pods: ranges("10.244.0.0/16", "fd10:244::/32"), Spared: ranges("203.0.113.0/24")},
		DrainDeadline: time.Hour, AuditPeriod: 30 * time.Second, AuditCPU: 0.05,
	})

	c = config.Default()
	compare("default of conntrack", kernelConfig(c).Conntrack, kernel.DefaultConntrack)
	for mode, nodePods := range map[kubeproxy.LocalMode]bool{"ClusterCIDR": false, "NodeCIDR": true} {
		c.Proxy.ClusterCIDR, c.Proxy.DetectLocalMode = "10.244.0.0/16", mode
		if sopt, _, err = syncOptions(c); err != nil || sopt.NodePods != nodePods || (kernelConfig(c).ClusterCIDRs == nil) != nodePods {
			t.Errorf("%s: pods by the Node %t, by ranges %s, %v", mode, sopt.NodePods, kernelConfig(c).ClusterCIDRs, err)
		}
	}
	c.Proxy.NodePortAddresses = []string{"primary", "eth0"}
	if _, _, err = syncOptions(c); err == nil || !strings.HasPrefix(err.Error(), "--nodeport-addresses=primary,eth0: want address ranges") {
		t.Errorf("node ports on an interface: %v", err)
	}
}

// The file is for init and check as well: a value in it that cannot be used stops each.
func TestB50AllCommandsReadTheFile(t *testing.T) {
	dir := t.TempDir()
	conf, out := dir+"/config.conf", dir+"/out.conf"
	write := func(line string) {
		text := "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n" + line
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	execute := func(args ...string) error {
		cmd := newCommand()
		cmd.SetOut(io.Discard)
		cmd.SetArgs(append(args, "--config", conf))
		return cmd.ExecuteContext(t.Context())
	}
	const document = ": document 1 (KubeProxyConfiguration): "
	write("conntrack: {min: -1}")
	for _, args := range [][]string{{"run", "--source-dir=/nowhere"}, {"init"}, {"check"}} {
		if err := execute(args...); err == nil || err.Error() != conf+document+"conntrack.min: -1: want 0, which leaves the kernel's value alone, or more" {
			t.Errorf("%s: %v", args[0], err)
		}
	}
	write("nodePortAddresses: [primary, eth0]")
	if err := execute("run", "--source-dir=/nowhere"); err == nil || !strings.HasPrefix(err.Error(), conf+document+`nodePortAddresses: "primary,eth0": want address ranges`) {
		t.Errorf("node ports on an interface: %v", err)
	}
	write("clusterCIDR: 10.1.0.0/16")
	if err := execute("run", "--write-config-to", out); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(out); err != nil || !strings.Contains(string(text), "clusterCIDR: 10.1.0.0/16\n") || !strings.Contains(string(text), "maxPerCore: 32768\n") {
		t.Errorf("--write-config-to: %v\n%s", err, text)
	}
}
