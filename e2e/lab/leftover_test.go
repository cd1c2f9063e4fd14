package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// traces is what a world could leave in the process and in its namespace.
func traces(t *testing.T) (links []string, nsFiles int) {
	t.Helper()
	all, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		links = append(links, l.Attrs().Name)
	}
	slices.Sort(links)
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "net:[") {
			nsFiles++
		}
	}
	return links, nsFiles
}

// threadNamespaces are the network namespaces in which this process has threads.
func threadNamespaces(t *testing.T) []string {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil {
			found = append(found, ns)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// namespaceIDs lists the ids under which this namespace knows others. An id
// vanishes only when the kernel destroys the namespace, so it tells of what no
// file descriptor or process shows.
func namespaceIDs(t *testing.T) map[int]bool {
	t.Helper()
	req := nl.NewNetlinkRequest(unix.RTM_GETNSID, unix.NLM_F_DUMP)
	req.AddData(nl.NewRtGenMsg())
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNSID)
	if err != nil {
		t.Fatalf("ids of namespaces: %v", err)
	}
	ids := map[int]bool{}
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[unix.SizeofRtGenmsg+3:])
		if err != nil {
			t.Fatalf("ids of namespaces: %v", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.NETNSA_NSID {
				ids[int(int32(nl.NativeEndian().Uint32(a.Value)))] = true
			}
		}
	}
	return ids
}

// fromOutside runs f in a namespace of its own, in the place of the one that the
// process was started in: there, other programs make and remove links too.
func fromOutside(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	needPrivileges(t)
	outside, err := newHost("outside")
	if err != nil {
		t.Fatal(err)
	}
	defer outside.close()
	if err := outside.Do(func() error { f(t); return nil }); err != nil {
		t.Fatal(err)
	}
}

func TestNothingLeftBehind(t *testing.T) {
	asAgent(t)
	fromOutside(t, nothingLeftBehind)
}

func nothingLeftBehind(t *testing.T) {
	links, files := traces(t)
	threads := threadNamespaces(t)
	w, err := Build(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.ServeHTTP(t, 8080, w.Pod("pod-c"))
	load := w.Pod("pod-a").StartLoad(at(w.Pod("pod-c").Host, 4, 8080), LoadConfig{Concurrency: 2, Wait: time.Millisecond})
	answeredSince(t, load, 0, 3)
	agent, err := w.RunAgent(w.Node(1), w.Cluster(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	hosts := w.hosts()
	for i, h := range hosts {
		if err := netlink.SetNetNsIdByFd(int(h.ns), i); err != nil {
			t.Fatalf("id for %s: %v", h.Name, err)
		}
	}
	// Controls: while the world stands, its traces are seen.
	if _, now := traces(t); now < files+len(hosts) {
		t.Errorf("%d namespaces, but %d file descriptors after %d", len(hosts), now, files)
	}
	if ids := namespaceIDs(t); len(ids) != len(hosts) {
		t.Errorf("%d namespaces, but ids %v", len(hosts), ids)
	}
	if now := threadNamespaces(t); len(now) <= len(threads) {
		t.Errorf("an agent's thread is in no namespace of its own: %v", now)
	}

	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if agent.Running() {
		t.Error("the agent outlives its world")
	}
	nowLinks, nowFiles := traces(t)
	if !slices.Equal(links, nowLinks) || nowFiles != files {
		t.Errorf("links %v and %d namespaces before, %v and %d after", links, files, nowLinks, nowFiles)
	}
	Eventually(t, 60*time.Second, "threads and namespaces being gone", func() error {
		if now := threadNamespaces(t); !slices.Equal(now, threads) {
			return fmt.Errorf("threads are in %v, were in %v", now, threads)
		}
		if ids := namespaceIDs(t); len(ids) > 0 {
			return fmt.Errorf("namespaces %v of %d still exist", ids, len(hosts))
		}
		return nil
	})
}

// A world that cannot be built takes back what it had made.
func TestFailedBuildLeavesNothing(t *testing.T) {
	fromOutside(t, func(t *testing.T) {
		links, files := traces(t)
		w, err := Build(Config{Pods: []PodSpec{{Name: "twin", Node: 1}, {Name: "twin", Node: 2}}})
		if err == nil || w != nil {
			t.Fatalf("built a world with two pods of one name: %v, %v", w, err)
		}
		if nowLinks, nowFiles := traces(t); !slices.Equal(links, nowLinks) || nowFiles != files {
			t.Errorf("links %v and %d namespaces before, %v and %d after", links, files, nowLinks, nowFiles)
		}
	})
}

func TestDoComesBack(t *testing.T) {
	w := NewWithoutIPVS(t, Config{Nodes: 1})
	before := threadNamespaces(t)
	names := map[string]bool{}
	for _, h := range w.hosts() {
		err := h.Do(func() error {
			outer, err := os.Readlink("/proc/thread-self/ns/net")
			names[outer] = true
			if err != nil {
				return err
			}
			if err := w.Client.Do(func() error { return nil }); err != nil {
				return err
			}
			if inner, _ := os.Readlink("/proc/thread-self/ns/net"); inner != outer {
				return fmt.Errorf("in %s after a nested Do, in %s before", inner, outer)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if len(names) != len(w.hosts()) {
		t.Errorf("%d namespaces for %d hosts", len(names), len(w.hosts()))
	}
	if now := threadNamespaces(t); !slices.Equal(now, before) {
		t.Errorf("threads in %v, were in %v", now, before)
	}
}
