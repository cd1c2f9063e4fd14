package traffic

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// shown is what `ipvs-proxy show -o json` says, of one Service or of all.
type shown struct {
	Head struct {
		Node, Note          string
		Services, Frontends int
		Programmed          bool
	}
	Rows      []shownRow
	Frontends []struct {
		shownRow
		Of []struct {
			Address, Node, State string
			Weight, Connections  int
			Active               int
			Until                *time.Time
		}
	}
}

type shownRow struct {
	Service, Port, Protocol, Frontend, State string
	Backends, Here, Active, Connections      int
	BytesIn, BytesOut                        int
}

// show runs the command on a node and wants an exit status.
func show(t testing.TB, n *lab.Node, exit int, args ...string) (x shown) {
	t.Helper()
	out, stderr, got := n.Command(t, 0, append([]string{"show", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &x); got != exit || stderr != "" || err != nil {
		t.Fatalf("show %v: exit status %d, want %d, %v:\n%s%s", args, got, exit, err, out, stderr)
	}
	return x
}

// row is that of a frontend.
func (x shown) row(t testing.TB, to netip.AddrPort) shownRow {
	t.Helper()
	i := slices.IndexFunc(x.Rows, func(r shownRow) bool { return r.Frontend == to.String() })
	if i < 0 {
		t.Fatalf("no frontend %s among %+v", to, x.Rows)
	}
	return x.Rows[i]
}

// agreesWithMoby compares all of a node's rows, and a Service's backends, with what another library reads of its kernel.
func (x shown) agreesWithMoby(n *lab.Node) error {
	servers, err := n.VirtualServers()
	if err != nil {
		return err
	}
	if len(servers) != len(x.Rows) && x.Rows != nil {
		return fmt.Errorf("%d rows, moby has %d virtual servers", len(x.Rows), len(servers))
	}
	for _, s := range servers {
		open, active := 0, 0
		for _, r := range s.Reals {
			active += r.Active
			if r.Weight > 0 {
				open++
			}
		}
		for _, r := range x.Rows {
			if r.Frontend == s.Addr.String() && r.Protocol == s.Protocol && (r.Backends != open || r.Active != active || r.Connections != int(s.Connections)) {
				return fmt.Errorf("%+v, moby has %s %v", r, s, s.Reals)
			}
		}
		for _, f := range x.Frontends {
			if f.Frontend != s.Addr.String() {
				continue
			}
			for _, b := range f.Of {
				i := slices.IndexFunc(s.Reals, func(r lab.RealServer) bool { return r.Addr.String() == b.Address })
				if i < 0 || s.Reals[i].Weight != b.Weight || int(s.Reals[i].Connections) != b.Connections || s.Reals[i].Active != b.Active {
					return fmt.Errorf("backend %+v, moby has %v", b, s.Reals)
				}
			}
		}
	}
	return nil
}

// B73: show has what another reader of the kernel has, the connections that were made, where each backend runs and how it
// stands; log has what was written for it, and because of what.
func TestB73ShowIsTrue(t *testing.T) {
	s := newStage(t).start()
	n := s.w.Node(1)
	svc, empty := web(78), web(79)
	a, c := s.w.Pod("pod-a"), s.w.Pod("pod-c")
	s.apply(svc, s.pods()...)
	s.apply(empty)
	s.ready(svc)
	programmed(t, s.agents[0])
	before := show(t, n, 0, "default/"+svc.Name)
	const asked = 12
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 80)
		connections := func(x shown) int {
			for _, f := range x.Frontends {
				if f.Frontend == to.String() {
					return f.Connections
				}
			}
			return -1
		}
		for range asked {
			answers(t, n.Host, to)
		}
		lab.Eventually(t, soon, "the connections are counted", func() error {
			x := show(t, n, 0, "default/"+svc.Name)
			if got := connections(x) - connections(before); got < asked {
				return fmt.Errorf("%d connections more, %d were made", got, asked)
			}
			return x.agreesWithMoby(n)
		})
		all := show(t, n, 0)
		if r := all.row(t, to); r.Service != "default/"+svc.Name || r.Port != "http" || r.State != "open" || r.Backends != 3 || r.Here != 2 || r.BytesIn == 0 || r.BytesOut == 0 {
			t.Errorf("a Service with three endpoints, two of them here: %+v", r)
		}
		if r := all.row(t, at(empty, family, 80)); r.State != "no-endpoints" || r.Backends != 0 {
			t.Errorf("a Service without endpoints: %+v", r)
		}
		if !all.Head.Programmed || all.Head.Services != 2 || all.Head.Frontends != 4 {
			t.Errorf("head %+v", all.Head)
		}
	})
	for _, args := range [][]string{{"explain", "default/" + svc.Name}, {"explain", a.V4.String(), "to", at(svc, 4, 80).String()}} {
		out, stderr, exit := n.Command(t, 0, args...) // without a source only the agent can say it
		if exit != 0 || !strings.Contains(out, netip.AddrPortFrom(c.V4, 8080).String()) || !strings.Contains(out, "agrees") {
			t.Errorf("%v: exit status %d\n%s%s", args, exit, out, stderr)
		}
	}
	lab.Eventually(t, soon, "the list agrees with moby", func() error { return show(t, n, 0).agreesWithMoby(n) })
	s.drainIsShown(t, n, svc, a, c)
}

