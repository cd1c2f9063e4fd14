package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/fsnotify/fsnotify"
)

// dirWatch hears of what happens in one directory: in the one that is at its path
// now, not in one that was moved away or unmounted.
type dirWatch struct {
	make    func() (*fsnotify.Watcher, error)
	watcher *fsnotify.Watcher // nil: no notifications
	of      fs.FileInfo       // the directory that it watches
	trouble *Trouble          // why there are none
}

// runs reports whether there will be notifications.
func (w *dirWatch) runs() bool { return w.watcher != nil }

func (w *dirWatch) channels() (<-chan fsnotify.Event, <-chan error) {
	if w.watcher == nil {
		return nil, nil
	}
	return w.watcher.Events, w.watcher.Errors
}

// renew sees to it that the directory at path is watched. Where that cannot be
// had the trouble says so, with how often the caller looks instead.
func (w *dirWatch) renew(path string, poll time.Duration) {
	info, err := os.Stat(path)
	if err != nil || w.watcher != nil && os.SameFile(info, w.of) {
		return // if it is gone, the list of files will say so
	}
	w.end()
	made, err := w.make()
	if err == nil {
		if err = made.Add(path); err != nil {
			err = errors.Join(err, made.Close())
		}
	}
	if err != nil {
		w.trouble = &Trouble{
			Reason:  TroubleWatch,
			Message: fmt.Sprintf("no notifications, changes are looked for every %v: %s", poll, oneLine(err.Error())),
		}
		return
	}
	w.watcher, w.of, w.trouble = made, info, nil
}

func (w *dirWatch) end() {
	if w.watcher != nil {
		// An error could only mean that it is closed already.
		_ = w.watcher.Close()
		w.watcher, w.of = nil, nil
	}
}
