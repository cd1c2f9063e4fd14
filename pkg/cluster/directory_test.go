package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"
)

const patience = 20 * time.Second // far beyond what anything here takes

// follower is a Directory that runs.
type follower struct {
	t        *testing.T
	dir      string
	m        *Model
	d        *Directory
	troubles chan Trouble
	synced   bool // as Take said
}

// newFollower makes a directory whose only news are notifications: nothing in
// a test is found by looking again.
func newFollower(t *testing.T) *follower {
	f := &follower{t: t, dir: filepath.Join(t.TempDir(), "cluster"), troubles: make(chan Trouble, 1000)}
	if err := os.Mkdir(f.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f.m = NewModel(Options{NodeName: "own"})
	f.d = NewDirectory(f.dir, f.m, func(err error) { f.troubles <- err.(Trouble) })
	f.d.timing.reread, f.d.timing.poll = time.Hour, time.Hour
	return f
}

func (f *follower) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.d.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				f.t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			f.t.Error("Run does not end")
		}
		for len(f.troubles) > 0 {
			f.t.Errorf("unexpected: %v", <-f.troubles)
		}
	})
}

// write replaces a file in one step.
func (f *follower) write(name string, text ...string) {
	f.t.Helper()
	tmp := filepath.Join(filepath.Dir(f.dir), "tmp")
	if err := os.WriteFile(tmp, []byte(strings.Join(text, "---\n")), 0o644); err != nil {
		f.t.Fatal(err)
	}
	f.must(os.Rename(tmp, filepath.Join(f.dir, name)))
}

// writeInPlace does it as some editors do.
func (f *follower) writeInPlace(name string, text ...string) {
	f.t.Helper()
	f.must(os.WriteFile(filepath.Join(f.dir, name), []byte(strings.Join(text, "---\n")), 0o644))
}

func (f *follower) remove(name string) {
	f.t.Helper()
	f.must(os.Remove(filepath.Join(f.dir, name)))
}

