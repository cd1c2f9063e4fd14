package contract

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// refusal is an operation on a kernel in some state.
type refusal struct {
	op     ipvs.Op
	when   string
	before []ipvs.Op
	noBase bool
}

// Refusals tries what a kernel may refuse and returns its answers, a line each:
// "family protocol operation | precondition | errno". A kernel's answers are kept in testdata of package
// kernel; the fake's must be the same. Only those are tried whose line begins with what wanted takes.
func Refusals(t *testing.T, open func(t *testing.T) Kernel, wanted func(line string) bool) string {
	var out strings.Builder
	for _, c := range suites() {
		for _, r := range c.table() {
			line := fmt.Sprintf("%s %s %s | %s | ", c.family, strings.ToUpper(c.key.Proto.String()), nameOf(r.op), r.when)
			if !wanted(line) {
				continue
			}
			k := open(t)
			if !r.noBase {
				if _, err := k.Base(ctxOf(t)); err != nil {
					t.Fatal(err)
				}
			}
			must(t, k, c.key, r.before...)
			before := dumpOf(t, k)
			o := k.Do(ctxOf(t), ipvs.Plan{{Key: c.key, Op: r.op}})[0]
			if o.Unknown {
				t.Errorf("%s: unknown: %v", r.op, o.Err)
			}
			if after := dumpOf(t, k); o.Err != nil && before != after {
				t.Errorf("%s was refused (%v) and yet changed\n%s\nto\n%s", r.op, o.Err, before, after)
			}
			out.WriteString(line + errnoName(o.Err) + "\n")
		}
	}
	return out.String()
}

