package lab

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// askAgain asks from a port that was just used for the same server. An association ends by a handshake that goes
// on after both sockets are closed; until it is over the kernel has no such pair of addresses to give.
func askAgain(t *testing.T, h *Host, to netip.AddrPort, port uint16) (r Reply) {
	t.Helper()
	Eventually(t, 30*time.Second, "the old association is over", func() error {
		if r = h.AskSCTP(to, FromPort(port)); errors.Is(r.Err, unix.EADDRNOTAVAIL) {
			return r.Err
		}
		return nil
	})
	return r
}

func TestSCTPQuestions(t *testing.T) {
	w := New(t)
	a, c := w.Pod("pod-a"), w.Pod("pod-c")
	stop, err := c.ServeSCTP("pod-c", 9090)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ServeSCTP("second", 9090); err == nil {
		t.Error("two servers on one port")
	}
	if _, err := c.ServeSCTP("bound", 9092, c.V4); err != nil {
		t.Fatal(err)
	}
	w.ServeHTTP(t, 8080, c)
	families46(t, func(t *testing.T, family int) {
		acceptRaw(t, c.Host, unix.IPPROTO_SCTP, c.Addr(family), 9091, func(conn net.Conn) {
			readRequest(conn)
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		})
		answered, boundVerdict := a.Addr(family), Answered
		if family == 6 {
			boundVerdict = Refused
		}
		for _, test := range []struct {
			what string
			got  Reply
			want Verdict
		}{
			{"served", a.AskSCTP(at(c.Host, family, 9090)), Answered},
			{"from a port", a.AskSCTP(at(c.Host, family, 9090), FromPort(33333)), Answered},
			{"from it again", askAgain(t, a.Host, at(c.Host, family, 9090), 33333), Answered},
			{"held back", a.AskSCTP(at(c.Host, family, 9090), Wait(300*time.Millisecond)), Answered},
			{"held back too long", a.AskSCTP(at(c.Host, family, 9090), Wait(time.Minute), Timeout(300*time.Millisecond)), TimedOut},
			{"bound to its IPv4 address", a.AskSCTP(at(c.Host, family, 9092)), boundVerdict},
			{"aborted", a.AskSCTP(at(c.Host, family, 9091)), Reset},
			{"nobody listens", a.AskSCTP(at(c.Host, family, 9093)), Refused},
			{"only TCP listens", a.AskSCTP(at(c.Host, family, 8080)), Refused},
			{"only SCTP listens", a.Ask(at(c.Host, family, 9090)), Refused},
		} {
			if test.got.Verdict != test.want || test.want == Answered && test.got.Source != answered {
				t.Errorf("%s: %s, want %s", test.what, test.got, test.want)
			}
		}
		if r := a.Connect(at(c.Host, family, 9090), OverSCTP()); r.Verdict != Answered {
			t.Errorf("connected: %s", r)
		}
	})
	stop()
	if r := a.AskSCTP(at(c.Host, 4, 9090)); r.Verdict != Refused {
		t.Errorf("after the end: %s", r)
	}
}

// SCTP goes through IPVS, and a load of it too.
func TestSCTPSpread(t *testing.T) {
	w := New(t)
	a, c := w.Pod("pod-a"), w.Pod("pod-c")
	for _, p := range []*Pod{a, c} {
		if _, err := p.ServeSCTP(p.Name, 8080); err != nil {
			t.Fatal(err)
		}
	}
	families46(t, func(t *testing.T, family int) {
		to := localVIP(t, w.Node(1), family)
		addServer(t, w.Node(1), unix.IPPROTO_SCTP, to, map[*Pod]int{a: 3, c: 1})
		byPod, lost := w.Pod("pod-b").Spread(to, 8, OverSCTP())
		if diff := cmp.Diff(map[string]int{"pod-a": 6, "pod-c": 2}, byPod); diff != "" || len(lost) > 0 {
			t.Errorf("weights 3 and 1, 8 questions: %s lost %v", diff, lost)
		}
		l := w.Pod("pod-b").StartLoad(to, LoadConfig{Rate: 50}, OverSCTP())
		answeredSince(t, l, 0, 20)
		if r := l.Stop(); r.Lost > 0 || r.ByPod["pod-a"] < 2*r.ByPod["pod-c"] {
			t.Errorf("load: %s", r)
		}
		if r := w.Pod("pod-b").Ask(to); r.Verdict == Answered {
			t.Errorf("control: TCP goes there, too: %s", r)
		}
	})
}

// What an SCTP client hears of a refusal, in the default settings of the kernel: an ABORT at once, of ICMP only
// that IPv4 does not know the protocol. All else it takes for passing trouble and tries on.
func TestSCTPRefusals(t *testing.T) {
	w := New(t)
	a, b, c, n := w.Pod("pod-a"), w.Pod("pod-b"), w.Pod("pod-c"), w.Node(1)
	overSCTP := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_SCTP}}}
	addRule(t, b.Host, nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter,
		append(overSCTP, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})...)
	const protocolUnreachable = 2 // its code
	addRule(t, c.Host, nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter,
		append(overSCTP, &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
			&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: protocolUnreachable})...)
	impatient(t, b.Host)
	families46(t, func(t *testing.T, family int) {
		empty := localVIP(t, n, family)
		for _, test := range []struct {
			what string
			from *Host
			to   netip.AddrPort
			want Verdict
			err  error
		}{
			{"nobody listens", a.Host, at(n.Host, family, 81), Refused, unix.ECONNREFUSED},
			{"nobody listens, asked by the node itself", n.Host, empty, Refused, unix.ECONNREFUSED},
			{"no route", w.Client, at(c.Host, family, 81), TimedOut, os.ErrDeadlineExceeded},
			{"ICMP port unreachable", a.Host, at(b.Host, family, 81), TimedOut, os.ErrDeadlineExceeded},
			{"the same, to a client that soon gives up", b.Host, at(b.Host, family, 81), TimedOut, unix.ETIMEDOUT},
			{"IPv4: ICMP protocol unreachable", a.Host, at(c.Host, family, 81), Refused,
				map[int]error{4: unix.ENOPROTOOPT, 6: unix.ECONNREFUSED}[family]},
		} {
			r := test.from.AskSCTP(test.to, Timeout(timeoutOfControls))
			if r.Verdict != test.want || !errors.Is(r.Err, test.err) {
				t.Errorf("%s: %s (%v), want %s, %v", test.what, r, r.Err, test.want, test.err)
			}
		}
		addServer(t, n, unix.IPPROTO_SCTP, empty, nil)
		for _, from := range []*Host{a.Host, n.Host} {
			if r := from.AskSCTP(empty, Timeout(timeoutOfControls)); r.Verdict != TimedOut {
				t.Errorf("%s asks a virtual server without real servers: %s, want %s", from.Name, r, TimedOut)
			}
		}
	})
}

// impatient has the host's SCTP give up after two attempts at a tenth of a second.
func impatient(t *testing.T, h *Host) {
	t.Helper()
	for _, kv := range [][2]string{{"rto_min", "100"}, {"rto_initial", "100"}, {"rto_max", "100"}, {"max_init_retransmits", "1"}} {
		if err := h.Sysctl("net/sctp/"+kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
	}
}
