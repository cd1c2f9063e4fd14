package traffic

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// changes makes changes of the cluster, one after the other, each when the one before is in the kernel, and says how long
// each took: Services that come and go.
func (s *stage) changes(t *testing.T, n *lab.Node, count int) (took []time.Duration) {
	t.Helper()
	for i := range count {
		svc, want := web(200+i/2%50), i%2 == 0
		began := time.Now()
		if want {
			s.apply(svc, s.w.Pod("pod-b"))
		} else {
			v4, v6 := s.w.SlicesFor(svc)
			s.cluster.Delete(svc, v4, v6)
		}
		lab.Eventually(t, soon, fmt.Sprintf("change %d", i), func() error {
			if _, is := table(t, n)["tcp "+at(svc, 4, 80).String()]; is != want {
				return fmt.Errorf("there: %t, want %t", is, want)
			}
			return nil
		})
		took = append(took, time.Since(began))
	}
	return took
}

// F42: the agent gets no processor for a while, under load, while the cluster changes. Nothing is lost; when it goes on it
// follows, and is healthy.
func TestF42NoProcessor(t *testing.T) {
	pause := formOf(3*time.Second, 10*time.Second)
	s, svc := busyStage(t)
	n := s.w.Node(1)
	agent := s.w.StartAgent(t, n, s.cluster)
	programmed(t, agent)
	on := s.goesOn(t, svc)
	before, control := usageOf(t, agent), s.changes(t, n, 2)
	hold(t, agent, true)
	stopped := time.Now()
	late := web(190)
	s.apply(late, s.w.Pod("pod-b"))
	on.more(4)
	time.Sleep(pause - time.Since(stopped)) // the load goes on: this is how long it stands still
	if _, is := table(t, n)["tcp "+at(late, 4, 80).String()]; is {
		t.Error("the control: an agent that stands still followed the cluster")
	}
	hold(t, agent, false)
	goesOn := time.Now()
	answers(t, n.Host, at(late, 4, 80))
	lab.Figure(t, "stood still, ms", int(pause.Milliseconds()))
	lab.Figure(t, "the change is served after, ms", int(time.Since(goesOn).Milliseconds()))
	lab.Figure(t, "a change while nothing is wrong, ms", int(control[0].Milliseconds()))
	wantCode(t, s.w.Client, netip.AddrPortFrom(n.V4, 10256), "/healthz", 200)
	before.figures(t, "before")
	usageOf(t, agent).figures(t, "after")
	on.wantNothingLost(t)
	wouldNotice(t, s.w.Pod("pod-a").Host, n, at(svc, 4, 80))
}

// F42: the agent may have 64 descriptors, and clients hold on to what its servers have for them. It follows the cluster all
// the same, and when they let go it answers again.
func TestF42FewDescriptors(t *testing.T) {
	s, svc := busyStage(t)
	n := s.w.Node(1)
	agent := s.w.StartAgent(t, n, s.cluster)
	limit := unix.Rlimit{Cur: 64, Max: 64}
	if err := unix.Prlimit(agent.Pid(), unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	programmed(t, agent)
	on := s.goesOn(t, svc)
	control := s.changes(t, n, 4) // with them it opens what it opens once
	before := usageOf(t, agent)
	health := netip.AddrPortFrom(n.V4, 10256)
	held := holdOn(t, n, health, 64, 200)
	took := s.changes(t, n, formOf(10, 200))
	most := usageOf(t, agent)
	for _, c := range held {
		c.Close()
	}
	lab.Eventually(t, soon, "it answers again", func() error {
		p, err := get(s.w.Client, health, "/healthz")
		if err != nil || p.code != 200 {
			return fmt.Errorf("%d, %v", p.code, err)
		}
		return nil
	})
	lab.Figure(t, "connections held", len(held))
	lab.Figure(t, "a change while nothing is wrong, ms", int(slices.Max(control).Milliseconds()))
	lab.Figure(t, "descriptors at most", most.descriptors)
	times(t, "a change", took)
	before.figures(t, "before")
	lab.Eventually(t, soon, "no more descriptors than before", func() error {
		if after := usageOf(t, agent); after.descriptors > before.descriptors+2 {
			return fmt.Errorf("%d, before %d", after.descriptors, before.descriptors)
		}
		return nil
	})
	usageOf(t, agent).figures(t, "after")
	on.wantNothingLost(t)
	wouldNotice(t, s.w.Pod("pod-a").Host, n, at(svc, 4, 80))
}

// holdOn opens connections and asks nothing over them: as many as it is told at most, until the queue of those that nobody
// takes is full, and so many at least, however long that takes.
func holdOn(t *testing.T, n *lab.Node, to netip.AddrPort, least, most int) (held []net.Conn) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%d connections to %s", least, to), func() error {
		return n.Do(func() error {
			for len(held) < most {
				c, err := net.DialTimeout("tcp", to.String(), time.Second)
				if err != nil && len(held) >= least {
					return nil
				}
				if err != nil {
					return fmt.Errorf("after %d: %w", len(held), err)
				}
				held = append(held, c)
			}
			return nil
		})
	})
	return held
}

