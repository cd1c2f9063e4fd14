package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// errProcText: the text is not the kernel's list of virtual servers.
var errProcText = errors.New("not the format of /proc/net/ip_vs")

// procParser reads the text of /proc/net/ip_vs as it comes, in pieces of any size
// (net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_info_seq_show):
//
//	IP Virtual Server version 1.2.1 (size=4096)
//	Prot LocalAddress:Port Scheduler Flags
//	  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
//	TCP  0A60000A:0050 rr ops persistent 600000 FFFFFFFF
//	  -> 0AF4010A:1F90      Masq    1      0          0
//	TCP  [fd00:0096:0000:0000:0000:0000:0000:000a]:0050 rr
//	  -> [fd10:0244:0001:0000:0000:0000:0000:000a]:1F90      Masq    1      0          0
//	FWM  00000001 rr
//
// It shows neither a timeout in seconds nor the flags of schedulers, nor thresholds.
type procParser struct {
	emit  detected
	rest  []byte // of a line that has not ended
	key   ipvs.Key
	sched string
	flags ipvs.Flags
	open  bool // key is a virtual server whose real servers may still come
	reals []ipvs.Real
	conns uint64            // of them
	names map[string]string // schedulers seen, so that a line costs no string
}

// maxProcLine is more than the kernel writes in a line; longer is something else.
const maxProcLine = 1024

// reset begins anew.
func (p *procParser) reset() {
	p.rest, p.reals, p.conns, p.open = p.rest[:0], p.reals[:0], 0, false
}

// feed takes the next piece of text.
func (p *procParser) feed(text []byte) error {
	for len(text) > 0 {
		end := bytes.IndexByte(text, '\n')
		if end < 0 {
			if len(p.rest)+len(text) > maxProcLine {
				return errProcText
			}
			p.rest = append(p.rest, text...)
			return nil
		}
		line := text[:end]
		text = text[end+1:]
		if len(p.rest) > 0 {
			p.rest = append(p.rest, line...)
			line = p.rest
		}
		if err := p.line(line); err != nil {
			return fmt.Errorf("%w: %.200q", err, line)
		}
		p.rest = p.rest[:0]
	}
	return nil
}

// end delivers the last virtual server.
func (p *procParser) end() error {
	if len(p.rest) > 0 {
		return fmt.Errorf("%w: it ends in the middle of a line", errProcText)
	}
	p.flush()
	return nil
}

// flush delivers the virtual server that is complete now. What it hands out is its own, not reused.
func (p *procParser) flush() {
	if !p.open {
		return
	}
	p.open = false
	f := &ipvs.Frontend{Server: ipvs.Server{Scheduler: p.sched, Flags: p.flags}}
	if len(p.reals) > 0 {
		f.Server.Reals = slices.Clone(ipvs.SortReals(p.reals))
	}
	conns := uint32(min(p.conns, math.MaxUint32))
	p.reals, p.conns = p.reals[:0], 0
	p.emit(p.key, f, conns)
}

func (p *procParser) line(line []byte) error {
	word, rest := nextWord(line)
	switch string(word) {
	case "->":
		return p.real(rest)
	case "IP", "Prot": // the heading
		return nil
	case "FWM": // no Key can name it
		p.flush()
		return nil
	}
	p.flush()
	proto, ok := procProtos[string(word)]
	if !ok {
		return errProcText
	}
	addr, rest := nextWord(rest)
	at, ok := procAddrPort(addr)
	if !ok {
		return errProcText
	}
	sched, rest := nextWord(rest)
	if len(sched) == 0 {
		return errProcText
	}
	p.key = ipvs.Key{Addr: at.Addr(), Port: at.Port(), Proto: proto}
	p.sched, p.flags, p.open = p.name(sched), 0, true
	for len(rest) > 0 {
		if word, rest = nextWord(rest); string(word) == "persistent" {
			p.flags |= ipvs.Persistent
		}
	}
	return nil
}

// real reads a line of a real server. Those of a firewall mark are skipped.
func (p *procParser) real(line []byte) error {
	addr, rest := nextWord(line)
	if string(addr) == "RemoteAddress:Port" || !p.open {
		return nil
	}
	method, rest := nextWord(rest)
	weight, rest := nextWord(rest)
	active, rest := nextWord(rest)
	inactive, _ := nextWord(rest)
	at, ok := procAddrPort(addr)
	forward, known := procForwards[string(method)]
	w, number := decimal(weight)
	a, counted := decimal(active)
	i, more := decimal(inactive)
	if !ok || !known || !number || !counted || !more {
		return errProcText
	}
	p.conns += a + i
	// More than 16 bits is not ours and must not look like it (the netlink reader does the same).
	p.reals = append(p.reals, ipvs.Real{Addr: at, Weight: uint16(min(w, math.MaxUint16)), Forward: forward})
	return nil
}

// name makes a string of a scheduler's name, once for all virtual servers that have it.
func (p *procParser) name(b []byte) string {
	if s, ok := p.names[string(b)]; ok {
		return s
	}
	if p.names == nil || len(p.names) > 64 { // the kernel has a dozen
		p.names = map[string]string{}
	}
	s := string(b)
	p.names[s] = s
	return s
}

var procProtos = map[string]ipvs.Proto{"TCP": ipvs.TCP, "UDP": ipvs.UDP, "SCTP": ipvs.SCTP}

var procForwards = map[string]ipvs.Forward{
	"Masq": ipvs.Masquerade, "Local": ipvs.LocalNode, "Tunnel": ipvs.Tunnel, "Route": ipvs.DirectRt,
}

func nextWord(b []byte) (word, rest []byte) {
	b = bytes.TrimLeft(b, " ")
	if i := bytes.IndexByte(b, ' '); i >= 0 {
		return b[:i], b[i:]
	}
	return b, nil
}

// procAddrPort reads 0A60000A:0050 or [fd00:0096:0000:0000:0000:0000:0000:000a]:0050.
func procAddrPort(b []byte) (netip.AddrPort, bool) {
	i := bytes.LastIndexByte(b, ':')
	if i < 0 || len(b)-i != 5 {
		return netip.AddrPort{}, false
	}
	port, ok := hexNumber(b[i+1:])
	if !ok {
		return netip.AddrPort{}, false
	}
	addr := b[:i]
	if len(addr) == 8 {
		v, ok := hexNumber(addr)
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), uint16(port)), ok
	}
	if len(addr) != 41 || addr[0] != '[' || addr[40] != ']' {
		return netip.AddrPort{}, false
	}
	var a [16]byte
	for g := range 8 {
		v, ok := hexNumber(addr[1+5*g : 5+5*g])
		if !ok || g < 7 && addr[5+5*g] != ':' {
			return netip.AddrPort{}, false
		}
		a[2*g], a[2*g+1] = byte(v>>8), byte(v)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(a), uint16(port)), true
}

// hexNumber reads up to eight digits.
func hexNumber(b []byte) (v uint32, ok bool) {
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			return 0, false
		}
		v = v<<4 | uint32(c)
	}
	return v, len(b) > 0
}

// decimal reads a number that the kernel prints signed; what is negative is one of 32 bits without sign.
func decimal(b []byte) (v uint64, ok bool) {
	if len(b) > 1 && b[0] == '-' {
		_, ok = decimal(b[1:])
		return math.MaxUint32, ok
	}
	for _, c := range b {
		if c < '0' || c > '9' || v > math.MaxUint32 {
			return 0, false
		}
		v = v*10 + uint64(c-'0')
	}
	return v, len(b) > 0
}
