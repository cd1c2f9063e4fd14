package lab

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ServeLines answers each line of a connection with the line and "pod=NAME", until the client ends it.
func (h *Host) ServeLines(name string, port uint16) (stop func(), err error) {
	ln, err := h.listen(0, netip.Addr{}, port)
	if err != nil {
		return nil, fmt.Errorf("%s serving lines on port %d of %s: %w", name, port, h.Name, err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(time.Millisecond) // the listener lives on
				continue
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				for in := bufio.NewScanner(c); in.Scan(); {
					if _, err := fmt.Fprintf(c, "%s pod=%s\n", in.Text(), name); err != nil {
						return
					}
				}
			})
		}
	})
	end := sync.OnceFunc(func() {
		ln.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	forget := h.onClose(end)
	return func() { forget(); end() }, nil
}

// KeptReport tells what became of a connection that is kept.
type KeptReport struct {
	Answered int // lines, one after the other
	Pod      string
	Duration time.Duration
	Slowest  time.Duration // answer
	Err      error         // what ended it; nil: it lives
}

func (r KeptReport) String() string {
	return fmt.Sprintf("kept for %s with %s: %d lines answered, slowest %s, %v", r.Duration.Round(time.Millisecond), r.Pod, r.Answered, r.Slowest.Round(time.Millisecond), r.Err)
}

// Kept is a client that keeps one connection and sends numbered lines, each when the one before was answered.
type Kept struct {
	stop   chan struct{}
	wg     sync.WaitGroup
	forget func()
	end    func()

	mu     sync.Mutex
	start  time.Time
	report KeptReport
}

// keptTime is how long the answer to a line may take.
const keptTime = time.Minute

// StartKept opens a connection to what ServeLines serves, and keeps it until Stop.
func (h *Host) StartKept(to netip.AddrPort, every time.Duration) (*Kept, error) {
	conn, _, err := h.dial(unix.IPPROTO_TCP, netip.AddrPort{}, to, time.Now().Add(keptTime))
	if err != nil {
		return nil, fmt.Errorf("%s connecting to %s: %w", h.Name, to, err)
	}
	k := &Kept{stop: make(chan struct{}), start: time.Now()}
	in := bufio.NewReader(conn)
	line := func(n int) (pod string, err error) {
		if err := conn.SetDeadline(time.Now().Add(keptTime)); err != nil {
			return "", err
		}
		if _, err := fmt.Fprintln(conn, n); err != nil {
			return "", err
		}
		text, err := in.ReadString('\n')
		number, pod, _ := strings.Cut(strings.TrimSpace(text), " pod=")
		if err == nil && number != fmt.Sprint(n) {
			err = fmt.Errorf("line %d was answered by %q", n, text)
		}
		return pod, err
	}
	k.wg.Go(func() {
		for n := 0; ; n++ {
			began := time.Now()
			pod, err := line(n)
			k.mu.Lock()
			k.report.Err = err
			if err == nil {
				k.report.Answered++
				k.report.Pod, k.report.Slowest = pod, max(k.report.Slowest, time.Since(began))
			}
			k.mu.Unlock()
			if err != nil {
				return
			}
			select {
			case <-k.stop:
				return
			case <-time.After(every):
			}
		}
	})
	k.end = sync.OnceFunc(func() { close(k.stop); k.wg.Wait(); conn.Close() })
	k.forget = h.onClose(k.end)
	return k, nil
}

// Report tells how it is doing.
func (k *Kept) Report() KeptReport {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.report
	r.Duration = time.Since(k.start)
	return r
}

// Stop ends it after the answer that is under way, and reports.
func (k *Kept) Stop() KeptReport {
	k.forget()
	k.end()
	return k.Report()
}
