package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
)

// What show, top and log print of a node, as a person reads it.
func TestB73ShowPrints(t *testing.T) {
	s := scene(t)
	for file, c := range map[string]struct {
		cmd    *cobra.Command
		args   []string
		status int
	}{
		"show.txt":         {newShowOf(s.sources), nil, 1},
		"show-service.txt": {newShowOf(s.sources), []string{"default/kubia"}, 0},
		"show-not.txt":     {newShowOf(s.sources), []string{"--state", "!open"}, 1},
		"show-address.txt": {newShowOf(s.sources), []string{"10.96.0.10:53"}, 0},
		"show-dns.txt":     {newShowOf(s.sources), []string{"-n", "kube-system", "--no-headers"}, 0},
		"top.txt":          {newTopOf(s.sources), []string{"--once", "--limit", "4", "--no-headers"}, 0},
		"show.json":        {newShowOf(s.sources), []string{"-o", "json", "shop/edge"}, 1},
		"show.yaml":        {newShowOf(s.sources), []string{"-o", "yaml", "-n", "kube-system"}, 0},
	} {
		t.Run(file, func(t *testing.T) {
			text, err := called(t, c.cmd, c.args...)
			if statusOf(err) != c.status {
				t.Errorf("ends with %v, want status %d", err, c.status)
			}
			if strings.HasSuffix(file, ".txt") {
				narrow(t, text)
			}
			golden(t, file, text)
		})
	}
	text, err := called(t, newShowOf(s.sources), "-o", "wide")
	if !strings.Contains(text, "IPX0203") || !strings.Contains(text, "a-service-whose-name-is-as-long-as-names-may-well-be") || statusOf(err) != 1 {
		t.Errorf("wide:\n%s%v", text, err)
	}
}

// What no Service has is shown on demand, and without an agent everything is: by its address.
func TestB73ShowForeign(t *testing.T) {
	s := scene(t)
	other := ipvs.Key{Addr: netip.MustParseAddr("192.0.2.7"), Port: 443, Proto: ipvs.TCP}
	s.kernel.Servers[other] = ipvs.Server{Scheduler: "wlc", Reals: []ipvs.Real{{Addr: netip.MustParseAddrPort("192.0.2.8:443"), Weight: 1}}}
	rows := func(from sources, args ...string) []string {
		t.Helper()
		text, err := called(t, newShowOf(from), append(args, "--no-headers")...)
		if status := statusOf(err); status == 2 {
			t.Fatalf("%v: %v", args, err)
		}
		narrow(t, text)
		return strings.Split(strings.TrimSpace(text), "\n")
	}
	if got := rows(s.sources, "--foreign"); len(got) != 1 || !strings.Contains(got[0], "192.0.2.7:443") || !strings.HasSuffix(got[0], "foreign") {
		t.Errorf("foreign: %q", got)
	}
	if all, ours := rows(s.sources, "--all"), rows(s.sources); len(all) != len(ours)+1 {
		t.Errorf("%d lines of all, %d of Services", len(all), len(ours))
	}
	if got := rows(s.sources, "192.0.2.7", "--all"); len(got) != 1 {
		t.Errorf("by its address: %q", got)
	}
	alone := s.sources
	alone.agent = func(context.Context) (net.Conn, error) { return nil, node.ErrNoAgent }
	if got, err := called(t, newShowOf(alone), "-o", "json"); err != nil || strings.Count(got, `"frontend":`) != len(s.kernel.Servers) || strings.Contains(got, "kubia") {
		t.Errorf("without an agent %d lines of %d virtual servers, %v", strings.Count(got, `"frontend":`), len(s.kernel.Servers), err)
	}
	text, err := called(t, newShowOf(alone))
	if err != nil || !strings.Contains(text, "there are no names of Services") || !strings.Contains(text, "no agent is at work") {
		t.Errorf("without an agent:\n%s%v", text, err)
	}
	if text, err := called(t, newTopOf(alone), "--once"); err != nil || !strings.Contains(text, "10.96.0.80:80") {
		t.Errorf("top without an agent:\n%s%v", text, err)
	}
}

