package kernel

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// asked lists settings as name=value, without their directory.
func asked(c Conntrack, processors int) (out []string) {
	for _, s := range c.settings(processors) {
		out = append(out, fmt.Sprintf("%s=%s", strings.TrimPrefix(s.Name, "net/netfilter/nf_conntrack_"), s.Want))
	}
	return out
}

func TestConntrackSettings(t *testing.T) {
	for _, c := range []struct {
		name       string
		c          Conntrack
		processors int
		want       []string
	}{
		{"nothing", Conntrack{}, 8, nil},
		{"kube-proxy's default, small machine", DefaultConntrack, 2, []string{"max=131072", "tcp_timeout_established=86400", "tcp_timeout_close_wait=3600"}},
		{"kube-proxy's default, large machine", DefaultConntrack, 64, []string{"max=2097152", "tcp_timeout_established=86400", "tcp_timeout_close_wait=3600"}},
		{"no least number", Conntrack{MaxPerCore: 1000}, 4, []string{"max=4000"}},
		{"a least number alone means nothing", Conntrack{Min: 131072}, 4, nil},
		{"UDP", Conntrack{UDP: 30 * time.Second, UDPStream: 2 * time.Minute}, 1, []string{"udp_timeout=30", "udp_timeout_stream=120"}},
		{"parts of a second", Conntrack{UDP: time.Millisecond, UDPStream: 1500 * time.Millisecond}, 1, []string{"udp_timeout=1", "udp_timeout_stream=2"}},
		{"liberal", Conntrack{TCPBeLiberal: true}, 1, []string{"tcp_be_liberal=1"}},
	} {
		if got := asked(c.c, c.processors); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestAtLeast: the room of the table is never made smaller; a time is what was asked for, shorter or longer.
func TestAtLeast(t *testing.T) {
	const room, timeout = "net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_udp_timeout"
	c := Conntrack{MaxPerCore: 1000, UDP: 30 * time.Second}
	for have, want := range map[string]string{"999": "1000", "1000": "1000", "1001": "1001", "262144": "262144", "0": "0"} {
		root := procSys(t, map[string]string{room: have, timeout: "180"})
		wrote, warnings := ensureSettings(root, c.settings(1), false)
		if got := valueOf(t, root, room); got != want || len(warnings) > 0 {
			t.Errorf("room %s became %q (%q, %v), want %s", have, got, wrote, warnings, want)
		}
		if !slices.Contains(wrote, "sysctl -w "+timeout+"=30") {
			t.Errorf("wrote %q", wrote)
		}
	}
}

func TestCountRanges(t *testing.T) {
	for text, want := range map[string]int{"0\n": 1, "0-3\n": 4, "0-3,8,10-11": 7, "": 0, "none": 0, "3-0": 0, "0-": 0} {
		if got := countRanges(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	if processors() < 1 {
		t.Error("no processors")
	}
}

// TestConntrackOfANamespace: what may be written in a network namespace other than the first. All but the room
// of the table: there it is as it is, of which something is said when it is too small.
func TestConntrackOfANamespace(t *testing.T) {
	needsIPVS(t) // and connection tracking
	inNetns(t)
	const room = "net/netfilter/nf_conntrack_max"
	b, err := os.ReadFile(sysctlRoot + room)
	must(t, err)
	have := strings.TrimSpace(string(b))
	var max int
	if _, err := fmt.Sscan(have, &max); err != nil || max < 2 {
		t.Fatalf("%s is %q: %v", room, have, err)
	}
	c := Conntrack{MaxPerCore: max, TCPEstablished: 1000 * time.Second, TCPCloseWait: 1001 * time.Second, UDP: 1002 * time.Second,
		UDPStream: 1003 * time.Second, TCPBeLiberal: true}
	wrote, warnings := ensureSettings(sysctlRoot, c.settings(1), false)
	if len(wrote) != 5 || len(warnings) > 0 {
		t.Errorf("wrote %q, warnings %v; want five writes and no warning", wrote, warnings)
	}
	for _, s := range c.settings(1) {
		if value, right, err := s.Read(); err != nil || !right {
			t.Errorf("%s is %s, want %s (%v)", s.Name, value, s.Should(), err)
		}
	}
	wrote, warnings = ensureSettings(sysctlRoot, Conntrack{MaxPerCore: max, Min: max + 1}.settings(1), false)
	if len(wrote) > 0 || len(warnings) != 1 || !strings.Contains(warnings[0].Error(), fmt.Sprintf("%s is %d, should be at least %d", room, max, max+1)) {
		t.Errorf("too small: wrote %q, warnings %v", wrote, warnings)
	}
	if valueOf(t, sysctlRoot, room) != have {
		t.Errorf("%s was %s", room, have)
	}
}