// drainIsShown: a backend that leaves with a connection under way is shown as draining, and the log says why.
func (s *stage) drainIsShown(t *testing.T, n *lab.Node, svc lab.Service, leaves, stays *lab.Pod) {
	s.apply(svc, leaves)
	to := at(svc, 4, 80)
	wantReals(t, n, to, netip.AddrPortFrom(leaves.V4, 8080).String()+" 1")
	gone := netip.AddrPortFrom(leaves.V4, 8080).String()
	old := make(chan lab.Reply, 1)
	go func() { old <- n.Ask(to, lab.Wait(8*time.Second), lab.Timeout(time.Minute)) }()
	lab.Eventually(t, soon, "the old connection stands", func() error {
		if got := active(t, n, to, gone); got != 1 {
			return fmt.Errorf("%d active connections", got)
		}
		return nil
	})
	s.apply(svc, stays)
	wantReals(t, n, to, gone+" 0", netip.AddrPortFrom(stays.V4, 8080).String()+" 1")
	found := false
	for _, f := range show(t, n, 0, "default/"+svc.Name).Frontends {
		for _, b := range f.Of {
			if f.Frontend == to.String() && b.Address == gone {
				if found = true; b.State != "draining" || b.Active != 1 || b.Until == nil || b.Weight != 0 {
					t.Errorf("it drains: %+v", b)
				}
			}
		}
	}
	if !found {
		t.Errorf("%s is not shown", gone)
	}
	out, stderr, exit := n.Command(t, 0, "log", "default/"+svc.Name, "--last", "20")
	line := fmt.Sprintf("ipvsadm -e -t %s -r %s -m -w 0", to, gone)
	if exit != 0 || !strings.Contains(out, line) || !strings.Contains(out, "(object, ") {
		t.Errorf("log: exit status %d, want %s because of an object:\n%s%s", exit, line, out, stderr)
	}
	if r := <-old; r.Verdict != lab.Answered {
		t.Errorf("the old connection: %s", r)
	}
}