// What cannot be done is said in one line, which says what to do, and the exit status is 2.
func TestB73ShowCannotLook(t *testing.T) {
	s := scene(t)
	noAgent, noRight, noIPVS, older := s.sources, s.sources, s.sources, s.sources
	noAgent.agent = func(context.Context) (net.Conn, error) { return nil, node.ErrNoAgent }
	older.agent = func(context.Context) (net.Conn, error) { return nil, node.ErrNotAnswered }
	noRight.kernel = func(context.Context) (counter, error) { return nil, kernel.ErrNotRoot }
	noIPVS.kernel = func(context.Context) (counter, error) {
		return nil, &kernel.MissingModuleError{Module: "ip_vs", Err: errors.New("none")}
	}
	for _, c := range []struct {
		cmd  *cobra.Command
		args []string
		says string
	}{
		{newShowOf(s.sources), []string{"default/kubai"}, "there is default/kubia"},
		{newShowOf(s.sources), []string{"kubia"}, "want NAMESPACE/NAME"},
		{newShowOf(s.sources), []string{"--state", "shut"}, "want open, no-endpoints"},
		{newShowOf(s.sources), []string{"-o", "xml"}, "want table, wide, json or yaml"},
		{newShowOf(s.sources), []string{"--foreign", "--all"}, "want one of them"},
		{newShowOf(s.sources), []string{"--limit", "-1"}, "want 0 or more"},
		{newShowOf(s.sources), []string{"a", "b"}, "at most 1 arg"},
		{newShowOf(noAgent), []string{"default/kubia"}, "no agent is at work"},
		{newShowOf(noAgent), []string{"-n", "default"}, "no agent is at work"},
		{newShowOf(older), []string{"default/kubia"}, "does not answer"},
		{newShowOf(noRight), nil, "CAP_NET_ADMIN"},
		{newShowOf(noIPVS), nil, "modprobe ip_vs"},
		{newTopOf(noRight), []string{"--once"}, "CAP_NET_ADMIN"},
		{newTopOf(s.sources), []string{"--limit", "0"}, "want 1 to"},
		{newTopOf(s.sources), []string{"--interval", "1ms"}, "want 100ms or more"},
		{newLogOf(noAgent), nil, "no agent is at work"},
		{newLogOf(s.sources), []string{"kubia"}, "want NAMESPACE/NAME"},
		{newLogOf(s.sources), []string{"--since", "-1s"}, "want 0 or more"},
	} {
		text, err := called(t, c.cmd, c.args...)
		if statusOf(err) != 2 || text != "" || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s %v: %v (%q), want %q and status 2", c.cmd.Name(), c.args, err, text, c.says)
		}
	}
}

