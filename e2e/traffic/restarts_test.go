package traffic

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// busyStage is a stage whose cluster has one Service of every kind of frontend, with two pods, and traffic to all of them.
func busyStage(t *testing.T) (s *stage, svc lab.Service) {
	t.Helper()
	s, svc = newStage(t), taken()
	s.serveUDP(5353, s.pods()...)
	for _, p := range s.pods() {
		if _, err := p.ServeLines(p.Name, 8081); err != nil {
			t.Fatal(err)
		}
	}
	s.apply(svc, s.w.Pod("pod-b"), s.w.Pod("pod-c"))
	return s, svc
}

// wantNothingLost ends traffic that must not have lost anything, and keeps what was sent.
func (r *traffic) wantNothingLost(t *testing.T) {
	t.Helper()
	r.wantLostInRemovals(t, 0)
}

// wantLostInRemovals is wantNothingLost where a real server of the datagrams was removed so many times: of each flow a
// datagram may be lost with it (B31), where it is sent between that and the next one.
func (r *traffic) wantLostInRemovals(t *testing.T, removals int) {
	t.Helper()
	sum := r.stop()
	lab.Figure(t, "new connections", sum.sent)
	lab.Figure(t, "new connections lost", sum.lost)
	lab.Figure(t, "kept connections", sum.kept)
	lab.Figure(t, "kept connections broken", sum.broken)
	lab.Figure(t, "datagrams", sum.datagrams)
	lab.Figure(t, "datagrams lost", sum.missing)
	if sum.lost+sum.broken > 0 || sum.missing > removals*len(r.flows) || sum.sent == 0 || sum.kept == 0 || sum.datagrams == 0 {
		t.Errorf("%s", sum)
	}
}

// unshielded leaves out of what was written that the shield was told again, which runs out by itself.
func unshielded(writes []string) []string {
	return slices.DeleteFunc(writes, func(w string) bool { return strings.Contains(w, "SETELEM shielded") })
}

// F40: the agent is ended and started again and again under load, by SIGTERM and by SIGKILL in turn; every other time it is
// not let come to the end of its start. Nothing is lost, and nothing is written.
func TestF40Restarts(t *testing.T) {
	restarts := formOf(20, 1000)
	s, svc := busyStage(t)
	n := s.w.Node(1)
	agent := s.w.StartAgent(t, n, s.cluster)
	programmed(t, agent)
	// The record that the first start is over is the last write of all.
	lab.Eventually(t, soon, "the first start is recorded", func() error {
		if set := nftTool(t, n, "-n", "list", "set", "inet", "ipvs-proxy", "owned4"); !strings.Contains(set, "0.0.0.0") {
			return fmt.Errorf("%s", set)
		}
		return nil
	})
	before := usageOf(t, agent)
	on := s.goesOn(t, svc)
	tap := tapWrites(t, n)
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	var starts []time.Duration
	for i := range restarts {
		end := agent.Stop
		if i%2 == 1 {
			end = agent.Kill
		}
		early := !strings.Contains(agent.Log(), "starting") // not yet one that could be asked
		if err := end(); err != nil && !early {
			t.Fatalf("restart %d: %v", i, err)
		}
		began := time.Now()
		agent = s.w.StartAgent(t, n, s.cluster)
		if i%4 < 2 || i == restarts-1 {
			programmed(t, agent)
			starts = append(starts, time.Since(began))
			continue
		}
		// Any moment of a start: this is when it dies, no matter what it has come to.
		time.Sleep(time.Duration(random.Int64N(int64(starts[len(starts)-1]))))
	}
	on.more(2)
	wrote := unshielded(tap.take(2*time.Second, 0))
	lab.Figure(t, "restarts", restarts)
	lab.Figure(t, "writes", len(wrote))
	times(t, "start", starts)
	before.figures(t, "before")
	usageOf(t, agent).figures(t, "after")
	if len(wrote) > 0 {
		t.Errorf("seed %d: %d restarts without a change wrote %q", seed, restarts, wrote[:min(len(wrote), 20)])
	}
	on.wantNothingLost(t)
	wouldNotice(t, s.w.Pod("pod-a").Host, n, at(svc, 4, 80))
	if wrote := tap.take(soon, 2); !slices.Contains(wrote, "NEW_SERVICE") {
		t.Error("the control: a virtual server that another program deleted was not seen to be written")
	}
}