// cgroup makes a control group that counts memory, for a process.
func cgroup(t *testing.T, pid int) (dir string) {
	t.Helper()
	root := t.TempDir()
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Skipf("no control groups of version 2: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
		t.Skipf("control groups do not count memory here: %v", err)
	}
	dir = filepath.Join(root, fmt.Sprintf("f42-%d", pid))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	writeFile(t, filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid))
	return dir
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

// killed counts the processes of a control group that were killed for want of memory.
func killed(t *testing.T, dir string) (n int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "memory.events"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "oom_kill %d", &n)
	}
	return n
}

// F42: the agent may have 1.5 times the memory that it rests at, and is told so as the manifests tell it. Through changes it
// lives, and nothing is lost. The control may have less than it rests at, and is killed; nothing is lost then either, and
// the next one takes up where it was.
func TestF42LittleMemory(t *testing.T) {
	s, svc := busyStage(t)
	n := s.w.Node(1)
	many := newCrowd(s.cluster, formOf(100, 2000))
	many.write()
	first := s.w.StartAgent(t, n, s.cluster)
	programmedMany(t, first, len(many.services))
	rest := usageOf(t, first)
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	may := rest.memory * 3 / 2 * 1024
	t.Setenv("IPVS_PROXY_MEMORY_LIMIT", strconv.Itoa(max(may, 33<<20)))
	agent := s.w.StartAgent(t, n, s.cluster)
	dir := cgroup(t, agent.Pid())
	writeFile(t, filepath.Join(dir, "memory.max"), strconv.Itoa(may))
	programmedMany(t, agent, len(many.services))
	on := s.goesOn(t, svc)
	took := s.changes(t, n, formOf(10, 200))
	for range formOf(2, 50) { // all of the cluster is read again
		many.write()
		took = append(took, s.changes(t, n, 2)...)
	}
	lab.Figure(t, "resting, kB", rest.memory)
	lab.Figure(t, "may have, kB", may/1024)
	times(t, "a change", took)
	usageOf(t, agent).figures(t, "after")
	if killed(t, dir) > 0 || !agent.Running() {
		t.Fatalf("it was killed:\n%s", agent.Log())
	}
	// The control.
	writeFile(t, filepath.Join(dir, "memory.max"), strconv.Itoa(4<<20))
	many.write()
	if err := agent.Wait(soon); err == nil || killed(t, dir) == 0 {
		t.Errorf("the control: with 4 MB it ended with %v, %d killed", err, killed(t, dir))
	}
	next := s.w.StartAgent(t, n, s.cluster)
	programmedMany(t, next, len(many.services))
	s.changes(t, n, 2)
	on.wantNothingLost(t)
	wouldNotice(t, s.w.Pod("pod-a").Host, n, at(svc, 4, 80))
}

// setClock moves the machine's clock by some years. It is for a machine that is the lab's own.
func setClock(t *testing.T, years int) {
	t.Helper()
	now := time.Now().AddDate(years, 0, 0)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: now.Unix(), Nsec: int64(now.Nanosecond())}); err != nil {
		t.Fatal(err)
	}
}