// The log has what was written for a Service, what failed, and goes on while it is watched.
func TestB73LogPrints(t *testing.T) {
	s := scene(t)
	text, err := called(t, newLogOf(s.sources), "default/kubia", "--last", "2")
	if err != nil || strings.Count(text, "ipvsadm -e -t") != 2 || !strings.Contains(text, "default/kubia  (object, 0 ms after it was heard)") {
		t.Errorf("%s%v", text, err)
	}
	narrow(t, text)
	if text, err := called(t, newLogOf(s.sources), "shop/none"); err != nil || !strings.Contains(text, "no write of that kind") {
		t.Errorf("of nobody: %s%v", text, err)
	}
	all, err := called(t, newLogOf(s.sources), "-o", "json")
	if err != nil || strings.Count(all, `"number"`) < 40 {
		t.Errorf("as JSON %d writes, %v", strings.Count(all, `"number"`), err)
	}
	bad := netip.MustParseAddr("10.96.0.99")
	s.kernel.Fail = func(op ipvs.Op) error {
		if op.Effect().Key.Addr == bad && op.Effect().OfServer() {
			return errors.New("no room")
		}
		return nil
	}
	svc, e := aService("shop/bad", "10.96.0.99", 80, corev1.ProtocolTCP, "10.244.2.30@node2")
	s.give(svc, e)
	s.until(t, func(h inspect.Head) bool { return h.Failing == 1 })
	if text, err := called(t, newLogOf(s.sources), "shop/bad"); statusOf(err) != 1 || !strings.Contains(text, "failed: no room") {
		t.Errorf("a failure: %s%v", text, err)
	}
	text, err = called(t, newShowOf(s.sources), "shop/bad")
	if statusOf(err) != 1 || !strings.Contains(text, "The kernel refuses it: ") || !strings.Contains(text, "no room") {
		t.Errorf("what fails: %s%v", text, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	cmd := newLogOf(s.sources)
	cmd.SetOut(&stopping{stop: stop, at: "10.244.9.9:8080", begun: func() { // before, it might be among what --last leaves out
		svc, e := aService("shop/new", "10.96.0.98", 80, corev1.ProtocolTCP, "10.244.9.9@node2")
		s.give(svc, e)
	}})
	cmd.SetArgs([]string{"--watch", "--interval", "100ms", "--last", "1"})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.ExecuteContext(ctx); err != nil {
		t.Errorf("watched: %v", err)
	}
}

// stopping stops whoever writes to it, once a text has come.
type stopping struct {
	bytes.Buffer
	stop  func()
	at    string
	begun func() // what is to happen once something was written
}

func (s *stopping) Write(b []byte) (int, error) {
	n, err := s.Buffer.Write(b)
	if begun := s.begun; begun != nil {
		s.begun = nil
		begun()
	}
	if strings.Contains(s.String(), s.at) {
		s.stop()
	}
	return n, err
}

// Names of Services are completed, and states.
func TestCompletion(t *testing.T) {
	s := scene(t)
	for begun, want := range map[string][]string{"def": {"default/kubia"}, "shop/": {"shop/edge", "shop/empty"}, "x": nil} {
		cmd := newShowOf(s.sources)
		cmd.SetContext(t.Context())
		if got, _ := cmd.ValidArgsFunction(cmd, nil, begun); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", begun, got, want)
		}
	}
}

// Watched, show prints again and again, and an interruption is its end.
func TestShowWatch(t *testing.T) {
	s := scene(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	cmd := newShowOf(s.sources)
	out := &stopping{stop: stop, at: "10.96.0.97:80", begun: func() {
		svc, e := aService("shop/new", "10.96.0.97", 80, corev1.ProtocolTCP, "10.244.9.9@node2")
		s.give(svc, e)
	}}
	cmd.SetOut(out)
	cmd.SetArgs([]string{"--watch", "--interval", "100ms"})
	if err := cmd.ExecuteContext(ctx); err != nil || strings.Count(out.String(), "SERVICE") < 2 {
		t.Errorf("%v\n%s", err, out)
	}
}

// explain asks the agent where one runs, and says the same as it does: of a Service and of a packet. Where none runs, or a
// flag says by what, it looks by itself.
func TestB73ExplainAsksTheAgent(t *testing.T) {
	s := scene(t)
	for _, c := range []struct {
		args   []string
		status int
		says   []string
	}{
		{[]string{"default/kubia"}, 0, []string{"10.96.0.80:80/tcp  ClusterIP", "x  10.244.1.6:8080", "IPX0101", "kernel: agrees"}},
		{[]string{"shop/edge"}, 1, []string{"refused: 198.51.100.9 of spec.externalIPs"}},
		{[]string{"node", "to", "10.96.0.80:80"}, 0, []string{"10.244.2.11:8080"}},
		{[]string{"10.244.1.5", "to", "10.96.0.80:81"}, 1, []string{"IPX0301"}},
		{[]string{"default/kubai"}, 2, []string{"there is default/kubia"}},
	} {
		text, err := called(t, newExplainOf(s.sources), c.args...)
		if err != nil {
			text += err.Error()
		}
		if statusOf(err) != c.status {
			t.Errorf("%v: status %d, want %d\n%s", c.args, statusOf(err), c.status, text)
		}
		for _, want := range c.says {
			if !strings.Contains(text, want) {
				t.Errorf("%v does not say %q:\n%s", c.args, want, text)
			}
		}
	}
	s.kernel.Fail = func(op ipvs.Op) error {
		if op.Effect().OfServer() {
			return errors.New("no room")
		}
		return nil
	}
	svc, e := aService("shop/bad", "10.96.0.99", 80, corev1.ProtocolTCP, "10.244.2.30@node2")
	s.give(svc, e)
	s.until(t, func(h inspect.Head) bool { return h.Failing == 1 })
	for _, args := range [][]string{{"shop/bad"}, {"node", "to", "10.96.0.99:80"}} {
		if text, err := called(t, newExplainOf(s.sources), args...); statusOf(err) != 1 || !strings.Contains(text, "differs") || !strings.Contains(text, "ipvsadm -A -t 10.96.0.99:80 -s rr") {
			t.Errorf("what the kernel lacks: %v\n%s", err, text)
		}
	}
	asked := 0
	counting := s.sources
	counting.agent = func(context.Context) (net.Conn, error) { asked++; return nil, node.ErrNoAgent }
	for want, args := range [][]string{{"default/kubia", "--source-dir", t.TempDir()}, {"default/kubia"}} {
		if _, err := called(t, newExplainOf(counting), args...); statusOf(err) != 2 || asked != want {
			t.Errorf("%v: %v, asked %d times, want %d", args, err, asked, want)
		}
	}
}

// A table of many Services ends after so many lines and says that there are more; all of them are had on demand, and by
// scripts.
func TestB73ShowMany(t *testing.T) {
	var objs []any
	for i := range 1200 {
		svc, e := aService(fmt.Sprintf("many/s%04d", i), fmt.Sprintf("10.97.%d.%d", i/250, i%250+1), 80, corev1.ProtocolTCP, "10.244.2.10@node2")
		objs = append(objs, svc, e)
	}
	s := showNode(t, objs...)
	for _, c := range []struct {
		args  []string
		lines int
		more  bool
	}{{nil, 500, true}, {[]string{"--limit", "700"}, 700, true}, {[]string{"--limit", "0"}, 1200, false}, {[]string{"--limit", "1200"}, 1200, false},
		{[]string{"-o", "json"}, 1200, false}, {[]string{"10.97.1.1"}, 1, false}} {
		text, err := called(t, newShowOf(s.sources), c.args...)
		if n := strings.Count(text, "many/s"); err != nil || n != c.lines || strings.Contains(text, "and more:") != c.more {
			t.Errorf("%v: %d lines, want %d, and more %t (%v)", c.args, n, c.lines, c.more, err)
		}
	}
}
