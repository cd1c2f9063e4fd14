package desk

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
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