// F43: the clock jumps ten years ahead, and back beyond where it was, under load, while a real server drains. Nothing is
// lost, a drain goes on, and the agent follows the cluster as before. The control: where its deadline is over the drain
// ends, and the connection that it was for is cut.
func TestF43ClockJumps(t *testing.T) {
	if _, err := os.Stat(wire.SpecFile); err != nil {
		t.Skip("the clock of a machine that is not the lab's own is left alone")
	}
	s, svc := busyStage(t)
	n, b := s.w.Node(1), s.w.Pod("pod-b")
	agent := s.w.StartAgent(t, n, s.cluster, "--config", ownFile(t, "drainDeadline: 20s"))
	programmed(t, agent)
	control := s.changes(t, n, 2)
	before, on := usageOf(t, agent), s.goesOn(t, svc)
	drained := web(189)
	drained.Ports[0].TargetPort = 8081
	s.apply(drained, b)
	answersLines(t, n.Host, at(drained, 4, 80))
	kept, err := n.StartKept(at(drained, 4, 80), 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	s.apply(drained, s.w.Pod("pod-c"))
	gone := netip.AddrPortFrom(b.V4, 8081)
	takesNoMore(t, n, at(drained, 4, 80), gone)
	left := time.Now()
	drains := func() bool {
		return slices.ContainsFunc(reals(t, n, at(drained, 4, 80)), func(r string) bool { return strings.HasPrefix(r, gone.String()) })
	}
	tap := tapWrites(t, n)
	jumps := []int{10, -20, 10}
	moved := 0
	defer func() { setClock(t, -moved) }()
	var took []time.Duration
	for _, years := range jumps {
		setClock(t, years)
		moved += years
		on.more(1)
		if r := kept.Report(); r.Err != nil && time.Since(left) < 18*time.Second {
			t.Errorf("the drain ended with a jump of %d years, %s after it began: %s", years, time.Since(left), r)
		}
		wrote := unshielded(tap.take(time.Second, 0))
		stands := drains()
		// What the control's changes took away may have gone by then.
		wrote = slices.DeleteFunc(wrote, func(w string) bool { return stands && w == "DEL_DEST" })
		if (len(wrote) > 0 || !stands) && time.Since(left) < 18*time.Second {
			t.Errorf("a jump of %d years: wrote %q; what drains is there: %t", years, wrote, stands)
		}
		took = append(took, s.changes(t, n, 2)...)
		tap.take(time.Second, 0)
		wantCode(t, s.w.Client, netip.AddrPortFrom(n.V4, 10256), "/healthz", 200)
	}
	lab.Eventually(t, soon, "the control: the deadline is over, and the connection cut", func() error {
		if drains() {
			return fmt.Errorf("%s is still there", gone)
		}
		return nil
	})
	lab.Figure(t, "drained for, ms", int(time.Since(left).Milliseconds()))
	lab.Figure(t, "jumps", len(jumps))
	lab.Figure(t, "a change while nothing is wrong, ms", int(control[0].Milliseconds()))
	times(t, "a change", took)
	before.figures(t, "before")
	usageOf(t, agent).figures(t, "after")
	kept.Stop()
	on.wantNothingLost(t)
	wouldNotice(t, s.w.Pod("pod-a").Host, n, at(svc, 4, 80))
}

// answersLines waits until a frontend of ServeLines can be connected to.
func answersLines(t *testing.T, from *lab.Host, to netip.AddrPort) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s takes connections", to), func() error {
		if r := from.Connect(to, lab.Timeout(time.Second)); r.Verdict != lab.Answered {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// F42: the file system that the log goes to is full. The agent follows the cluster all the same; when there is room again,
// the log goes on. The agent's own root is read-only (TestImage has that in all of its tests).
func TestF42FullDisk(t *testing.T) {
	s, svc := busyStage(t)
	n := s.w.Node(1)
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	filler, log := filepath.Join(disk, "filler"), filepath.Join(disk, "log")
	agent := s.w.StartProgram(t, n.Host, "/bin/sh", "-c", `exec "$0" "$@" >>`+log+` 2>&1`,
		os.Getenv("LAB_AGENT"), "run", "--source-dir", s.cluster.Dir, "--hostname-override", n.Name,
		"--cluster-cidr", lab.ClusterCIDR4.String()+","+lab.ClusterCIDR6.String())
	answers(t, n.Host, at(svc, 4, 80))
	full := os.WriteFile(filler, bytes.Repeat([]byte{'x'}, 64<<10), 0o644)
	if full == nil {
		t.Fatal("the control: the disk is not full")
	}
	on := s.goesOn(t, svc)
	logged := func() int64 {
		info, err := os.Stat(log)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	was := logged()
	took := s.changes(t, n, formOf(10, 200))
	if now := logged(); now > was+4096 {
		t.Errorf("the control: the log grew from %d to %d bytes on a full disk", was, now)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	was = logged()
	took = append(took, s.changes(t, n, 2)...)
	lab.Eventually(t, soon, "the log goes on", func() error {
		if logged() <= was {
			return fmt.Errorf("%d bytes", logged())
		}
		return nil
	})
	if !agent.Running() {
		t.Error("the agent has ended")
	}
	times(t, "a change", took)
	usageOf(t, agent).figures(t, "after")
	on.wantNothingLost(t)
	wouldNotice(t, s.w.Pod("pod-a").Host, n, at(svc, 4, 80))
}
