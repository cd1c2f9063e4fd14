package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// probeEvery is how often a virtual IP is asked while it is watched, and probeTime how long an answer may take, on a machine
// that has time: less than it takes until a SYN is sent again.
const (
	probeEvery = 150 * time.Millisecond
	probeTime  = 400 * time.Millisecond
)

// watched is a virtual IP that is asked all the time: on the Service's port, and on another one that only the guard keeps
// from the node's own listener.
type watched struct {
	name string
	vip  netip.Addr

	mu        sync.Mutex
	lost      time.Duration // the last question on the Service's port without an answer, since the start
	unguarded time.Duration // the last connection on the other port that stood
	asked     int
	lostN     int
	openN     int
}

// watch is several of them under watch.
type watch struct {
	list  []*watched
	began time.Time
	stop  chan struct{}
	wg    sync.WaitGroup
}

func startWatch(from *lab.Host, list ...*watched) *watch {
	w := &watch{list: list, began: time.Now(), stop: make(chan struct{})}
	for _, v := range list {
		w.wg.Go(func() {
			tick := time.NewTicker(probeEvery)
			defer tick.Stop()
			for {
				select {
				case <-w.stop:
					return
				case <-tick.C:
					w.wg.Go(func() { w.probe(from, v) })
				}
			}
		})
	}
	return w
}

// probe asks both ports once.
func (w *watch) probe(from *lab.Host, v *watched) {
	at, patience := time.Since(w.began), lab.Timeout(lab.Patience(probeTime))
	r := from.Ask(netip.AddrPortFrom(v.vip, 80), patience)
	served := r.Verdict == lab.Answered && !r.Again // the SYN that went first met nobody
	opened := time.Since(w.began)
	open := from.Connect(netip.AddrPortFrom(v.vip, 81), patience).Verdict == lab.Answered
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.asked++; !served {
		v.lost = max(v.lost, at)
		v.lostN++
	}
	if open {
		v.unguarded = max(v.unguarded, opened)
		v.openN++
	}
}

// end ends the watch. What was seen last is given as the time until it was seen no more.
func (w *watch) end() {
	close(w.stop)
	w.wg.Wait()
}

// sizeRaid is what another program does to a node with many Services.
type sizeRaid struct {
	row, name string
	do        func(t *testing.T, n *lab.Node)
	// again writes by hand what the raid took away: how long this machine takes for it.
	again func(t *testing.T, n *lab.Node, w *crowd)
	// unguards: it is the guard that is taken away.
	unguards bool
}

var sizeRaids = []sizeRaid{
	{"F20", "all virtual servers deleted", flushIPVS, serversByHand, false},
	{"F22", "the interface deleted", func(t *testing.T, n *lab.Node) {
		if err := n.DelLink("kube-ipvs0"); err != nil {
			t.Fatal(err)
		}
	}, addressesByHand, false},
	{"F23", "the ruleset flushed", func(t *testing.T, n *lab.Node) { shell(t, n, "nft flush ruleset") }, elementsByHand, true},
}

func flushIPVS(t *testing.T, n *lab.Node) {
	t.Helper()
	if err := n.Do(func() error {
		h, err := lab.OpenIPVS()
		if err != nil {
			return err
		}
		defer h.Close()
		return h.Flush()
	}); err != nil {
		t.Fatal(err)
	}
}

// serversByHand makes the virtual servers with the tool, from a file, as an administrator who has one.
func serversByHand(t *testing.T, n *lab.Node, w *crowd) {
	t.Helper()
	var b strings.Builder
	for i := range w.services {
		fmt.Fprintf(&b, "-A -t %s:80 -s rr\n", crowdIP(i))
		for _, to := range crowdPods {
			fmt.Fprintf(&b, "-a -t %s:80 -r %s:8080 -m -w 1\n", crowdIP(i), to)
		}
	}
	fed(t, n, b.String(), "ipvsadm", "-R")
}

// addressesByHand makes the interface and its addresses with the tool, from a file.
func addressesByHand(t *testing.T, n *lab.Node, w *crowd) {
	t.Helper()
	var b strings.Builder
	b.WriteString("link add kube-ipvs0 type dummy\nlink set kube-ipvs0 up\n")
	for i := range w.services {
		fmt.Fprintf(&b, "address add %s/32 dev kube-ipvs0\n", crowdIP(i))
	}
	fed(t, n, b.String(), "ip", "-batch", "-")
}

