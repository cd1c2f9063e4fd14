package cluster

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxFileSize bounds what one file makes us hold while it is parsed.
const maxFileSize = 256 << 20

// file is what is known of one file of the directory.
type file struct {
	name    string
	info    fs.FileInfo // of the text last read; nil: read again in any case
	hash    uint64      // of the text last parsed
	parsed  bool        // there is one
	good    int         // its usable documents
	objects map[objectKey]*object
	losing  map[objectKey]string // objects that another file defines, and which one

	access  *Trouble  // with reading the file
	content []Trouble // with what it says
	reports reporter
}

func (f *file) usable() bool { return f.access == nil && f.good > 0 }

// troubles are all that the file has.
func (f *file) troubles() []Trouble {
	var dups troubles
	for _, k := range slices.SortedFunc(maps.Keys(f.losing), objectKey.compare) {
		dups.add(Trouble{
			File: f.name, Object: k.String(), Reason: TroubleDuplicate,
			Message: f.losing[k] + " defines it too and counts",
		})
	}
	all := slices.Concat(f.content, dups.all())
	if f.access != nil {
		all = append(all, *f.access)
	}
	return all
}

// wanted reports whether a file of this name is read.
func wanted(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// written is a file as it is found in the directory.
type written struct {
	name string
	info fs.FileInfo // nil: it could not be asked for
}

func (w written) when() (t time.Time) {
	if w.info != nil {
		t = w.info.ModTime()
	}
	return t
}

// inOrder gives files in the order in which they were written, and of those of one tick of the clock the new ones first: an
// object that was put into one file and then taken out of another one is never in none.
func (d *Directory) inOrder(names iter.Seq[string]) (list []written) {
	for name := range names {
		info, _ := os.Stat(filepath.Join(d.path, name))
		list = append(list, written{name, info})
	}
	slices.SortFunc(list, func(a, b written) int {
		return cmp.Or(a.when().Compare(b.when()), cmp.Compare(d.held(a.name), d.held(b.name)), cmp.Compare(a.name, b.name))
	})
	return list
}

// held is 1 where a file has given objects, and 0 where it is new.
func (d *Directory) held(name string) int {
	f := d.files[name]
	if f == nil {
		return 0
	}
	return min(len(f.objects), 1)
}

// names are those of the entries that are read.
func names(entries []fs.DirEntry) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, e := range entries {
			if wanted(e.Name()) && !yield(e.Name()) {
				return
			}
		}
	}
}

// look brings one file up to date and reports whether it is there: one may go
// after it was listed, which is no trouble. A link to nowhere is. Force reads
// it even if it looks unchanged: two writes may fall into one tick of the file
// system's clock.
func (d *Directory) look(w written, force bool) (there bool) {
	name := w.name
	f := d.files[name]
	if f == nil {
		f = &file{name: name, reports: reporter{tell: d.report}}
		d.files[name] = f
	}
	path := filepath.Join(d.path, name)
	if w.info != nil && !force && f.info != nil && unchanged(f.info, w.info) {
		return true
	}
	data, info, err := readFile(path, d.maxSize)
	if errors.Is(err, fs.ErrNotExist) && isGone(path) {
		return false
	}
	d.stale[f] = true
	f.info = nil
	if err != nil {
		reason := TroubleUnreadable
		if errors.Is(err, errTooLarge) {
			reason = TroubleTooLarge
		}
		f.access = &Trouble{File: name, Reason: reason, Message: oneLine(err.Error()) + "; its last objects stay"}
		return true
	}
	if time.Since(info.ModTime()) > time.Second {
		f.info = info // else the clock's tick may not be over
	}
	if len(f.objects) > 0 && len(bytes.TrimSpace(data)) == 0 {
		f.access = &Trouble{File: name, Reason: TroubleEmptied, Message: "the file is empty; its last objects stay"}
		return true
	}
	f.access = nil
	if hash := maphash.Bytes(d.seed, data); !f.parsed || hash != f.hash {
		f.hash, f.parsed = hash, true
		d.take(f, parseFile(name, data, d.model.opt))
	}
	return true
}

// isGone: the directory has no such entry.
func isGone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func unchanged(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

var errTooLarge = errors.New("too large")

func readFile(path string, limit int64) ([]byte, fs.FileInfo, error) {
	// Without O_NONBLOCK the opening of a pipe would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, bare(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, bare(err)
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errors.New("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, nil, bare(err)
	}
	if int64(len(data)) > limit {
		return nil, nil, fmt.Errorf("%w: over %d bytes", errTooLarge, limit)
	}
	return data, info, nil
}

// bare takes the path from an error: the Trouble names the file.
func bare(err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", pe.Op, pe.Err)
	}
	return err
}

// take makes a file define what was parsed. While there is a bad document in
// it nobody can know whether an object that is missing was meant to go, so it
// stays.
func (d *Directory) take(f *file, p parsed) {
	f.good, f.content = p.good, p.troubles
	next := make(map[objectKey]*object, len(p.objects))
	for _, o := range p.objects {
		next[o.key] = o
	}
	var gone []objectKey
	for k, o := range f.objects {
		if next[k] != nil {
			continue
		}
		if p.bad {
			next[k] = o
		} else {
			gone = append(gone, k)
		}
	}
	f.objects = next
	for _, o := range p.objects {
		d.define(f, o)
	}
	slices.SortFunc(gone, objectKey.compare)
	for _, k := range gone {
		d.undefine(f, k)
	}
}

// define makes f one of the files that define an object. The first by name
// counts.
func (d *Directory) define(f *file, o *object) {
	defs := d.defs[o.key]
	i, found := slices.BinarySearchFunc(defs, f, compareFiles)
	if !found {
		defs = slices.Insert(defs, i, f)
		d.defs[o.key] = defs
		d.rank(o.key, defs)
	}
	if i == 0 {
		d.model.put(o)
	}
}

// undefine takes f from the files that define an object. The next takes over.
func (d *Directory) undefine(f *file, k objectKey) {
	i, found := slices.BinarySearchFunc(d.defs[k], f, compareFiles)
	if !found {
		return
	}
	defs := slices.Delete(d.defs[k], i, i+1)
	delete(f.losing, k)
	if len(defs) == 0 {
		delete(d.defs, k)
		d.model.drop(k)
		return
	}
	d.defs[k] = defs
	d.rank(k, defs)
	if i == 0 {
		d.model.put(defs[0].objects[k])
	}
}

// rank tells the files that define one object which of them counts.
func (d *Directory) rank(k objectKey, defs []*file) {
	if len(defs) == 1 && len(defs[0].losing) == 0 {
		return // nearly always
	}
	for i, f := range defs {
		if i == 0 {
			delete(f.losing, k)
		} else {
			if f.losing == nil {
				f.losing = map[objectKey]string{}
			}
			f.losing[k] = defs[0].name
		}
		d.stale[f] = true
	}
}

// forget takes a file that is gone, with all its objects.
func (d *Directory) forget(f *file) {
	for _, k := range slices.SortedFunc(maps.Keys(f.objects), objectKey.compare) {
		d.undefine(f, k)
	}
	delete(d.files, f.name)
	delete(d.stale, f)
	f.reports.set(nil)
}

func compareFiles(a, b *file) int { return cmp.Compare(a.name, b.name) }
