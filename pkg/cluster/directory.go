package cluster

import (
	"context"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Directory is a source: it feeds a Model from the files *.yaml, *.yml and
// *.json of one directory, hidden ones left out, links followed. They hold
// Services, EndpointSlices and Nodes as kubectl prints them.
//
// What goes wrong never takes away what works. A file that cannot be read or
// holds a bad document keeps the objects that it had; a directory without any
// usable file keeps all. (One that shall hold nothing has a file with an empty
// List.) Removing an object from a good file, or the file from a directory
// with other good ones, removes it.
type Directory struct {
	path   string
	model  *Model
	report func(error)
	timing timing

	maxSize int64
	seed    maphash.Seed
	files   map[string]*file
	defs    map[objectKey][]*file // by file name; the first counts
	stale   map[*file]bool        // files whose Troubles may have changed
	synced  bool
	// complete: at some time since the start everything could be read. From
	// then on the last good content stands in for what cannot.
	complete bool

	watch   dirWatch
	trouble *Trouble // with the directory: gone, or nothing usable in it
	reports reporter // of this one, and of the watch's

	noted noted
}

// noted is what events told since the last look.
type noted struct {
	files map[string]bool // by name: these had events
	list  bool            // the list of files may have changed
}

// timing is how patient a Directory is.
type timing struct {
	settle time.Duration // wait for this long without events,
	delay  time.Duration // but no longer than this
	reread time.Duration // between looks for what no event told
	poll   time.Duration // the same, without notifications
}

// NewDirectory makes a source for m. Report is called with a [Trouble] when
// one appears and when it is over, from the goroutine of Run; nil is allowed.
func NewDirectory(dir string, m *Model, report func(error)) *Directory {
	if report == nil {
		report = func(error) {}
	}
	return &Directory{
		path: filepath.Clean(dir), model: m, report: report,
		timing: timing{
			settle: 30 * time.Millisecond, delay: 250 * time.Millisecond,
			reread: 10 * time.Second, poll: 2 * time.Second,
		},
		watch:   dirWatch{make: fsnotify.NewWatcher},
		maxSize: maxFileSize,
		seed:    maphash.MakeSeed(),
		files:   map[string]*file{},
		defs:    map[objectKey][]*file{},
		stale:   map[*file]bool{},
		reports: reporter{tell: report},
		noted:   noted{files: map[string]bool{}},
	}
}

// Run reads the directory, marks the Model synced as soon as there is a file
// with something usable in it, and follows until ctx ends, which is no error.
// It fails at once when the directory cannot be listed at the start, and never
// later. Run once only.
func (d *Directory) Run(ctx context.Context) error {
	if _, err := os.ReadDir(d.path); err != nil { // fails for what is no directory, too
		return fmt.Errorf("directory of cluster objects: %w", err)
	}
	defer d.watch.end()
	d.noted.list = true
	d.update()

	tick, settled := time.NewTimer(d.interval()), time.NewTimer(time.Hour)
	settled.Stop()
	var latest time.Time // when the oldest event must be looked at; zero: none waits
	for {
		events, errs := d.watch.channels()
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-events:
			if !d.note(ev, ok) {
				continue
			}
		case _, ok := <-errs: // most likely events were lost
			d.note(fsnotify.Event{Name: d.path}, ok)
		case <-settled.C:
			d.update()
			latest = time.Time{}
			tick.Reset(d.interval())
			continue
		case <-tick.C:
			d.noted.list = true
			d.update()
			tick.Reset(d.interval())
			continue
		}
		if latest.IsZero() {
			latest = time.Now().Add(d.timing.delay)
		}
		settled.Reset(min(d.timing.settle, max(0, time.Until(latest))))
	}
}

func (d *Directory) interval() time.Duration {
	if !d.watch.runs() {
		return d.timing.poll
	}
	return d.timing.reread
}

// note takes down what an event is about; not ok: the watch has ended. False:
// the event concerns nobody.
func (d *Directory) note(ev fsnotify.Event, ok bool) bool {
	name := filepath.Base(ev.Name)
	moved := ev.Has(fsnotify.Create) || ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename)
	switch {
	case !ok, filepath.Clean(ev.Name) == d.path:
		if !ok || ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename) {
			d.watch.end() // the watch went with the directory
		}
		d.noted.list = true
	case wanted(name):
		d.noted.files[name] = true
		d.noted.list = d.noted.list || moved
	case moved: // files may be links through it, as "..data" in a mounted ConfigMap
		d.noted.list = true
	default:
		return false
	}
	return true
}

// update brings the Model up to date with what was noted.
func (d *Directory) update() {
	if !d.noted.list && d.trouble == nil {
		for _, w := range d.inOrder(maps.Keys(d.noted.files)) {
			if !d.look(w, true) {
				d.noted.list = true // what went is told apart from what only cannot be read
			}
		}
		d.noted.list = d.noted.list || !anyUsable(maps.Values(d.files)) // the last good file broke: say so
	}
	if d.noted.list || d.trouble != nil {
		d.all()
	}
	clear(d.noted.files)
	d.tell()
	if !d.synced && d.trouble == nil {
		d.synced = true
		d.model.SetSynced()
	}
	if d.synced && !d.complete && !d.missing() {
		d.complete = true
		d.model.SetComplete()
	}
}

// missing reports whether files may hold objects that could not be read. It
// matters at the start, when there is no last good content to stand in.
func (d *Directory) missing() bool {
	for _, f := range d.files {
		for _, t := range f.troubles() {
			switch t.Reason {
			case TroubleUnreadable, TroubleTooLarge, TroubleDocument:
				return true
			}
		}
	}
	return d.trouble != nil
}

// all looks at all files, new and gone ones included: it stats each and reads
// those that changed.
func (d *Directory) all() {
	d.watch.renew(d.path, d.timing.poll) // before the list is read, so that nothing falls between
	d.noted.list = false
	entries, err := os.ReadDir(d.path)
	if err != nil {
		d.watch.end()
		d.trouble = &Trouble{Reason: TroubleDirectory, Message: oneLine(err.Error()) + "; the last state stays"}
		return
	}
	present := map[*file]bool{}
	for _, w := range d.inOrder(names(entries)) {
		if d.look(w, d.noted.files[w.name]) {
			present[d.files[w.name]] = true
		}
	}
	if !anyUsable(maps.Keys(present)) {
		d.trouble = &Trouble{
			Reason:  TroubleNoContent,
			Message: fmt.Sprintf("%s: no usable document in %d files; the last state stays", d.path, len(present)),
		}
		return
	}
	d.trouble = nil
	for _, f := range slices.SortedFunc(maps.Values(d.files), compareFiles) {
		if !present[f] {
			d.forget(f)
		}
	}
}

func anyUsable(files iter.Seq[*file]) bool {
	for f := range files {
		if f.usable() {
			return true
		}
	}
	return false
}

// tell reports what is new and what is over.
func (d *Directory) tell() {
	for _, f := range slices.SortedFunc(maps.Keys(d.stale), compareFiles) {
		f.reports.set(f.troubles())
	}
	clear(d.stale)
	var own []Trouble
	for _, t := range []*Trouble{d.trouble, d.watch.trouble} {
		if t != nil {
			own = append(own, *t)
		}
	}
	d.reports.set(own)
}