func nameOf(op ipvs.Op) string {
	if e, ok := op.(ipvs.Element); ok && e.Remove {
		return "Element remove"
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", op), "ipvs.")
}

func errnoName(err error) string {
	var e syscall.Errno
	switch {
	case err == nil:
		return "done"
	case errors.As(err, &e):
		if name := errnoNames[e]; name != "" {
			return name
		}
		return fmt.Sprintf("errno %d", int(e))
	}
	return err.Error()
}

var errnoNames = map[syscall.Errno]string{
	syscall.ENOENT: "ENOENT", syscall.ESRCH: "ESRCH", syscall.EEXIST: "EEXIST", syscall.ENODEV: "ENODEV", syscall.EINVAL: "EINVAL",
	syscall.ERANGE: "ERANGE", syscall.EOPNOTSUPP: "EOPNOTSUPP", syscall.EAFNOSUPPORT: "EAFNOSUPPORT", syscall.EADDRNOTAVAIL: "EADDRNOTAVAIL",
}

// dumpOf is all that the kernel holds, as text.
func dumpOf(t *testing.T, k Kernel) string {
	t.Helper()
	var out strings.Builder
	if err := k.Scan(ctxOf(t), func(key ipvs.Key, o ipvs.Observed) { fmt.Fprintf(&out, "%s %+v\n", key, *o.Have) }); err != nil {
		// Before Base there is no table to read.
		return "unreadable"
	}
	return out.String()
}

// table lists what is tried in one family with one protocol, each on a kernel of its own.
func (c *suite) table() []refusal {
	rr := ipvs.AddServer{Key: c.key, Scheduler: "rr"}
	add := ipvs.AddReal{Key: c.key, Real: c.real(0, 1)}
	owned := ipvs.Element{Set: ipvs.SetOwned, Key: c.key}
	gone := func(e ipvs.Element) ipvs.Element { e.Remove = true; return e }
	there, whole := []ipvs.Op{rr}, []ipvs.Op{rr, add}
	sibling := c.sibling()
	rs := []refusal{
		{op: ipvs.SetServer(rr), when: "no server"},
		{op: ipvs.DelServer{Key: c.key}, when: "no server"},
		{op: add, when: "no server"},
		{op: ipvs.SetReal(add), when: "no server"},
		{op: ipvs.DelReal{Key: c.key, Addr: c.pods[0]}, when: "no server"},
		{op: rr, when: "no server"},
		{op: rr, when: "exists", before: there},
		{op: ipvs.AddServer{Key: c.key, Scheduler: "nonesuch"}, when: "no such scheduler"},
		{op: ipvs.AddServer{Key: c.key}, when: "no name of a scheduler"},
		{op: ipvs.SetServer{Key: c.key, Scheduler: "nonesuch"}, when: "no such scheduler", before: there},
		{op: ipvs.SetServer(rr), when: "the same", before: there},
		{op: ipvs.DelServer{Key: c.key}, when: "with real servers", before: whole},
		{op: ipvs.SetReal(add), when: "no such real server", before: there},
		{op: ipvs.DelReal{Key: c.key, Addr: c.pods[0]}, when: "no such real server", before: there},
		{op: add, when: "exists", before: whole},
		{op: ipvs.SetReal(add), when: "the same", before: whole},
		{op: ipvs.AddReal{Key: c.key, Real: c.real(0, 65535)}, when: "weight 65535", before: there},
		{op: ipvs.AddReal{Key: c.key, Real: ipvs.Real{Addr: netip.AddrPortFrom(c.pods[0].Addr(), 0), Weight: 1}}, when: "port 0", before: there},
		{op: owned, when: "missing"}, {op: owned, when: "exists", before: []ipvs.Op{owned}},
		{op: gone(owned), when: "missing"}, {op: gone(owned), when: "exists", before: []ipvs.Op{owned}},
		{op: owned, when: "no table", noBase: true}, {op: gone(owned), when: "no table", noBase: true},
		{op: ipvs.Forget{Key: c.key}, when: "nothing to forget"},
		{op: rr, when: "another protocol has the port", before: sibling},
		{op: ipvs.DelServer{Key: c.key}, when: "another protocol has the port", before: sibling},
		{op: add, when: "another protocol has the port", before: sibling},
		{op: gone(owned), when: "another protocol has the port", before: sibling},
	}
	if c.key.Proto == ipvs.TCP {
		rs = append(rs, c.addressTable()...)
	}
	return rs
}

// sibling makes a virtual server at the same address and port with another protocol.
func (c *suite) sibling() []ipvs.Op {
	key := c.key
	key.Proto = ipvs.UDP
	if c.key.Proto == ipvs.UDP {
		key.Proto = ipvs.TCP
	}
	return []ipvs.Op{ipvs.AddServer{Key: key, Scheduler: "rr"}, ipvs.Element{Set: ipvs.SetOwned, Key: key}}
}

// addressTable lists what has to do with addresses alone, so that one protocol is enough: an address on the
// interface has none, and the kernel judges that of a real server without looking at it (ip_vs_new_dest).
func (c *suite) addressTable() []refusal {
	bind, unbind := ipvs.Bind{Addr: c.key.Addr}, ipvs.Unbind{Addr: c.key.Addr}
	rs := []refusal{
		{op: bind, when: "not bound"}, {op: bind, when: "bound", before: []ipvs.Op{bind}},
		{op: unbind, when: "not bound"}, {op: unbind, when: "bound", before: []ipvs.Op{bind}},
		{op: bind, when: "no interface", noBase: true}, {op: unbind, when: "no interface", noBase: true},
	}
	there := []ipvs.Op{ipvs.AddServer{Key: c.key, Scheduler: "rr"}}
	for _, bad := range c.badReals() {
		r := ipvs.AddReal{Key: c.key, Real: ipvs.Real{Addr: netip.AddrPortFrom(bad.addr, 8080), Weight: 1}}
		rs = append(rs, refusal{op: r, when: bad.what, before: there}, refusal{op: ipvs.SetReal(r), when: bad.what, before: there},
			refusal{op: ipvs.DelReal{Key: c.key, Addr: r.Real.Addr}, when: bad.what, before: there})
	}
	return rs
}

type badReal struct {
	what string
	addr netip.Addr
}

// badReals are addresses that are no endpoint of a Service, whether the kernel takes them or not.
func (c *suite) badReals() []badReal {
	parse := netip.MustParseAddr
	if c.key.Addr.Is4() {
		return []badReal{{"other family", parse("fd10:244:1::10")}, {"unspecified", parse("0.0.0.0")}, {"multicast", parse("224.0.0.1")},
			{"broadcast", parse("255.255.255.255")}, {"loopback", parse("127.0.0.1")}, {"link-local", parse("169.254.1.1")},
			{"the virtual IP", c.key.Addr}}
	}
	return []badReal{{"other family", parse("10.244.1.10")}, {"unspecified", parse("::")}, {"multicast", parse("ff02::1")},
		{"loopback", parse("::1")}, {"link-local", parse("fe80::1")}, {"the virtual IP", c.key.Addr}}
}

// forget: deleting what was never tracked is no error, for one Key or many.
func (c *suite) forget(t *testing.T, k Kernel) {
	if _, err := k.Base(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	plan := ipvs.Plan{{Key: c.key, Op: ipvs.Forget{Key: c.key}}, {Key: c.other, Op: ipvs.Forget{Key: c.other}}}
	for i, o := range k.Do(ctxOf(t), plan) {
		if o.Err != nil {
			t.Errorf("%s: %v", plan[i].Op, o.Err)
		}
	}
}
