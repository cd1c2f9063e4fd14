package lab

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ServeUDP answers each datagram to a port of the namespace with "NUMBER pod=NAME", where NUMBER is the
// datagram's first word. It has a socket a family, bound to the wildcard. stop ends it.
func (h *Host) ServeUDP(name string, port uint16) (stop func(), err error) {
	var socks []*os.File
	var wg sync.WaitGroup
	var once sync.Once
	end := func() {
		once.Do(func() {
			for _, s := range socks {
				s.Close()
			}
		})
		wg.Wait()
	}
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		fd, err := h.socket(domain(any), unix.SOCK_DGRAM, 0)
		if err != nil {
			end()
			return nil, err
		}
		if any.Is6() {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		}
		if err = errors.Join(err, unix.Bind(fd, sockaddr(netip.AddrPortFrom(any, port)))); err != nil {
			unix.Close(fd)
			end()
			return nil, fmt.Errorf("%s serving UDP on port %d of %s: %w", name, port, h.Name, err)
		}
		s := os.NewFile(uintptr(fd), "udp server")
		socks = append(socks, s)
		wg.Go(func() { answerDatagrams(s, name) })
	}
	forget := h.onClose(end)
	return func() { forget(); end() }, nil
}

// answerDatagrams answers until the socket is closed.
func answerDatagrams(s *os.File, name string) {
	rc, err := s.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 512)
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		if err := rc.Read(func(fd uintptr) bool {
			n, from, failed = unix.Recvfrom(int(fd), buf, 0)
			return failed != unix.EAGAIN
		}); err != nil {
			return
		}
		if failed != nil {
			continue // an ICMP error of an earlier answer
		}
		number, _, _ := strings.Cut(string(buf[:n]), " ")
		answer := []byte(number + " pod=" + name)
		// What cannot be sent is lost, as datagrams are.
		_ = rc.Write(func(fd uintptr) bool {
			return unix.Sendto(int(fd), answer, 0, from) != unix.EAGAIN
		})
	}
}

// FlowReport tells what became of a flow.
type FlowReport struct {
	Slowest              time.Duration // of the answered
	Sent, Answered, Lost int
	Late                 int           // of the lost: answered after all, on a machine that stood still
	Refused              int           // answered by an ICMP error, counted as lost too
	Every                time.Duration // between two datagrams
	Duration             time.Duration
	ByPod                map[string]int
	Last                 string // the pod of the latest answer
}

// String names rate and duration: a loss of 0 means nothing without them.
func (r FlowReport) String() string {
	return fmt.Sprintf("%d datagrams from one port, one each %s for %s: %d answered, %d lost (%d of them refused), %v",
		r.Sent, r.Every, r.Duration.Round(time.Millisecond), r.Answered, r.Lost, r.Refused, r.ByPod)
}

// UnderWay is how many datagrams were on their way at a time, at most: one, or more on a machine on which an answer takes
// longer than it is to the next datagram. So many can be lost when the kernel forgets whose a flow was.
func (r FlowReport) UnderWay() int { return 1 + int(r.Slowest/r.Every) }

// Flow is a client that sends numbered datagrams from one port, whatever comes back: a resolver, a game.
type Flow struct {
	sock   *os.File
	port   uint16
	every  time.Duration
	start  time.Time
	stop   chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
	forget func()

	mu      sync.Mutex
	report  FlowReport
	pending map[int]time.Time
}

// answerTime is how long an answer may take before its datagram counts as lost.
const answerTime = 2 * time.Second

// StartFlow sends to a frontend until Stop.
func (h *Host) StartFlow(to netip.AddrPort, every time.Duration) (*Flow, error) {
	fd, err := h.socket(domain(to.Addr()), unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%s connecting UDP to %s: %w", h.Name, to, err)
	}
	f := &Flow{port: localPort(fd), sock: os.NewFile(uintptr(fd), "udp flow"), every: every, start: time.Now(), stop: make(chan struct{}),
		pending: map[int]time.Time{}, report: FlowReport{Every: every, ByPod: map[string]int{}}}
	f.forget = h.onClose(f.end)
	f.wg.Go(f.send)
	f.wg.Go(f.receive)
	return f, nil
}

// Port is the one that it sends from.
func (f *Flow) Port() uint16 { return f.port }

func (f *Flow) send() {
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for n := 0; ; n++ {
		f.mu.Lock()
		f.report.Sent++
		f.pending[n] = time.Now()
		f.mu.Unlock()
		if _, err := f.sock.Write([]byte(strconv.Itoa(n))); errors.Is(err, unix.ECONNREFUSED) {
			// The error belongs to an earlier datagram; this one was not sent.
			f.refused()
			_, _ = f.sock.Write([]byte(strconv.Itoa(n)))
		}
		select {
		case <-f.stop:
			return
		case <-tick.C:
		}
	}
}

