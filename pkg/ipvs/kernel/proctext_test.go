package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// parseProc feeds a text in pieces of some size.
func parseProc(text []byte, piece int) (map[ipvs.Key]ipvs.Server, error) {
	found := map[ipvs.Key]ipvs.Server{}
	p := procParser{emit: func(k ipvs.Key, f *ipvs.Frontend, _ uint32) { found[k] = f.Server }}
	for len(text) > 0 {
		n := min(piece, len(text))
		if err := p.feed(text[:n]); err != nil {
			return nil, err
		}
		text = text[n:]
	}
	return found, p.end()
}

func reals(t *testing.T, list ...string) (rs []ipvs.Real) {
	t.Helper()
	for _, s := range list {
		var addr string
		var r ipvs.Real
		if _, err := fmt.Sscan(s, &addr, &r.Weight, &r.Forward); err != nil {
			t.Fatal(err)
		}
		r.Addr = netip.MustParseAddrPort(addr)
		rs = append(rs, r)
	}
	return rs
}

// TestProcText reads what a kernel printed, in pieces of every size.
func TestProcText(t *testing.T) {
	text, err := os.ReadFile("testdata/proc/6.1.txt")
	if err != nil {
		t.Fatal(err)
	}
	at := func(s string, p ipvs.Proto) ipvs.Key {
		a := netip.MustParseAddrPort(s)
		return ipvs.Key{Addr: a.Addr(), Port: a.Port(), Proto: p}
	}
	want := map[ipvs.Key]ipvs.Server{
		at("10.96.0.10:80", ipvs.TCP):    {Scheduler: "rr", Reals: reals(t, "10.244.1.10:8080 1 0", "10.244.1.11:8080 0 0")},
		at("10.96.0.11:53", ipvs.UDP):    {Scheduler: "wlc", Flags: ipvs.Persistent, Reals: reals(t, "10.244.1.12:53 65535 2", "10.244.1.13:53 65535 3")},
		at("10.96.0.12:7", ipvs.SCTP):    {Scheduler: "sh", Reals: reals(t, "127.0.0.1:7 1 0")},
		at("[fd00:96::10]:80", ipvs.TCP): {Scheduler: "lc", Flags: ipvs.Persistent, Reals: reals(t, "[fd10:244:1::10]:8080 7 0")},
		at("[fd00:96::11]:53", ipvs.UDP): {Scheduler: "rr"},
	}
	for piece := 1; piece <= len(text); piece++ {
		got, err := parseProc(text, piece)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("in pieces of %d: %v\ngot  %v\nwant %v", piece, err, got, want)
		}
	}
}

// TestProcTextRefuses: what is no such list is an error, not a list without virtual servers.
func TestProcTextRefuses(t *testing.T) {
	const server = "TCP  0A60000A:0050 rr  \n"
	for _, text := range []string{
		"garbage\n", "TCP\n", "TCP  0A60000A:0050\n", "TCP  0A60000:0050 rr\n", "TCP  0A60000A:005 rr\n", "TCP  0A6000XA:0050 rr\n",
		"TCP  [fd00:0096]:0050 rr\n", "TCP  [fd00-0096:0000:0000:0000:0000:0000:0010]:0050 rr\n", "ICMP  0A60000A:0050 rr\n",
		server + "  -> 0AF4010B:1F90      Masq    0      0\n", server + "  -> 0AF4010B:1F90      Nonesuch 1 0 0\n",
		server + "  -> 0AF4010B:1F90      Masq    x      0          0\n", server + "  -> nonsense      Masq    1      0          0\n",
		"TCP  0A60000A:0050 rr", strings.Repeat("x", 2*maxProcLine),
	} {
		if got, err := parseProc([]byte(text), 7); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}

// procOf writes a text of many virtual servers, as the kernel does.
func procOf(servers, reals int) []byte {
	var b strings.Builder
	b.WriteString("IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n")
	for i := range servers {
		fmt.Fprintf(&b, "TCP  0A%06X:0050 rr  \n", i)
		for j := range reals {
			fmt.Fprintf(&b, "  -> 0AF4%02X%02X:1F90      %-7s %-6d %-10d %-10d\n", i&255, j, "Masq", 1, 12, 345)
		}
	}
	return []byte(b.String())
}

func BenchmarkProcText(b *testing.B) {
	text := procOf(10_000, 10)
	n := 0
	p := procParser{emit: func(ipvs.Key, *ipvs.Frontend, uint32) { n++ }}
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		for at := 0; at < len(text); at += 4096 { // what the kernel gives at a time
			if err := p.feed(text[at:min(at+4096, len(text))]); err != nil {
				b.Fatal(err)
			}
		}
		if err := p.end(); err != nil {
			b.Fatal(err)
		}
		p.reset()
	}
	if n%10_000 != 0 {
		b.Fatalf("%d virtual servers", n)
	}
}

// FuzzProcIPVS: whatever the text, reading it neither panics nor depends on how it is cut.
func FuzzProcIPVS(f *testing.F) {
	recorded, err := os.ReadFile("testdata/proc/6.1.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(recorded, 7)
	f.Add(procOf(2, 3), 1)
	f.Add([]byte("TCP  0A60000A:0050 rr ops persistent 1 FF\n  -> 0AF4010B:1F90      Masq    -1      0          0"), 3)
	f.Fuzz(func(t *testing.T, text []byte, piece int) {
		whole, err := parseProc(text, max(1, len(text)))
		cut, cutErr := parseProc(text, 1+min(max(piece, 0), 1<<20))
		if (err == nil) != (cutErr == nil) && len(text) < maxProcLine {
			t.Fatalf("whole: %v, cut: %v", err, cutErr)
		}
		if err == nil && cutErr == nil && !maps.EqualFunc(whole, cut, func(a, b ipvs.Server) bool { return reflect.DeepEqual(a, b) }) {
			t.Fatalf("whole: %v, cut: %v", whole, cut)
		}
	})
}
