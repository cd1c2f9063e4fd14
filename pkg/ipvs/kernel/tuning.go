package kernel

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Conntrack is how connection tracking is tuned, with the meaning of kube-proxy's configuration. A zero leaves
// a value as it is.
type Conntrack struct {
	// MaxPerCore entries for each processor, but Min at least, is what the table is to have room for. It is
	// only ever given more room. With MaxPerCore 0, Min has no meaning.
	MaxPerCore, Min int
	// How long an entry lives after its last packet, in whole seconds (parts of one are rounded up): of an
	// established TCP connection, of a half closed one, of a UDP flow without an answer, and of one with answers.
	TCPEstablished, TCPCloseWait, UDP, UDPStream time.Duration
	// TCPBeLiberal takes packets outside of TCP's window for part of their connection.
	TCPBeLiberal bool
}

// DefaultConntrack is kube-proxy's default.
var DefaultConntrack = Conntrack{MaxPerCore: 32 << 10, Min: 128 << 10, TCPEstablished: 24 * time.Hour, TCPCloseWait: time.Hour}

// settings lists the sysctls on a machine with so many processors. The size of the hash table
// (nf_conntrack_buckets) is left alone: the kernel chose it by the machine's memory, and can be told at boot.
func (c Conntrack) settings(processors int) (list []Setting) {
	const dir = "net/netfilter/nf_conntrack_"
	if c.MaxPerCore > 0 {
		list = append(list, Setting{Name: dir + "max", Want: strconv.Itoa(max(c.MaxPerCore*processors, c.Min)),
			Else: "new connections are dropped when so many are tracked", AtLeast: true, Tuning: true})
	}
	for _, t := range []struct {
		name string
		d    time.Duration
		what string
	}{
		{"tcp_timeout_established", c.TCPEstablished, "idle TCP connections are forgotten at another time"},
		{"tcp_timeout_close_wait", c.TCPCloseWait, "TCP connections that a client has half closed are forgotten at another time"},
		{"udp_timeout", c.UDP, "UDP flows without an answer are forgotten at another time"},
		{"udp_timeout_stream", c.UDPStream, "UDP flows are forgotten at another time"},
	} {
		if t.d > 0 {
			// Less than a second must not become 0: entries would end at once.
			seconds := (t.d + time.Second - 1) / time.Second
			list = append(list, Setting{Name: dir + t.name, Want: strconv.Itoa(int(seconds)), Else: t.what, Tuning: true})
		}
	}
	if c.TCPBeLiberal {
		list = append(list, Setting{Name: dir + "tcp_be_liberal", Want: "1", Else: "TCP packets outside the window are not translated, and may reset their connection", Tuning: true})
	}
	return list
}

// processors counts the machine's: this process may be confined to some of them.
func processors() int {
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if n := countRanges(string(b)); err == nil && n > 0 {
		return n
	}
	return runtime.NumCPU()
}

// countRanges counts the numbers in a list like 0-3,8; 0 where it is no list.
func countRanges(text string) (n int) {
	for r := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		first, last, isRange := strings.Cut(r, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err != nil || err2 != nil || to < from {
			return 0
		}
		n += to - from + 1
	}
	return n
}
