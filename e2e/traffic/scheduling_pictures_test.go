package traffic

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// The pictures of docs/scheduling.md are made of what these tests measure (make scheduling-pictures), by so many requests as
// LAB_PICTURES says. In other runs they ask a hundred, and hold of it what must be so.

// pictured is how many requests are asked.
func pictured(t testing.TB) int {
	t.Helper()
	text := os.Getenv("LAB_PICTURES")
	if text == "" {
		return 100
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("LAB_PICTURES: %v", err)
	}
	return n
}

// askAll has so many requests asked by some workers, each from addresses of its own in turn, and counts who answers. Full: the
// scheduler refuses whoever comes while every endpoint has as many connections as its weight, those that have just ended among
// them, and such a client tries again.
func (m *manyClients) askAll(t testing.TB, to netip.AddrPort, requests, workers int, full bool) (byPod map[string]int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	byPod = map[string]int{}
	addrs := m.addrs[familyOf(to)]
	for w := range workers {
		wg.Go(func() {
			for i := w; i < requests; i += workers {
				ask := func() lab.Reply { return m.host.Ask(to, lab.From(addrs[i%len(addrs)]), lab.Timeout(patient)) }
				r := ask()
				for n := 0; full && r.Verdict == lab.Refused && n < 20; n++ {
					r = ask()
				}
				mu.Lock()
				if r.Verdict != lab.Answered {
					t.Errorf("%s", r)
				}
				byPod[r.Pod]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return byPod
}

// B70: how each scheduler spreads the requests of many clients over three endpoints of which one is slow: it takes 100 ms for
// an answer. The schedulers that count connections send it fewer than rr does.
func TestB70SpreadPicture(t *testing.T) {
	s := &stage{t: t, w: lab.New(t)}
	s.cluster = s.w.Cluster(t)
	for _, p := range s.pods() {
		wait := time.Duration(0)
		if p.Name == "pod-c" {
			wait = 100 * time.Millisecond
		}
		if _, err := p.ServeSlowHTTP(p.Name, 8080, wait); err != nil {
			t.Fatal(err)
		}
	}
	s.start()
	s.raided = true // a kernel may lack twos
	who := s.manyClients(1000)
	requests := pictured(t)
	slow := map[string]int{}
	for i, scheduler := range []string{"rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "sh", "mh", "dh", "lblc", "lblcr", "twos"} {
		svc := annotated(web(120+i), "scheduler", scheduler)
		to := at(svc, 4, 80)
		if scheduler == "ovf" { // whose weights are connections: beyond all of them clients are turned away
			s.weigh(svc, map[string]int{"pod-a": 5, "pod-b": 5, "pod-c": 5})
		} else {
			s.apply(svc, s.pods()...)
		}
		answers(t, s.w.Client, to)
		if !s.hasScheduler(t, to, scheduler) {
			t.Logf("this kernel lacks %s", scheduler)
			continue
		}
		got := who.askAll(t, to, requests, 12, scheduler == "ovf")
		for _, p := range s.pods() {
			lab.Figure(t, fmt.Sprintf("%s, %s", scheduler, p.Name), got[p.Name])
		}
		slow[scheduler] = got["pod-c"]
		s.cluster.Delete(svc)
	}
	for _, scheduler := range []string{"lc", "wlc", "sed", "nq"} {
		if slow[scheduler] >= slow["rr"] {
			t.Errorf("of %d requests %s sends the slow endpoint %d, rr %d", requests, scheduler, slow[scheduler], slow["rr"])
		}
	}
}

// hasScheduler reports whether a frontend has a scheduler: false where the kernel lacks it, which is said.
func (s *stage) hasScheduler(t testing.TB, to netip.AddrPort, scheduler string) (is bool) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s has the scheduler %s, or the agent says that the kernel lacks it", to, scheduler), func() error {
		servers, err := s.w.Node(1).VirtualServers()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(servers, func(v lab.VirtualServer) bool { return v.Addr == to })
		if i < 0 {
			return fmt.Errorf("there is none")
		}
		if is = servers[i].Scheduler == scheduler; !is && !hasLogged(s.agents[0], "lacks the scheduler "+scheduler) {
			return fmt.Errorf("it has %s", servers[i])
		}
		return nil
	})
	return is
}

// B71: what a canary gets: an endpoint whose slice has weight 10 beside two whose slices have 100.
func TestB71CanaryPicture(t *testing.T) {
	s := newStage(t).start()
	svc, requests := web(140), pictured(t)
	weights := map[string]int{"pod-a": 100, "pod-b": 100, "pod-c": 10}
	s.weigh(svc, weights)
	to := at(svc, 4, 80)
	s.wantScheduled(t, s.w.Node(1), to, "wrr", 0, weights)
	got, lost := s.w.Client.Spread(to, requests)
	if len(lost) > 0 {
		t.Fatalf("%d of %d requests lost: %v", len(lost), requests, lost[0])
	}
	for _, p := range s.pods() {
		lab.Figure(t, p.Name, got[p.Name])
	}
	if want := requests / 21; got["pod-c"] < want-1 || got["pod-c"] > want+1 {
		t.Errorf("the canary got %d of %d requests, want %d", got["pod-c"], requests, want)
	}
}

// B71: the curve of a slow start: what a new endpoint gets of the requests, by the time since it is there; in the control,
// without a slow start, it gets a third at once.
func TestB71SlowStartPicture(t *testing.T) {
	s := newStage(t).start()
	over, every := 12*time.Second, time.Second
	if os.Getenv("LAB_PICTURES") != "" {
		over, every = time.Minute, 2*time.Second
	}
	pods := s.pods()
	shares := map[string][]int{}
	for i, slow := range []bool{true, false} {
		svc := annotated(web(141+i), "slow-start", over.String())
		plain := annotated(svc)
		s.apply(plain, pods[:2]...)
		to := at(svc, 4, 80)
		s.wantScheduled(t, s.w.Node(1), to, "rr", 0, map[string]int{"pod-a": 1, "pod-b": 1})
		name := "without"
		if slow {
			name = "slow start"
			s.apply(svc, pods[:2]...)
			s.wantScheduled(t, s.w.Node(1), to, "wrr", 0, map[string]int{"pod-a": 10, "pod-b": 10})
		} else {
			svc = plain
		}
		s.apply(svc, pods...)
		wantHit(t, s.w.Node(1).Host, to, "pod-c")
		long := over + over/4
		if !slow {
			long = over / 2 // it stays as it is
		}
		shares[name] = curve(s.w.Node(1).Host, to, long, every)
		for at, share := range shares[name] {
			lab.Figure(t, fmt.Sprintf("%s, per cent after %s s", name, strconv.Itoa(int(every.Seconds())*at)), share)
		}
	}
	slow, without := shares["slow start"], shares["without"]
	if n := len(slow); slow[0] > 20 || slow[n-1] < 25 || without[0] < 25 {
		t.Errorf("per cent of the requests that the new endpoint gets: with a slow start %v, without %v", slow, without)
	}
}

// curve asks on and on, and gives of each part of the time how many of 100 requests pod-c got.
func curve(h *lab.Host, to netip.AddrPort, over, every time.Duration) (shares []int) {
	for began := time.Now(); time.Since(began) < over; {
		got, n := map[string]int{}, 0
		for end := began.Add(every * time.Duration(len(shares)+1)); n < 21 || time.Now().Before(end); n++ {
			got[h.Ask(to).Pod]++
		}
		shares = append(shares, 100*got["pod-c"]/n)
	}
	return shares
}

// B70: how many clients another endpoint answers when one leaves and keeps its connections, when it is gone, and when it is back, with
// rr, sh and mh; and how many through another node.
func TestB70ClientsPicture(t *testing.T) {
	s := newStage(t).start()
	s.addPod(lab.PodSpec{Name: "pod-d", Node: 2})
	pods := append(s.pods(), s.w.Pod("pod-d"))
	s.w.ServeHTTP(t, 8080, pods[3])
	who := s.manyClients(min(max(pictured(t), 200), 1000))
	move := map[string]int{}
	for i, scheduler := range []string{"rr", "sh", "mh"} {
		svc := annotated(web(150+i), "scheduler", scheduler)
		to := at(svc, 4, 80)
		s.apply(svc, pods...)
		s.wantServing(t, to, pods...)
		before := who.askedThrough(t, s, 1, to)
		move[scheduler+", clients with another endpoint through another node"] = moved(before, who.askedThrough(t, s, 2, to))
		s.apply(svc, pods[:3]...)
		s.wantServing(t, to, pods[:3]...)
		without := who.askedThrough(t, s, 1, to)
		move[scheduler+", clients with another endpoint when one of four leaves"] = moved(before, without)
		gone := annotated(web(153+i), "scheduler", scheduler, "drain-deadline", "0s")
		s.apply(gone, pods...)
		s.wantServing(t, at(gone, 4, 80), pods...)
		before = who.askedThrough(t, s, 1, at(gone, 4, 80))
		s.apply(gone, pods[:3]...)
		s.wantServing(t, at(gone, 4, 80), pods[:3]...)
		move[scheduler+", clients with another endpoint when one of four is gone"] = moved(before, who.askedThrough(t, s, 1, at(gone, 4, 80)))
		s.apply(svc, pods...)
		s.wantServing(t, to, pods...)
		move[scheduler+", clients with another endpoint when a fourth comes"] = moved(without, who.askedThrough(t, s, 1, to))
	}
	lab.Figure(t, "clients", len(who.addrs[4]))
	for _, name := range slices.Sorted(maps.Keys(move)) {
		lab.Figure(t, name, move[name])
	}
	if move["mh, clients with another endpoint when one of four is gone"] >= move["sh, clients with another endpoint when one of four is gone"] {
		t.Errorf("mh moves no fewer clients than sh: %v", move)
	}
	if move["mh, clients with another endpoint through another node"] > 0 || move["rr, clients with another endpoint through another node"] == 0 {
		t.Errorf("through another node: %v", move)
	}
}