func (f *follower) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// services is what the Model has: "a=10.96.0.1[10.1.0.1 10.1.0.2]".
func (f *follower) services() string {
	var out []string
	for _, id := range f.m.Services() {
		svc, eps := f.m.Get(id)
		if svc == nil {
			continue
		}
		var addrs []netip.Addr
		for _, e := range eps {
			addrs = append(addrs, e.Addr)
		}
		s := fmt.Sprintf("%s=%v", id.Name, svc.ClusterIPs)
		if len(addrs) > 0 {
			s += fmt.Sprint(addrs)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// expect waits until the Model has these services.
func (f *follower) expect(want string) {
	f.t.Helper()
	f.wait(func() (string, bool) {
		got := f.services()
		return fmt.Sprintf("%q, want %q", got, want), got == want
	})
}

func (f *follower) wait(ok func() (string, bool)) {
	f.t.Helper()
	deadline := time.After(patience)
	for {
		got, is := ok()
		if is {
			return
		}
		select {
		case <-f.m.Changed():
			_, _, synced := f.m.Take() // or there would be no other token
			f.synced = f.synced || synced
		case <-deadline:
			f.t.Fatalf("the model has %s", got)
		}
	}
}

func (f *follower) expectSynced() {
	f.t.Helper()
	f.wait(func() (string, bool) {
		return "not synced", f.synced
	})
}

// trouble waits for the next Trouble and compares its beginning.
func (f *follower) trouble(want string) Trouble {
	f.t.Helper()
	select {
	case got := <-f.troubles:
		if !strings.HasPrefix(strings.ReplaceAll(got.Error(), f.dir, "DIR"), want) {
			f.t.Fatalf("Trouble %q, want %q", got, want)
		}
		return got
	case <-time.After(patience):
		f.t.Fatalf("no Trouble, want %q; the model has %s", want, f.services())
		panic("unreachable")
	}
}

func TestDirectoryFollows(t *testing.T) {
	f := newFollower(t)
	f.write("a.yaml", serviceText("a", "10.96.0.1"), sliceText("a-1", "a", "10.1.0.1"))
	f.write("notes.txt", "not: [ours")
	f.write(".hidden.yaml", "not: [ours")
	f.must(os.Mkdir(filepath.Join(f.dir, "sub"), 0o755))
	f.run()
	f.expectSynced()
	f.expect("a=[10.96.0.1][10.1.0.1]")
	f.write("b.yml", serviceText("b", "10.96.0.2"))
	f.expect("a=[10.96.0.1][10.1.0.1] b=[10.96.0.2]")
	f.write("c.json", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"},"spec":{"clusterIP":"10.96.0.3"}}`)
	f.expect("a=[10.96.0.1][10.1.0.1] b=[10.96.0.2] c=[10.96.0.3]")
	f.writeInPlace("a.yaml", serviceText("a", "10.96.0.1"), sliceText("a-1", "a", "10.1.0.1", "10.1.0.2"))
	f.expect("a=[10.96.0.1][10.1.0.1 10.1.0.2] b=[10.96.0.2] c=[10.96.0.3]")
	f.remove("b.yml")
	f.expect("a=[10.96.0.1][10.1.0.1 10.1.0.2] c=[10.96.0.3]")
	f.write("a.yaml", sliceText("a-1", "a", "10.1.0.1"))
	f.expect("c=[10.96.0.3]")
	f.write("a.yaml", "apiVersion: v1\nkind: List\nitems: []\n")
	f.must(os.Rename(filepath.Join(f.dir, "c.json"), filepath.Join(f.dir, "d.json")))
	f.write("e.yaml", serviceText("a", "10.96.0.9"))
	f.expect("a=[10.96.0.9] c=[10.96.0.3]")
	f.remove("d.json")
	f.expect("a=[10.96.0.9]")
}

func TestDirectoryReadsWhatKubectlPrints(t *testing.T) {
	f := newFollower(t)
	text, err := os.ReadFile("testdata/kubectl.yaml")
	f.must(err)
	f.write("all.yaml", string(text))
	f.run()
	f.expectSynced()
	svc, eps := f.m.Get(ID{"default", "kubia"})
	want := &Service{
		Identity: Identity{ID: ID{"default", "kubia"}, UID: parseUID("0a1b2c3d-0000-4000-8000-000000000001"), Created: 1777885953}, Type: TypeLoadBalancer,
		ClusterIPs: addrs("10.96.44.7", "fd00:10:96::2c07"), Ports: []Port{{"http", TCP, 80, 30080}, {"dns", UDP, 53, 30053}},
		AffinitySeconds: 600, ExternalLocal: true, HealthCheckNodePort: 31234,
		LoadBalancerIPs: addrs("203.0.113.10"), TrafficDistribution: "PreferSameZone",
	}
	if diff := cmp.Diff(want, svc, netipComparer); diff != "" {
		t.Errorf("Service (-want +got):\n%s", diff)
	}
	wantEps := []string{
		"10.244.1.5:5353/UDP dns node=own zone=zone-a zones=zone-a",
		"10.244.2.9:5353/UDP dns node=other zone=zone-b unready terminating",
		"10.244.1.5:8080/TCP http node=own zone=zone-a zones=zone-a",
		"10.244.2.9:8080/TCP http node=other zone=zone-b unready terminating",
	}
	if diff := cmp.Diff(wantEps, shown(eps)); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
	if n := f.m.Node(); n.Zone != "zone-a" || !slices.Equal(n.Addrs, addrs("192.168.7.11")) {
		t.Errorf("Node() = %+v", n)
	}
}

func TestDirectoryMissing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file.yaml")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, file + "/x", filepath.Join(t.TempDir(), "missing")} {
		if err := NewDirectory(dir, NewModel(Options{}), nil).Run(t.Context()); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("Run(%s) = %v", dir, err)
		}
	}
}

// A bad document leaves everything in place that it may have meant.
func TestDirectoryBadDocument(t *testing.T) {
	f := newFollower(t)
	a, b, c := serviceText("a", "10.96.0.1"), serviceText("b", "10.96.0.2"), serviceText("c", "10.96.0.3")
	f.write("x.yaml", a, b)
	f.run()
	f.expect("a=[10.96.0.1] b=[10.96.0.2]")
	f.write("x.yaml", "kind: [\n", serviceText("b", "10.96.0.22"), c)
	tr := f.trouble("x.yaml: document 1 (line 1): yaml: line ")
	if tr.Reason != TroubleDocument || tr.Document != 1 || tr.Note() {
		t.Errorf("%+v", tr)
	}
	f.expect("a=[10.96.0.1] b=[10.96.0.22] c=[10.96.0.3]")
	f.write("x.yaml", "kind: [\n", serviceText("b", "10.96.0.23")) // still bad: not said again
	f.expect("a=[10.96.0.1] b=[10.96.0.23] c=[10.96.0.3]")
	f.write("x.yaml", b)
	f.trouble("mended: x.yaml: document 1 (line 1): yaml: line ")
	f.expect("b=[10.96.0.2]")

	// A bad item of a List.
	list := "apiVersion: v1\nkind: ServiceList\nitems:\n- {metadata: {name: b, namespace: default}, spec: {clusterIP: 10.96.0.%s}}\n- {metadata: {name: d}, spec: {clusterIP: %s}}\n"
	f.write("x.yaml", fmt.Sprintf(list, "2", "10.96.0.4"))
	f.expect("b=[10.96.0.2] d=[10.96.0.4]")
	f.write("x.yaml", fmt.Sprintf(list, "5", "[]"))
	f.trouble("x.yaml: document 1 (line 1): items[1]: json: cannot unmarshal array")
	f.expect("b=[10.96.0.5] d=[10.96.0.4]")
	f.remove("x.yaml") // the last one: stays
	f.trouble("DIR: no usable document in 0 files")
	f.expect("b=[10.96.0.5] d=[10.96.0.4]")
	f.write("y.yaml", a)
	f.trouble("mended: x.yaml: document 1")
	f.trouble("mended: DIR: no usable document in 0 files")
	f.expect("a=[10.96.0.1]")
}

func TestDirectoryFileStates(t *testing.T) {
	f := newFollower(t)
	f.d.maxSize = 1000
	f.write("a.yaml", serviceText("a", "10.96.0.1"))
	f.write("z.yaml", serviceText("z", "10.96.0.9"))
	f.run()
	f.expect("a=[10.96.0.1] z=[10.96.0.9]")

	f.writeInPlace("a.yaml", "\n")
	f.trouble("a.yaml: the file is empty; its last objects stay")
	f.expect("a=[10.96.0.1] z=[10.96.0.9]")
	f.writeInPlace("a.yaml", serviceText("a", "10.96.0.1"))
	f.trouble("mended: a.yaml: the file is empty")

	f.write("a.yaml", serviceText("b", "10.96.0.2"), strings.Repeat("#", 1000))
	f.trouble("a.yaml: too large: over 1000 bytes; its last objects stay")
	f.must(os.Symlink("nowhere", f.dir+".link"))
	f.must(os.Rename(f.dir+".link", filepath.Join(f.dir, "a.yaml")))
	f.trouble("a.yaml: open: no such file or directory; its last objects stay")
	f.trouble("mended: a.yaml: too large")
	f.expect("a=[10.96.0.1] z=[10.96.0.9]")
	f.write("a.yaml", serviceText("a", "10.96.0.3"))
	f.trouble("mended: a.yaml: open")
	f.expect("a=[10.96.0.3] z=[10.96.0.9]")
	f.write("a.yaml", "# deliberately nothing\n")
	f.expect("z=[10.96.0.9]")
	f.must(os.Mkdir(filepath.Join(f.dir, "d.yaml"), 0o755))
	f.trouble("d.yaml: not a regular file")
}

func TestDirectoryDuplicates(t *testing.T) {
	f := newFollower(t)
	f.write("b.yaml", serviceText("a", "10.96.0.2"))
	f.run()
	f.expect("a=[10.96.0.2]")
	f.write("a.yaml", serviceText("a", "10.96.0.1"))
	f.trouble("b.yaml: Service default/a: a.yaml defines it too and counts")
	f.expect("a=[10.96.0.1]")
	f.write("c.yaml", serviceText("a", "10.96.0.3"), serviceText("c", "10.96.0.4"))
	f.trouble("c.yaml: Service default/a: a.yaml defines it too and counts")
	f.expect("a=[10.96.0.1] c=[10.96.0.4]")
	f.write("b.yaml", serviceText("a", "10.96.0.22"), serviceText("b", "10.96.0.5"))
	f.expect("a=[10.96.0.1] b=[10.96.0.5] c=[10.96.0.4]")
	f.write("b.yaml", serviceText("a", "10.96.0.23"), "kind: [\n") // a bad loser keeps, too
	f.trouble("b.yaml: document 2")
	f.remove("a.yaml")
	f.trouble("mended: b.yaml: Service default/a: a.yaml defines")
	f.trouble("c.yaml: Service default/a: b.yaml defines it too and counts")
	f.expect("a=[10.96.0.23] b=[10.96.0.5] c=[10.96.0.4]")
	f.remove("b.yaml")
	f.trouble("mended: b.yaml: document 2")
	f.trouble("mended: c.yaml: Service default/a")
	f.expect("a=[10.96.0.3] c=[10.96.0.4]")
}

// A copy of a whole file is one short report, not one for each object.
func TestDirectoryManyDuplicates(t *testing.T) {
	f := newFollower(t)
	var docs []string
	for i := range 200 {
		docs = append(docs, serviceText(fmt.Sprintf("s%03d", i), "10.96.0.1"))
	}
	f.write("a.yaml", docs...)
	f.write("b.yaml", docs...)
	f.run()
	for i := range listedPerFile {
		f.trouble(fmt.Sprintf("b.yaml: Service default/s%03d: a.yaml defines it too", i))
	}
	f.trouble("b.yaml: Duplicate: 180 more like these")
	f.expectSynced()
}

func TestDirectoryIgnoredKinds(t *testing.T) {
	f := newFollower(t)
	pod := "apiVersion: v1\nkind: Pod\n"
	f.write("a.yaml", pod, pod, serviceText("a", "10.96.0.1"))
	f.run()
	if tr := f.trouble("a.yaml: Pod (v1): objects of this kind are ignored"); !tr.Note() {
		t.Errorf("%+v is no note", tr)
	}
	f.write("a.yaml", serviceText("a", "10.96.0.2")) // nothing is mended
	f.expect("a=[10.96.0.2]")
}

// F2: an empty directory at the start is not an empty cluster.
func TestDirectoryEmptyAtStart(t *testing.T) {
	f := newFollower(t)
	f.run()
	f.trouble("DIR: no usable document in 0 files")
	f.write("a.yaml", "kind: [\n")
	f.trouble("a.yaml: document 1")
	f.trouble("DIR: no usable document in 1 files")
	if _, _, synced := f.m.Take(); synced || f.synced {
		t.Fatal("synced with nothing")
	}
	f.write("a.yaml", serviceText("a", "10.96.0.1"))
	f.trouble("mended: a.yaml: document 1")
	f.trouble("mended: DIR: no usable document")
	f.expectSynced()
	f.expect("a=[10.96.0.1]")
}

// F2: a directory that goes, empties or is replaced takes nothing with it.
func TestDirectoryGoneAndBack(t *testing.T) {
	f := newFollower(t)
	f.d.timing.poll = 20 * time.Millisecond
	f.write("a.yaml", serviceText("a", "10.96.0.1"))
	f.write("b.yaml", serviceText("b", "10.96.0.2"))
	f.run()
	f.expect("a=[10.96.0.1] b=[10.96.0.2]")

	away := f.dir + ".away"
	f.must(os.Rename(f.dir, away))
	if tr := f.trouble("open DIR: no such file or directory; the last state stays"); tr.Reason != TroubleDirectory {
		t.Errorf("%+v", tr)
	}
	f.expect("a=[10.96.0.1] b=[10.96.0.2]")
	f.must(os.Mkdir(f.dir, 0o755))
	f.trouble("DIR: no usable document in 0 files")
	f.trouble("mended: open DIR")
	f.expect("a=[10.96.0.1] b=[10.96.0.2]")
	f.write("b.yaml", serviceText("b", "10.96.0.22"))
	f.trouble("mended: DIR: no usable document")
	f.expect("b=[10.96.0.22]")
	f.write("c.yaml", serviceText("c", "10.96.0.3")) // the new directory is watched
	f.expect("b=[10.96.0.22] c=[10.96.0.3]")

	f.must(os.RemoveAll(f.dir))
	last := f.trouble("")
	for last.Reason != TroubleDirectory { // its files may be seen going first
		last = f.trouble("")
	}
	if got := f.services(); !strings.Contains(got, "=") {
		t.Errorf("the model has %q", got)
	}
	f.must(os.Rename(away, f.dir))
	f.expect("a=[10.96.0.1] b=[10.96.0.2]")
	for last = f.trouble(""); !last.Mended || last.Reason != TroubleDirectory; {
		last = f.trouble("")
	}
}

// A directory that is swapped under its name is noticed by looking again.
func TestDirectoryReplacedLink(t *testing.T) {
	f := newFollower(t)
	f.d.timing.reread = 50 * time.Millisecond
	f.write("a.yaml", serviceText("a", "10.96.0.1"))
	one, two := f.dir+".1", f.dir+".2"
	f.must(os.Rename(f.dir, one))
	f.must(os.Symlink(one, f.dir))
	f.run()
	f.expect("a=[10.96.0.1]")
	f.must(os.Mkdir(two, 0o755))
	f.must(os.WriteFile(two+"/b.yaml", []byte(serviceText("b", "10.96.0.2")), 0o644))
	f.must(os.Symlink(two, f.dir+".tmp"))
	f.must(os.Rename(f.dir+".tmp", f.dir))
	f.expect("b=[10.96.0.2]")
}

// A mounted ConfigMap: files are links through ..data, which is swapped.
func TestDirectoryConfigMap(t *testing.T) {
	f := newFollower(t)
	version := 0
	swap := func(files map[string]string) { // as the kubelet's AtomicWriter does it
		version++
		old, _ := os.Readlink(filepath.Join(f.dir, "..data"))
		data := fmt.Sprintf("..v%d", version)
		f.must(os.Mkdir(filepath.Join(f.dir, data), 0o755))
		for name, text := range files {
			f.must(os.WriteFile(filepath.Join(f.dir, data, name), []byte(text), 0o644))
		}
		f.must(os.Symlink(data, filepath.Join(f.dir, "..data_tmp")))
		f.must(os.Rename(filepath.Join(f.dir, "..data_tmp"), filepath.Join(f.dir, "..data")))
		for name := range files {
			if err := os.Symlink("..data/"+name, filepath.Join(f.dir, name)); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
		}
		if old != "" {
			f.must(os.RemoveAll(filepath.Join(f.dir, old)))
		}
	}
	swap(map[string]string{"a.yaml": serviceText("a", "10.96.0.1")})
	f.run()
	f.expect("a=[10.96.0.1]")
	swap(map[string]string{"a.yaml": serviceText("a", "10.96.0.2")})
	f.expect("a=[10.96.0.2]")
	swap(map[string]string{"a.yaml": serviceText("a", "10.96.0.3"), "b.yaml": serviceText("b", "10.96.0.4")})
	f.expect("a=[10.96.0.3] b=[10.96.0.4]")
}

// Without notifications, and for links to files elsewhere, looking again
// finds what changed.
func TestDirectoryLooksAgain(t *testing.T) {
	f := newFollower(t)
	f.d.timing.reread = 20 * time.Millisecond
	elsewhere := filepath.Join(t.TempDir(), "a")
	f.must(os.WriteFile(elsewhere, []byte(serviceText("a", "10.96.0.1")), 0o644))
	f.must(os.Symlink(elsewhere, filepath.Join(f.dir, "a.yaml")))
	f.run()
	f.expect("a=[10.96.0.1]")
	f.must(os.WriteFile(elsewhere, []byte(serviceText("a", "10.96.0.2")), 0o644)) // same size, perhaps same time
	f.expect("a=[10.96.0.2]")
}

// Where inotify is exhausted, looking every now and then does its work, until
// it is there again.
func TestDirectoryWithoutNotifications(t *testing.T) {
	f := newFollower(t)
	f.d.timing.poll = 20 * time.Millisecond
	allowed := make(chan bool, 1)
	f.d.watch.make = func() (*fsnotify.Watcher, error) {
		if len(allowed) == 0 {
			return nil, syscall.EMFILE
		}
		return fsnotify.NewWatcher()
	}
	f.write("a.yaml", serviceText("a", "10.96.0.1"))
	f.run()
	if tr := f.trouble("no notifications, changes are looked for every 20ms: too many open files"); tr.Reason != TroubleWatch {
		t.Errorf("%+v", tr)
	}
	f.expect("a=[10.96.0.1]")
	f.write("b.yaml", serviceText("b", "10.96.0.2"))
	f.expect("a=[10.96.0.1] b=[10.96.0.2]")
	allowed <- true
	f.trouble("mended: no notifications")
	f.write("b.yaml", serviceText("b", "10.96.0.3"))
	f.expect("a=[10.96.0.1] b=[10.96.0.3]")
}

// Files that do not change are neither parsed again nor, when their time is
// old, read.
func TestDirectoryReadsOnlyWhatChanged(t *testing.T) {
	f := newFollower(t)
	f.write("a.yaml", serviceText("a", "10.96.0.1"))
	old := time.Now().Add(-time.Hour)
	f.must(os.Chtimes(filepath.Join(f.dir, "a.yaml"), old, old))
	f.d.noted.list = true
	f.d.update()
	first := f.d.files["a.yaml"].objects[objectKey{"Service", ID{"default", "a"}}]
	if f.d.files["a.yaml"].info == nil {
		t.Fatal("an old file would be read again")
	}
	f.d.files["a.yaml"].hash++ // reading it would show
	f.d.noted.list = true
	f.d.update()
	f.d.files["a.yaml"].hash--
	for range 2 {
		f.d.noted.list, f.d.noted.files["a.yaml"] = true, true
		f.d.update()
	}
	if f.d.files["a.yaml"].objects[first.key] != first {
		t.Error("the same text was parsed again")
	}
	svc, _ := f.m.Get(first.key.id)
	if svc != first.svc {
		t.Error("the Model does not share the Service")
	}
	f.d.watch.end()
}

// What was written first is taken first: an object that moves from one file to another is never in none, and of files of one
// tick of the clock the new ones come first.
func TestDirectoryInOrder(t *testing.T) {
	f := newFollower(t)
	for _, name := range []string{"a", "b", "c"} {
		f.write(name+".yaml", serviceText(name, "10.96.0.1"))
	}
	f.d.noted.list = true
	f.d.update()
	f.write("y.yaml", serviceText("y", "10.96.0.2"))
	f.write("z.yaml", serviceText("z", "10.96.0.2"))
	now := time.Now().Add(-time.Hour)
	for name, after := range map[string]time.Duration{"a": 2, "b": 1, "c": 3, "y": 3, "z": 0} {
		at := now.Add(after * time.Millisecond)
		f.must(os.Chtimes(filepath.Join(f.dir, name+".yaml"), at, at))
	}
	entries, err := os.ReadDir(f.dir)
	f.must(err)
	var got []string
	for _, w := range f.d.inOrder(names(entries)) {
		got = append(got, w.name)
	}
	if want := []string{"z.yaml", "b.yaml", "a.yaml", "y.yaml", "c.yaml"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	f.d.watch.end()
}

// Under constant change news are at most a moment late.
func TestDirectoryConstantChange(t *testing.T) {
	f := newFollower(t)
	f.d.timing.settle = time.Hour // never quiet
	f.write("a.yaml", serviceText("a", "10.96.0.1"))
	f.run()
	f.expect("a=[10.96.0.1]")
	f.write("a.yaml", serviceText("a", "10.96.0.2"))
	f.expect("a=[10.96.0.2]")
}

// TestDirectoryComplete: a file that cannot be used when the process starts may hold objects that the kernel
// serves still. Until it could be read once, the Model is synced and not complete; then it stays complete.
func TestDirectoryComplete(t *testing.T) {
	f := newFollower(t)
	f.write("good.yaml", serviceText("a", "10.96.0.1"))
	f.write("bad.yaml", serviceText("b", "10.96.0.2"), "kind: [\n")
	f.run()
	f.trouble("bad.yaml: document 2 (line ")
	f.expect("a=[10.96.0.1] b=[10.96.0.2]")
	f.expectSynced()
	if f.m.Complete() {
		t.Error("complete, though a document could not be read")
	}
	f.write("bad.yaml", serviceText("b", "10.96.0.2"), serviceText("c", "10.96.0.3"))
	f.trouble("mended: bad.yaml: document 2 (line ")
	f.expect("a=[10.96.0.1] b=[10.96.0.2] c=[10.96.0.3]")
	f.wait(func() (string, bool) { return "not complete", f.m.Complete() })
	f.write("bad.yaml", "kind: [\n")
	f.trouble("bad.yaml: document 1 (line ")
	if !f.m.Complete() {
		t.Error("no longer complete, though the last good content stands in")
	}
}

// A file that goes after somebody wrote to it, and before it was looked at, is gone and no trouble. A link to nowhere is
// one.
func TestDirectoryFileGoesMeanwhile(t *testing.T) {
	for _, c := range []struct {
		name     string
		lost     func(file string) error
		troubles int
	}{
		{"removed", os.Remove, 0},
		{"a link to nowhere", func(file string) error {
			return errors.Join(os.Remove(file), os.Symlink(file+"-that-is-not-there", file))
		}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			var troubles []error
			d := NewDirectory(dir, NewModel(Options{NodeName: "own"}), func(err error) { troubles = append(troubles, err) })
			good := []byte("apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: default}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n")
			for _, name := range []string{"a.yaml", "b.yaml"} {
				if err := os.WriteFile(filepath.Join(dir, name), good, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			d.noted.list = true
			d.update()
			troubles = nil // that two files have one object is said
			file := filepath.Join(dir, "b.yaml")
			if err := c.lost(file); err != nil {
				t.Fatal(err)
			}
			d.note(fsnotify.Event{Name: file, Op: fsnotify.Write}, true)
			d.update()
			bad := slices.DeleteFunc(troubles, func(err error) bool { return !strings.Contains(err.Error(), "no such file") })
			if len(bad) != c.troubles {
				t.Errorf("%d troubles, want %d: %v", len(bad), c.troubles, troubles)
			}
			if _, there := d.files["b.yaml"]; there != (c.troubles > 0) {
				t.Errorf("the file is known: %t", there)
			}
		})
	}
}
