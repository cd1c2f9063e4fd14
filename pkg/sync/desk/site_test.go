package desk

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// TestNodePortAddresses: which of a node's addresses serve node ports, for each setting (B11).
func TestNodePortAddresses(t *testing.T) {
	have := addrsOf("192.0.2.1", "192.0.2.2", "10.244.1.1", "2001:db8::1", "fd10:244:1::1")
	primaries := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")}
	all4, all6 := []string{"192.0.2.1", "192.0.2.2", "10.244.1.1"}, []string{"2001:db8::1", "fd10:244:1::1"}
	for _, c := range []struct {
		setting  string
		want     []string
		warnings int
	}{
		{"", slices.Concat(all4, all6), 0},
		{"all", slices.Concat(all4, all6), 0},
		{"primary", []string{"192.0.2.2", "2001:db8::1"}, 0},
		{"localhost", nil, 1},
		{"192.0.2.0/24", append([]string{"192.0.2.1", "192.0.2.2"}, all6...), 0},
		{"2001:db8::/32", append([]string{"2001:db8::1"}, all4...), 0},
		{"192.0.2.1/24,fd10::/16", []string{"192.0.2.1", "192.0.2.2", "fd10:244:1::1"}, 0},
		{"127.0.0.0/8", all6, 1},
		{"127.0.0.0/8,192.0.2.2/32", append([]string{"192.0.2.2"}, all6...), 1},
		{"::1/128,127.0.0.1/32", nil, 2},
		{"0.0.0.0/0", slices.Concat(all4, all6), 0},
		// Words and ranges together, as kube-proxy takes them since 1.37.
		{"primary,10.244.0.0/16", []string{"192.0.2.2", "10.244.1.1", "2001:db8::1"}, 0},
		{"localhost,primary", []string{"192.0.2.2", "2001:db8::1"}, 1},
		{"localhost,192.0.2.1/32", []string{"192.0.2.1"}, 1},
		{"all,localhost,192.0.2.1/32,primary", slices.Concat(all4, all6), 1},
	} {
		n, warnings, err := ParseNodePortAddresses(slices.DeleteFunc(strings.Split(c.setting, ","), func(s string) bool { return s == "" }))
		if err != nil || len(warnings) != c.warnings {
			t.Errorf("%q: %v, warnings %q, want %d", c.setting, err, warnings, c.warnings)
		}
		var got []netip.Addr
		for _, a := range have {
			if n.selects(a, primaries) {
				got = append(got, a)
			}
		}
		if !slices.Equal(got, addrsOf(c.want...)) {
			t.Errorf("%q selects %v, want %v", c.setting, got, c.want)
		}
	}
	for _, bad := range []string{"eth0", "192.0.2.0", "all,eth0", "::ffff:192.0.2.0/120"} {
		if _, _, err := ParseNodePortAddresses(strings.Split(bad, ",")); err == nil || !strings.Contains(err.Error(), `"`+bad[strings.LastIndex(bad, ",")+1:]+`"`) {
			t.Errorf("%q: %v, want an error that says it", bad, err)
		}
	}
}

// B82: the healthCheckNodePort of a load balancer's address is let through to whoever listens on the node, and no virtual
// server takes it; not on an address that is another program's, and not where a Service has the port.
func TestB82CheckAtBalancer(t *testing.T) {
	web := balancer("web", "10.96.0.1", "203.0.113.1", 1, 80)
	web.HealthCheckNodePort, web.ExternalLocal = 30200, true
	check := ipvs.Key{Addr: netip.MustParseAddr("203.0.113.1"), Port: 30200, Proto: ipvs.TCP}
	o := objects{web.ID: {svc: web, eps: []cluster.Endpoint{endpoint(1, "here")}}}
	d := decided(o, Options{}, ipvs.Local{})
	is := d.Decide(web.ID, time.Time{})
	if !slices.Equal(is.Check.At, addrsOf("203.0.113.1")) {
		t.Errorf("answered at %v", is.Check.At)
	}
	want := &ipvs.Frontend{Guard: ipvs.Guard{Owned: true, Open: true, Answered: true, VIP: true}, Bind: true}
	if got := d.Want(check, time.Time{}).Frontend; !got.Equal(want) {
		t.Errorf("wants %+v", got)
	}
	if got := decided(o, Options{}, ipvs.Local{Addrs: addrsOf("203.0.113.1")}).Want(check, time.Time{}).Frontend; got != nil {
		t.Errorf("on another program's address: %+v", got)
	}
	web.Ports[0].Port = 30200
	if got := decided(o, Options{}, ipvs.Local{}).Want(check, time.Time{}).Frontend; !got.Server.Exists() {
		t.Errorf("the Service has the port: %+v", got)
	}
	web.HealthCheckNodePort, web.Ports[0].Port = 0, 80
	if got := decided(o, Options{}, ipvs.Local{}).Want(check, time.Time{}).Frontend; got != nil {
		t.Errorf("without one: %+v", got)
	}
}