// B73: beside no agent the kernel is shown all the same, by addresses; and what cannot be said is said in one line, to
// whoever may not know as well.
func TestB73ShowWithoutAgent(t *testing.T) {
	s := newStage(t).start()
	n := s.w.Node(1)
	svc := web(80)
	s.apply(svc, s.pods()...)
	s.ready(svc)
	programmed(t, s.agents[0])
	for _, args := range [][]string{{"show"}, {"log"}, {"top", "--once"}} {
		if out, stderr, exit := n.Command(t, 65534, args...); exit != 2 || out != "" || strings.Count(stderr, "\n") != 1 ||
			!strings.Contains(stderr, "CAP_NET_ADMIN") && !strings.Contains(stderr, "user 0") {
			t.Errorf("%v as another user: exit status %d\n%s%s", args, exit, out, stderr)
		}
	}
	if out, stderr, exit := n.Command(t, 0, "top", "--once"); exit != 0 || !strings.Contains(out, "default/web80") || stderr != "" {
		t.Errorf("top: exit status %d\n%s%s", exit, out, stderr)
	}
	if _, stderr, exit := n.Command(t, 0, "show", "default/web8"); exit != 2 || !strings.Contains(stderr, "there is default/web80") {
		t.Errorf("a name that is misspelt: exit status %d\n%s", exit, stderr)
	}
	named := show(t, n, 0)
	if err := s.agents[0].Stop(); err != nil {
		t.Fatal(err)
	}
	bare := show(t, n, 0)
	if !strings.Contains(bare.Head.Note, "no agent is at work") || len(bare.Rows) != len(named.Rows) {
		t.Errorf("without an agent: %+v, with one %d rows", bare, len(named.Rows))
	}
	each(t, func(t *testing.T, family int) {
		if r := bare.row(t, at(svc, family, 80)); r.Service != "" || r.State != "open" || r.Backends != 3 {
			t.Errorf("without an agent: %+v", r)
		}
	})
	if err := bare.agreesWithMoby(n); err != nil {
		t.Error(err)
	}
	for _, args := range [][]string{{"show", "default/web80"}, {"log"}} {
		if out, stderr, exit := n.Command(t, 0, args...); exit != 2 || out != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "no agent is at work") {
			t.Errorf("%v without an agent: exit status %d\n%s%s", args, exit, out, stderr)
		}
	}
}

// B73: a hundred who ask at once, again and again, are answered, and take nothing from the traffic and from a change.
func TestB73HundredAskers(t *testing.T) {
	s := newStage(t).start()
	n := s.w.Node(1)
	svc := web(81)
	s.apply(svc, s.pods()...)
	s.ready(svc)
	programmed(t, s.agents[0])
	var askers []*inquirer
	err := n.Do(func() error {
		for range 100 {
			c, err := net.Dial("unix", "@ipvs-proxy.io/agent")
			if err != nil {
				return err
			}
			askers = append(askers, &inquirer{c: c})
			if _, err := io.WriteString(c, frontendsQuestion); err != nil { // who is silent is told who it is for
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var group sync.WaitGroup
	for _, a := range askers {
		group.Go(func() { a.ask(stop) })
	}
	report := underLoad(t, n.Host, at(svc, 4, 80), patient, func() {
		s.apply(svc, s.w.Pod("pod-a"))
		wantReals(t, n, at(svc, 6, 80), netip.AddrPortFrom(s.w.Pod("pod-a").V6, 8080).String()+" 1")
		lab.Eventually(t, soon, "each is answered, and again", func() error {
			for i, a := range askers {
				if got := a.answers.Load(); got < 2 {
					return fmt.Errorf("asker %d has %d answers", i, got)
				}
			}
			return nil
		})
	})
	close(stop)
	group.Wait()
	answered := int64(0)
	for i, a := range askers {
		if a.err != nil {
			t.Errorf("asker %d: %v after %d answers", i, a.err, a.answers.Load())
		}
		answered += a.answers.Load()
	}
	t.Logf("%d answers; %s", answered, report)
	if report.Lost > 0 {
		t.Errorf("beside %d answers to 100 askers: %s", answered, report)
	}
}

// inquirer asks again and again over one connection.
type inquirer struct {
	c       net.Conn
	answers atomic.Int64
	err     error
}

const frontendsQuestion = "GET /v1/frontends HTTP/1.1\r\nHost: agent\r\n\r\n"

func (a *inquirer) ask(stop chan struct{}) {
	defer a.c.Close()
	r := bufio.NewReader(a.c)
	for a.err == nil {
		_ = a.c.SetDeadline(time.Now().Add(time.Minute))
		if a.err = a.answer(r); a.err != nil {
			return
		}
		a.answers.Add(1)
		select {
		case <-stop:
			return
		case <-time.After(100 * time.Millisecond):
		}
		_, a.err = io.WriteString(a.c, frontendsQuestion)
	}
}

// answer reads one and says what is wrong with it.
func (a *inquirer) answer(r *bufio.Reader) error {
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "default/web81") {
		return fmt.Errorf("%s: %s, %v", resp.Status, body, err)
	}
	return nil
}