// elementsByHand makes a table of another name with the elements that ours has, and takes it away.
func elementsByHand(t *testing.T, n *lab.Node, w *crowd) {
	t.Helper()
	var keys, addrs strings.Builder
	for i := range w.services {
		fmt.Fprintf(&keys, "%s . tcp . 80,\n", crowdIP(i))
		fmt.Fprintf(&addrs, "%s,\n", crowdIP(i))
	}
	const kind = "type ipv4_addr . inet_proto . inet_service"
	fed(t, n, fmt.Sprintf("table inet byhand {\nset owned { %s; elements = { %s } }\nset open { %s; elements = { %s } }\nset vips { type ipv4_addr; elements = { %s } }\n}\n",
		kind, &keys, kind, &keys, &addrs), "nft", "-f", "-")
	shell(t, n, "nft delete table inet byhand")
}

// fed runs a tool on a node that reads its work from its input.
func fed(t *testing.T, n *lab.Node, input string, words ...string) {
	t.Helper()
	if err := n.Do(func() error {
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Stdin = strings.NewReader(input)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %.500s", strings.Join(words, " "), err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// crowdPods are the real pods behind each Service of a crowd that is asked by packets.
var crowdPods = []string{"10.244.1.10", "10.244.2.10"}

func crowdIP(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("10.97.%d.%d", i/250, 1+i%250))
}

// F20, F22, F23: with many Services another program takes away the virtual servers, the interface, or the table. The first,
// the middle and the last virtual IP are asked all the time: how long until new connections are served, and how long
// nothing kept the node's own listener from them. The control with a clock is an administrator with a file: the same is
// written by hand, by the tool made for it. The control that loses is the agent stopped.
func TestHealsAtSize(t *testing.T) {
	size := formOf(300, 5000)
	s := newStage(t)
	n, pod := s.w.Node(1), s.w.Pod("pod-a").Host
	s.raided = true
	many := newCrowd(s.cluster, size)
	for i := range size {
		many.set(i, endpointOn("node1", crowdPods[0]), endpointOn("node2", crowdPods[1]))
	}
	many.write()
	began := time.Now()
	agent := s.w.StartAgent(t, n, s.cluster)
	programmedMany(t, agent, size)
	lab.Figure(t, "start, ms", int(time.Since(began).Milliseconds()))
	if _, err := n.ServeHTTP("node", 81); err != nil { // who answers where the guard is gone
		t.Fatal(err)
	}
	before := usageOf(t, agent)
	for _, r := range sizeRaids {
		t.Run(r.row+" "+r.name, func(t *testing.T) { r.healed(t, n, pod, agent, many) })
	}
	after := usageOf(t, agent)
	before.figures(t, "before")
	after.figures(t, "after")
	if after.descriptors > before.descriptors+4 { // sockets that are opened when they are first needed
		t.Errorf("%d descriptors, %d before", after.descriptors, before.descriptors)
	}
}

// programmedMany waits for the end of a start with many Services.
func programmedMany(t testing.TB, a *lab.Agent, size int) {
	t.Helper()
	lab.Eventually(t, soon+time.Duration(size)*10*time.Millisecond, "the start is over", func() error {
		if !strings.Contains(a.Log(), "all Services are programmed") {
			return fmt.Errorf("not said in the log")
		}
		return nil
	})
}

// healed has it done to the node, with its controls. A machine may be busy with the agent and idle with the control, and
// so a second and a third time count, with controls of their own: a busy machine makes the agent slower, and never quicker.
func (r sizeRaid) healed(t *testing.T, n *lab.Node, pod *lab.Host, agent *lab.Agent, many *crowd) {
	var late []error
	for range 3 {
		err := r.healedOnce(t, n, pod, agent, many)
		if err == nil {
			return
		}
		late = append(late, err)
	}
	t.Errorf("late each time: %v", errors.Join(late...))
}

func (r sizeRaid) healedOnce(t *testing.T, n *lab.Node, pod *lab.Host, agent *lab.Agent, many *crowd) (late error) {
	t.Helper()
	size := len(many.services)
	complete := func() error { return sameAsSize(t, n, size) }
	lab.Eventually(t, soon+time.Duration(size)*10*time.Millisecond, "all is there before", complete)
	// The control: nobody mends it, and it is seen; then it is written by hand.
	hold(t, agent, true)
	r.do(t, n)
	nobody := watchFor(pod, samples(size), 5)
	began := time.Now()
	r.again(t, n, many)
	byHand := time.Since(began)
	hold(t, agent, false)
	for _, v := range nobody.list {
		if r.unguards && v.openN == 0 || !r.unguards && v.lostN == 0 {
			t.Errorf("the control: of %d questions to %s none met what is gone", v.asked, v.name)
		}
	}
	lab.Eventually(t, soon+time.Duration(size)*20*time.Millisecond, "all is there again", complete)
	// The agent. Nothing else is asked meanwhile: there is one processor.
	w, quiet := startWatch(pod, samples(size)...), max(2*time.Second, byHand)
	lab.Eventually(t, soon, "the watch runs", func() error { return w.quietFor(0) })
	began = time.Now()
	r.do(t, n)
	raided := time.Since(w.began) // what it takes away is gone by then at the latest
	lab.Figure(t, "to take it away, ms", int(time.Since(began).Milliseconds()))
	lab.Eventually(t, soon+time.Duration(size)*20*time.Millisecond, "served and guarded", func() error { return w.quietFor(quiet) })
	w.end()
	lab.Eventually(t, soon+time.Duration(size)*20*time.Millisecond, "all is as it was", complete)
	return r.judge(t, w, raided, byHand)
}

// quietFor: each was asked, and it is so long that one of them was seen without service or guard.
func (w *watch) quietFor(d time.Duration) error {
	for _, v := range w.list {
		v.mu.Lock()
		asked, bad, now := v.asked, max(v.lost, v.unguarded), time.Since(w.began)
		v.mu.Unlock()
		if asked < 5 || d > 0 && now-bad < d {
			return fmt.Errorf("%s was asked %d times and was last without service or guard at %s of %s", v.name, asked, bad, now)
		}
	}
	return nil
}

// judge holds the times against the control, and says which were too long.
func (r sizeRaid) judge(t *testing.T, w *watch, raided, byHand time.Duration) (late error) {
	t.Helper()
	since := func(at time.Duration) time.Duration { return max(at+probeEvery-raided, 0) }
	limit := time.Second
	if busy := healsWithin * byHand; busy > limit {
		limit = looksEach + busy
	}
	lab.Figure(t, "the same by hand, ms", int(byHand.Milliseconds()))
	for _, v := range w.list {
		dark, open := time.Duration(0), time.Duration(0)
		if v.lostN > 0 {
			dark = since(v.lost)
		}
		if v.openN > 0 {
			open = since(v.unguarded)
		}
		lab.Figure(t, v.name+", new connections served after, ms", int(dark.Milliseconds()))
		if r.unguards {
			lab.Figure(t, v.name+", unguarded, ms", int(open.Milliseconds()))
		} else if v.openN > 0 {
			t.Errorf("%s: %d times the node's own listener answered", v.name, v.openN)
		}
		if dark > limit || open > limit {
			late = errors.Join(late, fmt.Errorf("%s: served after %s, guarded after %s; by hand it takes %s, so that %s are given", v.name, dark, open, byHand, limit))
		}
	}
	return late
}

const (
	// healsWithin is how many times as long as the tool with a file the agent may take: it has to find out first what is gone.
	healsWithin = 4
	// looksEach is how often it looks whether virtual servers are gone, of which nobody tells it: as often on a busy machine.
	looksEach = 900 * time.Millisecond
)

// samples are the first, the middle and the last of so many Services.
func samples(size int) []*watched {
	return []*watched{{name: "first", vip: crowdIP(0)}, {name: "middle", vip: crowdIP(size / 2)}, {name: "last", vip: crowdIP(size - 1)}}
}

// watchFor watches until each was asked so often.
func watchFor(from *lab.Host, list []*watched, times int) *watch {
	w := startWatch(from, list...)
	for _, v := range list {
		for asked := 0; asked < times; {
			v.mu.Lock()
			asked = v.asked
			v.mu.Unlock()
			time.Sleep(probeEvery)
		}
	}
	w.end()
	return w
}

// boundOf are the virtual IPs of a crowd that stand on the interface, as addresses or as routes: the kernel makes a local route
// of an address.
func boundOf(t *testing.T, n *lab.Node) (list []string) {
	t.Helper()
	if _, err := n.Netlink().LinkByName("kube-ipvs0"); err != nil {
		return nil
	}
	for line := range strings.Lines(said(t, n, "ip -4 route show table local dev kube-ipvs0")) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "local" && strings.HasPrefix(words[1], "10.97.") {
			list = append(list, words[1])
		}
	}
	return list
}

// sameAsSize: the kernel has as many virtual servers, addresses and open frontends as there are Services.
func sameAsSize(t *testing.T, n *lab.Node, size int) error {
	servers := 0
	var text []byte
	if err := n.Do(func() (err error) {
		text, err = os.ReadFile(filepath.Join("/proc/thread-self/net/ip_vs"))
		return err
	}); err != nil {
		return err
	}
	servers = strings.Count(string(text), "TCP  ")
	reals := strings.Count(string(text), "  -> ") - 1 // the heading has one
	if addrs := len(boundOf(t, n)); servers != size || reals != size*len(crowdPods) || addrs != size {
		return fmt.Errorf("%d virtual servers, %d real servers, %d addresses", servers, reals, addrs)
	}
	for _, set := range []string{"owned4", "open4", "vips4"} {
		// nft prints a few elements a line, each with a comma.
		if got := strings.Count(nftTool(t, n, "-n", "list", "set", "inet", "ipvs-proxy", set), "10.97."); got != size {
			return fmt.Errorf("set %s has %d of %d", set, got, size)
		}
	}
	return nil
}