func (f *Flow) refused() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report.Refused++
}

func (f *Flow) receive() {
	buf := make([]byte, 512)
	for {
		n, err := f.sock.Read(buf)
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			f.refused()
			continue
		case err != nil:
			return // closed
		}
		number, pod, _ := strings.Cut(string(buf[:n]), " pod=")
		if i, err := strconv.Atoi(number); err == nil {
			f.answered(i, pod)
		}
	}
}

func (f *Flow) answered(n int, pod string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if sent, ok := f.pending[n]; ok && time.Since(sent) <= answerTime {
		delete(f.pending, n)
		f.report.Slowest = max(f.report.Slowest, time.Since(sent))
		f.report.Answered++
		f.report.ByPod[pod]++
		f.report.Last = pod
	} else if ok {
		f.report.Late++
	}
}

// Report tells how the flow is doing. What may still be answered is not lost yet.
func (f *Flow) Report() FlowReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.report
	r.ByPod = maps.Clone(r.ByPod)
	r.Duration = time.Since(f.start)
	for _, sent := range f.pending {
		if time.Since(sent) > answerTime {
			r.Lost++
		}
	}
	return r
}

func (f *Flow) end() {
	f.once.Do(func() { close(f.stop) })
	f.sock.Close()
	f.wg.Wait()
}

// Stop ends the flow, waits for the answers under way and reports.
func (f *Flow) Stop() FlowReport {
	f.forget()
	f.once.Do(func() { close(f.stop) })
	deadline := time.Now().Add(answerTime)
	for time.Now().Before(deadline) {
		f.mu.Lock()
		open := len(f.pending)
		f.mu.Unlock()
		if r := f.Report(); open == r.Lost {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	r := f.Report()
	f.mu.Lock()
	r.Lost = len(f.pending)
	f.mu.Unlock()
	f.end()
	return r
}

// bindFresh gives a socket a port from which the host has not asked for long. The kernel would choose by chance, and
// a flow of UDP that IPVS still knows, for 5 min, goes on to its real server in place of the one whose turn it is.
func (h *Host) bindFresh(fd int, to netip.Addr) error {
	any := netip.IPv4Unspecified()
	if to.Is6() {
		any = netip.IPv6Unspecified()
	}
	const first, number = 12000, 18000 // below what the kernel chooses and what node ports are
	for range number {
		port := uint16(first + h.asked.Add(1)%number)
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(any, port))); err != unix.EADDRINUSE {
			return os.NewSyscallError("bind", err)
		}
	}
	return fmt.Errorf("%s has no port left: %w", h.Name, unix.EADDRINUSE)
}

// AskUDP sends one datagram from a port of its own and waits for the answer. What the asker's own firewall stops
// fails when it is sent (EPERM): it is Refused if an ICMP error follows, and Failed if it was only dropped.
func (h *Host) AskUDP(to netip.AddrPort, opts ...AskOption) (r Reply) {
	q := newQuestion(opts)
	start := time.Now()
	defer func() {
		r.Took = time.Since(start)
		r.Verdict = verdict(r.Err)
	}()
	fd, err := h.socket(domain(to.Addr()), unix.SOCK_DGRAM, 0)
	if err != nil {
		return Reply{Err: err}
	}
	if from := q.source(to.Addr()); from.Addr().IsValid() {
		err = bindFrom(fd, from)
	} else {
		err = h.bindFresh(fd, to.Addr())
	}
	if err != nil {
		unix.Close(fd)
		return Reply{Err: err}
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		unix.Close(fd)
		return Reply{Err: os.NewSyscallError("connect", err)}
	}
	sock := os.NewFile(uintptr(fd), "udp question")
	defer sock.Close()
	r.LocalPort = localPort(fd)
	if r.Err = sock.SetDeadline(start.Add(q.timeout)); r.Err != nil {
		return r
	}
	_, sent := sock.Write([]byte("0"))
	if sent != nil && !errors.Is(sent, unix.EPERM) {
		r.Err = sent
		return r
	}
	buf := make([]byte, 512)
	n, err := sock.Read(buf)
	if sent != nil && !errors.Is(err, unix.ECONNREFUSED) {
		err = sent
	}
	if r.Err = err; err != nil {
		return r
	}
	_, r.Pod, _ = strings.Cut(string(buf[:n]), " pod=")
	return r
}
