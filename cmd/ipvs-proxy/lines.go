package main

import (
	"bytes"
	"io"
	"sync"
	"time"
)

// lines takes the lines of a log and hands them to a writer in a goroutine of its own, so that whoever logs never waits
// for whoever reads: standard error is a pipe as a rule, and writing blocks when nobody takes what is in it. What does
// not fit is dropped and counted. It is a zapcore.WriteSyncer.
type lines struct {
	out   io.Writer
	limit int                      // bytes that may wait
	said  func(lost uint64) []byte // the line that says how many were dropped

	mu      sync.Mutex
	waiting []byte
	full    bool   // something did not fit
	lost    uint64 // since that was last said
	dropped uint64 // in all
	flushes []chan struct{}
	wake    chan struct{}
}

// waitingBytes is how much of the log may wait for its reader: some 5,000 lines. As much again may be under way.
const waitingBytes = 1 << 20

// flushTime is how long the end of the process waits for its last lines to be taken.
const flushTime = time.Second

// newLines begins to write to out.
func newLines(out io.Writer, limit int, said func(lost uint64) []byte) *lines {
	l := &lines{out: out, limit: limit, said: said, wake: make(chan struct{}, 1)}
	go l.run()
	return l
}

// Write takes one line or several. It never blocks and never fails. Once something was dropped all that follows is, until
// there is room again, so that the log has one gap and not many.
func (l *lines) Write(text []byte) (int, error) {
	l.mu.Lock()
	if l.full = l.full || len(l.waiting)+len(text) > l.limit; l.full {
		l.drop(text)
	} else {
		l.waiting = append(l.waiting, text...)
	}
	l.mu.Unlock()
	l.nudge()
	return len(text), nil
}

// drop counts lines that are lost. The caller holds mu.
func (l *lines) drop(text []byte) {
	n := uint64(bytes.Count(text, []byte{'\n'}))
	l.lost += n
	l.dropped += n
}

func (l *lines) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Dropped counts the lines that were dropped since the start.
func (l *lines) Dropped() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

// Sync waits until all that was logged before is written, for flushTime at most. It never fails: where the reader does not
// take the last lines there is nobody to be told.
func (l *lines) Sync() error {
	done := make(chan struct{})
	l.mu.Lock()
	l.flushes = append(l.flushes, done)
	l.mu.Unlock()
	l.nudge()
	select {
	case <-done:
	case <-time.After(flushTime):
	}
	return nil
}

// run writes what waits, for as long as the process lives.
func (l *lines) run() {
	var spare []byte
	for range l.wake {
		l.mu.Lock()
		text, lost, flushes := l.waiting, l.lost, l.flushes
		l.waiting, l.full, l.lost, l.flushes = spare[:0], false, 0, nil
		l.mu.Unlock()
		l.write(text)
		if lost > 0 {
			l.write(l.said(lost))
		}
		for _, done := range flushes {
			close(done)
		}
		if spare = text; cap(spare) > l.limit/8 { // after a burst
			spare = nil
		}
	}
}

// write hands lines on. What the writer refuses is dropped.
func (l *lines) write(text []byte) {
	if len(text) == 0 {
		return
	}
	if n, err := l.out.Write(text); err != nil {
		l.mu.Lock()
		l.drop(text[n:])
		l.mu.Unlock()
	}
}
