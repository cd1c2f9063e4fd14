package legacy

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kubeproxy"
)

// layout says where the parts of an entry are: struct ipt_entry and struct ip6t_entry
// (include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h).
type layout struct {
	target, next, comefrom, counters, size int
}

var layouts = map[bool]layout{ // by whether it is IPv6
	false: {target: 88, next: 90, comefrom: 92, counters: 96, size: 112},
	true:  {target: 140, next: 142, comefrom: 144, counters: 152, size: 168},
}

const (
	hooks         = 5
	counterBytes  = 16 // struct xt_counters
	targetBytes   = 32 // struct xt_entry_target
	targetName    = 2  // in it, of targetNameMax bytes
	targetNameMax = 29
	nameBytes     = 32 // of a table, and of a chain in an ERROR target
	errorTarget   = "ERROR"
	verdictDrop   = -1 // -NF_DROP - 1
	hookInput     = 1  // NF_INET_LOCAL_IN
	hookForward   = 2  // NF_INET_FORWARD
)

// hookChains are the chains that packets come to by a hook.
var hookChains = [hooks]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

// info is what IPT_SO_GET_INFO tells of a table, struct ipt_getinfo.
type info struct {
	valid            uint32
	entry, underflow [hooks]uint32
	entries, size    uint32
}

// table is a table as the kernel gives it.
type table struct {
	info
	blob []byte
}

// entry is a rule, or what stands at the beginning or the end of a chain.
type entry struct {
	at, size int
	chain    string
	head     bool // it only bears the name of the chain that begins with it
	to       string
	verdict  int32 // where standard: a place in the blob, or below 0 an end
	standard bool
}

// parse takes a table apart.
func (t table) parse(l layout) (list []entry, err error) {
	for at := 0; at < len(t.blob); {
		if at+l.size > len(t.blob) {
			return nil, fmt.Errorf("entry at %d is cut off: %w", at, unix.EBADMSG)
		}
		raw := t.blob[at:]
		size, target := int(binary.NativeEndian.Uint16(raw[l.next:])), int(binary.NativeEndian.Uint16(raw[l.target:]))
		if size > len(raw) || target < l.size || target+targetBytes > size {
			return nil, fmt.Errorf("entry at %d of %d bytes with a target at %d: %w", at, size, target, unix.EBADMSG)
		}
		e := entry{at: at, size: size}
		switch name, rest := cString(raw[target+targetName:][:targetNameMax]), raw[target+targetBytes:size]; {
		case name == "" && len(rest) >= 4:
			e.standard, e.verdict = true, int32(binary.NativeEndian.Uint32(rest))
		case name == errorTarget:
			e.head, e.chain = true, cString(rest)
		}
		list = append(list, e)
		at += size
	}
	t.name(list)
	return list, nil
}

// name says of each entry in which chain it is, and to which one it leads.
func (t table) name(list []entry) {
	starts := map[int]string{}
	for h := range hooks {
		if t.valid&(1<<h) != 0 {
			starts[int(t.entry[h])] = hookChains[h]
		}
	}
	chain := ""
	for i := range list {
		e := &list[i]
		if name := starts[e.at]; name != "" {
			chain = name
		}
		if e.head {
			chain = e.chain
			starts[e.at+e.size] = chain
		}
		e.chain = chain
	}
	for i := range list {
		if e := &list[i]; e.standard && e.verdict >= 0 && int(e.verdict) != e.at+e.size {
			e.to = starts[int(e.verdict)]
		}
	}
}

// chains lists what kubeproxy.Going wants to know.
func (t table) chains(list []entry) (all []kubeproxy.Chain, jumps []kubeproxy.Jump) {
	for h := range hooks {
		if t.valid&(1<<h) == 0 {
			continue
		}
		all = append(all, kubeproxy.Chain{Name: hookChains[h], Base: true, Drops: h == hookForward && t.dropsAt(h, list)})
	}
	for _, e := range list {
		switch {
		case e.head && e.chain != errorTarget: // which is the end of the table
			all = append(all, kubeproxy.Chain{Name: e.chain})
		case e.to != "" && !kubeproxy.IsChain(e.chain):
			jumps = append(jumps, kubeproxy.Jump{From: e.chain, To: e.to})
		}
	}
	return all, jumps
}

// dropsAt reports whether the policy of a hook is to drop.
func (t table) dropsAt(h int, list []entry) bool {
	return slices.ContainsFunc(list, func(e entry) bool { return e.at == int(t.underflow[h]) && e.standard && e.verdict == verdictDrop })
}

// drops names the chains of packets to the node, and through it, whose policy is to drop.
func (t table) drops(list []entry) (names []string) {
	for _, h := range []int{hookInput, hookForward} {
		if t.valid&(1<<h) != 0 && t.dropsAt(h, list) {
			names = append(names, hookChains[h])
		}
	}
	return names
}

// without is the table without some entries, which must be whole chains and what leads to them. Kept are the places of
// the others among the old ones, in order.
func (t table) without(l layout, list []entry, gone func(entry) bool) (out table, kept []int) {
	places := map[uint32]uint32{} // where each entry comes to be; where one goes, the next one that stays
	at := uint32(0)
	for i, e := range list {
		places[uint32(e.at)] = at
		if !gone(e) {
			kept = append(kept, i)
			at += uint32(e.size)
		}
	}
	places[uint32(len(t.blob))] = at
	out.info = t.info
	for h := range hooks {
		if t.valid&(1<<h) != 0 {
			out.entry[h], out.underflow[h] = places[t.entry[h]], places[t.underflow[h]]
		}
	}
	for _, i := range kept {
		e := list[i]
		begin := len(out.blob)
		out.blob = append(out.blob, t.blob[e.at:e.at+e.size]...)
		raw := out.blob[begin:]
		if e.standard && e.verdict >= 0 {
			target := binary.NativeEndian.Uint16(raw[l.target:])
			binary.NativeEndian.PutUint32(raw[target+targetBytes:], places[uint32(e.verdict)])
		}
	}
	out.entries, out.size = uint32(len(kept)), uint32(len(out.blob))
	return out, kept
}

func cString(b []byte) string {
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