// F40: the agent is killed at a random moment of its first start with many Services, and started again. Whenever it dies, no
// virtual IP stands on the interface that is not guarded, and the next start comes to the same end as one that was let be.
func TestF40KilledWhileStarting(t *testing.T) {
	size, kills := formOf(200, 2000), formOf(3, 50)
	s := newStage(t)
	n := s.w.Node(1)
	many := newCrowd(s.cluster, size)
	for i := range size {
		many.set(i, endpointOn("node1", crowdPods[0]), endpointOn("node2", crowdPods[1]))
	}
	many.write()
	if _, err := n.ServeHTTP("node", 81); err != nil {
		t.Fatal(err)
	}
	limit := soon + time.Duration(size)*10*time.Millisecond
	whole := func() (took time.Duration) {
		began := time.Now()
		agent := s.w.StartAgent(t, n, s.cluster)
		programmedMany(t, agent, size)
		took = time.Since(began)
		lab.Eventually(t, limit, "all is there", func() error { return sameAsSize(t, n, size) })
		if err := agent.Stop(); err != nil {
			t.Fatal(err)
		}
		return took
	}
	undisturbed := whole()
	seed := rand.Uint64()
	t.Logf("seed %d; a start takes %s", seed, undisturbed)
	random, halfway := rand.New(rand.NewPCG(seed, 0)), 0
	var starts []time.Duration
	// A busy machine's agent may be done before it is killed: there are more until one came in the middle.
	for i := 0; i < kills || halfway == 0 && i < 10*kills; i++ {
		cleanup(t, n, 0, nil, "cleanup")
		agent := s.w.StartAgent(t, n, s.cluster)
		if i%2 == 0 { // any moment, or one in the middle of the writes
			time.Sleep(time.Duration(random.Int64N(int64(undisturbed))))
		} else {
			most := 1 + random.IntN(size/2)
			lab.Eventually(t, limit, "it has come so far", func() error {
				if n := len(boundOf(t, n)); n < most {
					return fmt.Errorf("%d of %d", n, most)
				}
				return nil
			})
		}
		if err := agent.Kill(); err != nil {
			t.Fatal(err)
		}
		bound := unguardedOf(t, n)
		if bound > 0 && bound < size {
			halfway++
		}
		for _, v := range samples(size) {
			if r := s.w.Pod("pod-a").Connect(netip.AddrPortFrom(v.vip, 81), lab.Timeout(200*time.Millisecond)); r.Verdict == lab.Answered {
				t.Errorf("kill %d, seed %d: the node's own listener answers at the %s virtual IP", i, seed, v.name)
			}
		}
		starts = append(starts, whole())
	}
	lab.Figure(t, "kills", len(starts))
	lab.Figure(t, "kills in the middle of the writes", halfway)
	times(t, "start after a kill", starts)
	if halfway == 0 {
		t.Errorf("the control: none of %d kills came in the middle of the writes", len(starts))
	}
	// Where nothing is guarded the listener does answer: what is looked for can be seen.
	shell(t, n, "nft delete table inet ipvs-proxy")
	if r := s.w.Pod("pod-a").Connect(netip.AddrPortFrom(crowdIP(0), 81)); r.Verdict != lab.Answered {
		t.Errorf("the control: without a guard: %s", r)
	}
}

// unguardedOf wants every virtual IP on the interface to be guarded, and counts them.
func unguardedOf(t *testing.T, n *lab.Node) (bound int) {
	t.Helper()
	list := boundOf(t, n)
	if len(list) == 0 { // it died before
		return 0
	}
	guarded := nftTool(t, n, "-n", "list", "set", "inet", "ipvs-proxy", "vips4")
	is := map[string]bool{}
	for _, word := range strings.FieldsFunc(guarded, func(r rune) bool { return !strings.ContainsRune("0123456789.", r) }) {
		is[word] = true
	}
	for _, a := range list {
		if !is[a] {
			t.Errorf("%s stands on the interface and is not guarded", a)
		}
	}
	return len(list)
}
