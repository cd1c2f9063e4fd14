package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// flow is a connection as the table shows it.
type flow struct {
	key    ipvs.Key       // where the client sent to
	client netip.AddrPort // who it is
	answer netip.AddrPort // who answers
	zone   uint16
}

func (c *conntrackDoor) putTuple(attr uint16, src, dst netip.AddrPort, p ipvs.Proto) {
	b := &c.b
	from, to := uint16(ctV4Src), uint16(ctV4Dst)
	if src.Addr().Is6() {
		from, to = ctV6Src, ctV6Dst
	}
	b.nest(attr, func() {
		b.nest(ctTupleIP, func() { b.attr(from, src.Addr().AsSlice()); b.attr(to, dst.Addr().AsSlice()) })
		b.nest(ctTupleProto, func() {
			b.attr(ctProtoNum, []byte{byte(p)})
			b.attrPort(ctProtoSrcPort, src.Port())
			b.attrPort(ctProtoDstPort, dst.Port())
		})
	})
}

// make puts entries into the table, as packets would.
func (c *conntrackDoor) make(t *testing.T, flows ...flow) {
	t.Helper()
	const ctTimeout = 7
	for _, f := range flows {
		c.b.reset()
		c.b.begin(ctType(ctMsgNew), unix.NLM_F_CREATE|unix.NLM_F_EXCL, nfgen(byte(af(f.key.Addr)), 0))
		c.putTuple(ctTupleOrig, f.client, netip.AddrPortFrom(f.key.Addr, f.key.Port), f.key.Proto)
		c.putTuple(ctTupleReply, f.answer, f.client, f.key.Proto)
		c.b.attr(ctTimeout, binary.BigEndian.AppendUint32(nil, 300))
		if f.zone != 0 {
			c.b.attr(ctZone, binary.BigEndian.AppendUint16(nil, f.zone))
		}
		c.b.acknowledge()
		replies, err := c.sock.exchange(context.Background(), &c.b)
		if err != nil || replies[0].err != nil {
			t.Fatalf("make entry %+v: %v %v", f, err, replies)
		}
	}
}

