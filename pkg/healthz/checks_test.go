package healthz

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// The answers are kube-proxy 1.36's, byte for byte.
func TestB22Body(t *testing.T) {
	r := newRig(t)
	h := r.checkHandler(ServiceName{"prod", "web"}, IPv6)
	body := func(local int, healthy bool) string {
		return fmt.Sprintf("{\n\t\"service\": {\n\t\t\"namespace\": \"prod\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %t\n}", local, healthy)
	}
	r.wants(h, "/", 503, body(0, true))
	r.SetCheck("prod", "web", Check{Port: 30000, Local: [families]int{IPv4: 5, IPv6: 2}})
	r.wants(h, "/", 200, body(2, true))
	w := r.get(h, "/anything")
	for name, want := range map[string]string{"Content-Type": "application/json", "X-Content-Type-Options": "nosniff", "X-Load-Balancing-Endpoint-Weight": "2"} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	r.SetCheck("prod", "web", Check{Port: 30000, Local: [families]int{IPv4: 5}})
	r.wants(h, "/", 503, body(0, true))
	r.SetCheck("prod", "web", Check{Port: 30000, Local: [families]int{IPv6: 1}})
	r.Heard(1, 1)
	r.pass(time.Hour)
	r.wants(h, "/", 503, body(1, false))
}

// B82: where checks are served on some of the node's addresses, a Service's is served on its own as well, whether they are there
// by then or not, and no longer than they are wanted. Where all addresses are served these are among them.
func TestB82OwnAddresses(t *testing.T) {
	loop, away, away6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")
	all4, all6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	for _, c := range []struct{ node, own, want []netip.Addr }{
		{[]netip.Addr{loop}, []netip.Addr{away, away6}, []netip.Addr{loop, away, away6}},
		{[]netip.Addr{loop}, []netip.Addr{loop}, []netip.Addr{loop}},
		{[]netip.Addr{all4, all6}, []netip.Addr{away, away6}, []netip.Addr{all4, all6}},
		{[]netip.Addr{all4}, []netip.Addr{away}, []netip.Addr{all4}},
		{nil, []netip.Addr{away}, []netip.Addr{away}},
	} {
		if got := withOwn(c.node, c.own); !slices.Equal(got, c.want) {
			t.Errorf("of the node %v, its own %v: %v, want %v", c.node, c.own, got, c.want)
		}
	}
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.ServeChecks(ctx, zap.NewNop()) }()
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).AddrPort().Port()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	r.SetCheckAddresses([]netip.Addr{loop})
	r.SetCheck("prod", "web", Check{Port: port, At: []netip.Addr{away}})
	held := func(what string, want bool) {
		t.Helper()
		is := !want
		for end := time.Now().Add(20 * time.Second); is != want && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			is = listens(t, netip.AddrPortFrom(away, port))
		}
		if is != want {
			t.Errorf("%s: held %t, want %t", what, is, want)
		}
	}
	held("an address that is not there", true)
	if fault := r.CheckFault("prod", "web"); fault != "" {
		t.Errorf("fault %q", fault)
	}
	r.SetCheck("prod", "web", Check{Port: port})
	held("not wanted any more", false)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// listens reports whether some process listens at an address of IPv4, by the kernel's list (Documentation/networking/
// proc_net_tcp.rst): who tries to listen there takes it from the one that is to have it.
func listens(t *testing.T, at netip.AddrPort) bool {
	t.Helper()
	list, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	a := at.Addr().As4()
	const listening = "0A"
	for line := range strings.Lines(string(list)) {
		f := strings.Fields(line)
		if len(f) > 3 && f[1] == fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(a[:]), at.Port()) && f[3] == listening {
			return true
		}
	}
	return false
}

// Ports are open while they are wanted, on the addresses that are wanted, and are taken when they become free.
func TestB22Ports(t *testing.T) {
	r := newRig(t)
	core, logs := observer.New(zapcore.ErrorLevel)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.ServeChecks(ctx, zap.New(core)) }()
	loop := netip.MustParseAddr("127.0.0.1")
	other := netip.MustParseAddr("127.0.0.2")
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := taken.Addr().(*net.TCPAddr).AddrPort().Port()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	wants := func(what string, a netip.Addr, code int) { // 0: nobody listens
		t.Helper()
		got := -1
		for end := time.Now().Add(20 * time.Second); got != code && time.Now().Before(end); time.Sleep(time.Millisecond) {
			got = 0
			if resp, err := client.Get("http://" + netip.AddrPortFrom(a, port).String()); err == nil {
				got = resp.StatusCode
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		}
		if got != code {
			t.Fatalf("%s: %d from %s, want %d", what, got, a, code)
		}
	}
	r.SetCheckAddresses([]netip.Addr{loop})
	r.SetCheck("prod", "web", Check{Port: port, Local: [families]int{1}})
	news := func(what, fault string) {
		t.Helper()
		select {
		case <-r.CheckNews():
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: no news", what)
		}
		if ids, want := r.TakeCheckNews(), []ServiceName{{"prod", "web"}}; !slices.Equal(ids, want) {
			t.Errorf("%s: news of %v, want %v", what, ids, want)
		}
		if got := r.CheckFault("prod", "web"); got != fault {
			t.Errorf("%s: fault %q, want %q", what, got, fault)
		}
	}
	news("taken", fmt.Sprintf("listen tcp4 127.0.0.1:%d: bind: address already in use", port))
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	news("free", "")
	wants("the port is free now", loop, 200)
	r.SetCheck("prod", "web", Check{Port: port})
	wants("no endpoint any more", loop, 503)
	wants("not served there", other, 0)
	r.SetCheckAddresses([]netip.Addr{loop, other})
	wants("one address more", other, 503)
	r.SetCheckAddresses([]netip.Addr{other})
	wants("one less", loop, 0)
	wants("the other stays", other, 503)
	r.SetCheck("prod", "web", Check{})
	wants("the Service is gone", other, 0)
	r.SetCheck("prod", "two", Check{Port: port, Local: [families]int{3}})
	wants("another Service takes the port", other, 200)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	wants("stopped", other, 0)
	if logs.Len() > 0 {
		t.Errorf("logged here, and by who is told as well: %v", logs.All())
	}
}