// table lists the Keys of all entries of both families.
func (c *conntrackDoor) table(t *testing.T) (keys []ipvs.Key) {
	t.Helper()
	c.b.reset()
	c.b.begin(ctType(ctMsgGet), unix.NLM_F_DUMP, nfgen(0, 0))
	if err := c.sock.dump(context.Background(), &c.b, func(m []byte) error {
		e, err := parseCT(m)
		keys = append(keys, e.key)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(keys, ipvs.Key.Compare)
	return keys
}

func udp(addr string, port uint16) ipvs.Key {
	return ipvs.Key{Addr: netip.MustParseAddr(addr), Port: port, Proto: ipvs.UDP}
}

// straight answers from the virtual IP: it bypasses IPVS.
func straight(k ipvs.Key, client string) flow {
	return flow{key: k, client: netip.MustParseAddrPort(client), answer: netip.AddrPortFrom(k.Addr, k.Port)}
}

func testConntrack(t *testing.T) *conntrackDoor {
	t.Helper()
	inNetns(t)
	c := newConntrack()
	t.Cleanup(c.close)
	return c
}

// TestForget: only what bypasses a virtual server is deleted, of the frontends asked for.
func TestForget(t *testing.T) {
	dns4, dns6, web := udp("10.96.0.10", 53), udp("fd00:96::10", 53), udp("10.96.0.11", 80)
	tcp, metrics := ipvs.Key{Addr: dns4.Addr, Port: 53, Proto: ipvs.TCP}, udp("10.96.0.10", 9153)
	balanced4, balanced6 := straight(dns4, "10.244.1.5:1001"), straight(dns6, "[fd10:244:1::5]:1001")
	balanced4.answer = netip.MustParseAddrPort("10.244.2.7:5353")
	balanced6.answer = netip.MustParseAddrPort("[fd10:244:2::7]:5353")
	moved := straight(dns4, "10.244.1.5:1002")
	moved.answer = netip.MustParseAddrPort("10.96.0.10:121") // what the kernel makes of it: another source port
	zone := straight(dns4, "10.244.1.5:1003")
	zone.zone = 7
	stale := []flow{straight(dns4, "10.244.1.5:1000"), moved, straight(dns6, "[fd10:244:1::5]:1000"),
		straight(web, "10.244.1.6:1000"), straight(tcp, "10.244.1.5:1000"), straight(metrics, "10.244.1.5:1000")}
	for _, asked := range [][]ipvs.Key{{dns4, dns6, web}, {dns4}, {dns6}, {dns4, web}, {dns4, tcp}, {dns4, metrics}, {udp("10.96.0.99", 53)}} {
		t.Run(strings.ReplaceAll(fmt.Sprint(asked), "/", " "), func(t *testing.T) {
			c := testConntrack(t)
			left := []ipvs.Key{dns4, dns6, dns4}
			for _, f := range stale {
				if !slices.Contains(asked, f.key) {
					left = append(left, f.key)
				}
			}
			slices.SortFunc(left, ipvs.Key.Compare)
			c.make(t, slices.Concat(stale, []flow{balanced4, balanced6, zone})...)
			for range 2 { // the second time there is nothing to do
				forget(t, c, asked...)
				if got := c.table(t); !slices.Equal(got, left) {
					t.Fatalf("left %v\nwant %v", got, left)
				}
			}
		})
	}
}

func forget(t *testing.T, c *conntrackDoor, keys ...ipvs.Key) {
	t.Helper()
	var ops []ipvs.Forget
	for _, k := range keys {
		ops = append(ops, ipvs.Forget{Key: k})
	}
	for _, o := range c.forget(context.Background(), ops) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
	}
}

// TestForgetUndirected: of a frontend whose clients are redirected now, everything goes that was not.
func TestForgetUndirected(t *testing.T) {
	for _, vip := range []string{"203.0.113.10", "fd20:113::10"} {
		dns, other := udp(vip, 53), udp(vip, 54)
		c := testConntrack(t)
		client, pod := netip.AddrPortFrom(dns.Addr.Next(), 1000), netip.AddrPortFrom(dns.Addr.Next().Next(), 5353)
		c.make(t, flow{key: dns, client: client, answer: pod}, flow{key: other, client: netip.AddrPortFrom(client.Addr(), 1002), answer: pod}, straight(dns, netip.AddrPortFrom(client.Addr(), 1001).String()))
		if out := c.forget(context.Background(), []ipvs.Forget{{Key: dns, Undirected: true}}); out[0].Err != nil {
			t.Fatal(out[0].Err)
		}
		if got := c.table(t); !slices.Equal(got, []ipvs.Key{other}) {
			t.Errorf("left %v, want %v", got, other)
		}
		for status, want := range map[uint32]bool{0x08e: true, 0x0ae: false} { // as the kernel writes it; with IPS_DST_NAT
			c.b.reset()
			c.b.begin(ctType(ctMsgNew), 0, nfgen(byte(af(dns.Addr)), 0))
			c.putTuple(ctTupleOrig, client, netip.AddrPortFrom(dns.Addr, 53), ipvs.UDP)
			c.putTuple(ctTupleReply, pod, client, ipvs.UDP)
			c.b.attr(ctStatus, binary.BigEndian.AppendUint32(nil, status))
			c.b.attrU32(ctID, 7)
			c.b.finish()
			if err := eachMessage(c.b.data, func(_, _ uint16, _ uint32, body []byte) {
				e, err := parseCT(body)
				if err != nil || e.useless(ipvs.Forget{Key: dns, Undirected: true}) != want || e.useless(ipvs.Forget{Key: dns}) {
					t.Errorf("status %#x: %+v, %v; want useless %t", status, e, err, want)
				}
			}); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestForgetDirected: of the clients that were redirected those lose their entry whom a real server answers that is none
// any more.
func TestForgetDirected(t *testing.T) {
	frontend := func(reals ...string) *ipvs.Frontend {
		fe := &ipvs.Frontend{}
		for _, r := range reals {
			fe.Server.Reals = append(fe.Server.Reals, ipvs.Real{Addr: netip.MustParseAddrPort(r), Weight: 1})
		}
		return fe
	}
	for _, x := range []struct {
		vip, own, target, gone, client string
	}{
		{"203.0.113.10", "10.244.1.7:5353", "10.244.2.7:5353", "10.244.2.8:5353", "10.244.1.5:1000"},
		{"fd20:113::10", "[fd10:244:1::7]:5353", "[fd10:244:2::7]:5353", "[fd10:244:2::8]:5353", "[fd10:244:1::5]:1000"},
	} {
		c := testConntrack(t)
		vip := udp(x.vip, 53)
		op := ipvs.Forget{Key: vip, Directed: true, Own: frontend(x.own), Target: frontend(x.target, x.own)}
		none := ipvs.Forget{Key: vip, Directed: true}
		const directed, not = 0x0ae, 0x08e // as the kernel writes them
		answer := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
		for _, e := range []struct {
			name    string
			op      ipvs.Forget
			status  uint32
			answers netip.AddrPort
			useless bool
		}{
			{"by the target's", op, directed, answer(x.target), false},
			{"by its own", op, directed, answer(x.own), false},
			{"by one that is gone", op, directed, answer(x.gone), true},
			{"by another port", op, directed, netip.AddrPortFrom(answer(x.target).Addr(), 5454), true},
			{"by one that is gone, through IPVS", op, not, answer(x.gone), false},
			{"by one that is gone, not asked for", ipvs.Forget{Key: vip}, directed, answer(x.gone), false},
			{"the frontend is gone", none, directed, answer(x.target), true},
			{"past IPVS", op, not, netip.AddrPortFrom(vip.Addr, 53), true},
			{"a node port of the host network", ipvs.Forget{Key: vip, Directed: true, Own: frontend(netip.AddrPortFrom(vip.Addr, 5353).String())},
				not, netip.AddrPortFrom(vip.Addr, 5353), false},
		} {
			c.b.reset()
			c.b.begin(ctType(ctMsgNew), 0, nfgen(byte(af(vip.Addr)), 0))
			c.putTuple(ctTupleOrig, answer(x.client), netip.AddrPortFrom(vip.Addr, 53), ipvs.UDP)
			c.putTuple(ctTupleReply, e.answers, answer(x.client), ipvs.UDP)
			c.b.attr(ctStatus, binary.BigEndian.AppendUint32(nil, e.status))
			c.b.attrU32(ctID, 7)
			c.b.finish()
			if err := eachMessage(c.b.data, func(_, _ uint16, _ uint32, body []byte) {
				got, err := parseCT(body)
				if err != nil || got.key != vip || got.answers != e.answers || got.useless(e.op) != e.useless {
					t.Errorf("%s, answered %s: %+v, %v; want useless %t", x.vip, e.name, got, err, e.useless)
				}
			}); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestForgetSparesANewEntry: an entry that took the place of the one that was found is left alone.
func TestForgetSparesANewEntry(t *testing.T) {
	c := testConntrack(t)
	dns := udp("10.96.0.10", 53)
	c.make(t, straight(dns, "10.244.1.5:1000"))
	ctx := context.Background()
	found, err := c.find(ctx, []ipvs.Forget{{Key: dns}})
	if err != nil || len(found) != 1 {
		t.Fatalf("found %v, %v", found, err)
	}
	found[0].id[0] ^= 1 // as if it were another one's
	c.remove(ctx, found, func(k ipvs.Key, r reply) { t.Errorf("%s: %v", k, r.err) })
	if got := c.table(t); !slices.Equal(got, []ipvs.Key{dns}) {
		t.Errorf("an entry of another number is gone: %v", got)
	}
}

// TestForgetMany: more entries than fit into a buffer, and as many Keys, in one go.
func TestForgetMany(t *testing.T) {
	c := testConntrack(t)
	var ops []ipvs.Forget
	for i := range 300 {
		k := udp("10.96.0.10", uint16(1000+i))
		ops = append(ops, ipvs.Forget{Key: k})
		c.make(t, straight(k, "10.244.1.5:1000"))
	}
	kept := udp("10.96.0.10", 999)
	c.make(t, straight(kept, "10.244.1.5:1000"))
	for i, o := range c.forget(context.Background(), ops) {
		if o.Err != nil {
			t.Fatalf("%s: %v", ops[i], o.Err)
		}
	}
	if got := c.table(t); !slices.Equal(got, []ipvs.Key{kept}) {
		t.Errorf("left %d entries, want one", len(got))
	}
}

// TestForgetLate: entries that a real server's late answers made go, in both families, whoever they went to. What was
// answered stays, and so do those of others: of another port, and of another protocol.
func TestForgetLate(t *testing.T) {
	c := testConntrack(t)
	for _, x := range []struct{ vip, real, client string }{
		{"203.0.113.10", "10.244.1.7", "10.244.1.5"}, {"fd20:113::10", "fd10:244:1::7", "fd10:244:1::5"},
	} {
		dns, to := udp(x.vip, 53), udp(x.client, 1000)
		late := netip.AddrPortFrom(netip.MustParseAddr(x.real), 5353)
		from := func(k ipvs.Key, port uint16) flow {
			return flow{key: k, client: netip.AddrPortFrom(late.Addr(), port), answer: netip.AddrPortFrom(k.Addr, k.Port)}
		}
		tcp := to
		tcp.Proto = ipvs.TCP
		asked, other := from(udp(x.client, 1001), 5353), from(udp(x.client, 1002), 5354)
		served := flow{key: dns, client: netip.AddrPortFrom(to.Addr, 1003), answer: late}
		c.make(t, from(to, 5353), from(udp(x.client, 1004), 5353), asked, other, from(tcp, 5353), served)
		c.markAnswered(t, asked)
		op := ipvs.Forget{Key: dns, Late: []netip.AddrPort{late, netip.AddrPortFrom(late.Addr(), 5355)}}
		out := c.forget(context.Background(), []ipvs.Forget{{Key: udp(x.vip, 54)}, op})
		if out[1].Err != nil || out[1].Deleted != 2 || out[0].Deleted != 0 {
			t.Errorf("%+v, want two deleted for %s", out, dns)
		}
		want := []ipvs.Key{dns, tcp, asked.key, other.key}
		slices.SortFunc(want, ipvs.Key.Compare)
		if got := c.table(t); !slices.Equal(got, want) {
			t.Errorf("left %v, want %v", got, want)
		}
		for _, f := range []flow{asked, other, served, from(tcp, 5353)} {
			c.drop(t, f)
		}
	}
}

// TestForgetBegunBefore: of a TCP or SCTP frontend, connections go that somebody began before there was the virtual server,
// and that nobody answered (B83). One that a process of the node answers goes on,
// and so does one through IPVS that its real server did not answer yet.
func TestForgetBegunBefore(t *testing.T) {
	c := testConntrack(t)
	for _, x := range []struct{ vip, real, client string }{
		{"203.0.113.10", "10.244.1.7", "198.51.100.5"}, {"fd20:113::10", "fd10:244:1::7", "2001:db8::5"},
	} {
		for _, proto := range []ipvs.Proto{ipvs.TCP, ipvs.SCTP} {
			k := ipvs.Key{Addr: netip.MustParseAddr(x.vip), Port: 80, Proto: proto}
			from := func(port uint16) flow {
				return straight(k, netip.AddrPortFrom(netip.MustParseAddr(x.client), port).String())
			}
			begun, served, balanced := from(1000), from(1001), from(1002)
			balanced.answer = netip.AddrPortFrom(netip.MustParseAddr(x.real), 8080)
			c.make(t, begun, served, balanced)
			c.markAnswered(t, served)
			out := c.forget(context.Background(), []ipvs.Forget{{Key: k}})
			if out[0].Err != nil || out[0].Deleted != 1 {
				t.Errorf("%s: %+v, want one deleted", k, out)
			}
			if got := c.table(t); !slices.Equal(got, []ipvs.Key{k, k}) {
				t.Errorf("%s: left %v", k, got)
			}
			c.drop(t, served)
			c.drop(t, balanced)
		}
	}
}

// markAnswered sets of an entry what an answer sets.
func (c *conntrackDoor) markAnswered(t *testing.T, f flow) {
	t.Helper()
	c.change(t, ctMsgNew, f, func() { c.b.attr(ctStatus, binary.BigEndian.AppendUint32(nil, ctSeenReply|1<<3)) }) // and IPS_CONFIRMED
}

func (c *conntrackDoor) drop(t *testing.T, f flow) {
	t.Helper()
	c.change(t, ctMsgDelete, f, func() {})
}

// change asks for something of an entry.
func (c *conntrackDoor) change(t *testing.T, msg int, f flow, more func()) {
	t.Helper()
	c.b.reset()
	c.b.begin(ctType(msg), 0, nfgen(byte(af(f.key.Addr)), 0))
	c.putTuple(ctTupleOrig, f.client, netip.AddrPortFrom(f.key.Addr, f.key.Port), f.key.Proto)
	more()
	c.b.acknowledge()
	replies, err := c.sock.exchange(context.Background(), &c.b)
	if err != nil || replies[0].err != nil {
		t.Fatalf("change entry %+v: %v %v", f, err, replies)
	}
}
