package lab

import (
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// handOvers is how often the control has one thread wait for another.
	handOvers = 10
	// usualHandOvers is how long that takes on an emulated machine with nothing else to do, at most.
	usualHandOvers = 25 * time.Millisecond
	// mostPatient is how many times longer a busy machine may take.
	mostPatient = 10
	// measuredFor is how long a measurement counts: a machine does not become idle or busy from one question to the next.
	measuredFor = time.Second
)

// paced is what the control last came to.
var paced struct {
	sync.Mutex
	at   time.Time
	took time.Duration
}

// Patience is how long to wait for what takes a machine that has time no longer than usual: so long, and on a busy machine as
// many times longer as a control takes at this moment that does nothing but wait for its turn, ten times at most.
func Patience(usual time.Duration) time.Duration {
	paced.Lock()
	defer paced.Unlock()
	if paced.at.IsZero() || time.Since(paced.at) > measuredFor {
		paced.took = handOver(handOvers)
		paced.at = time.Now()
	}
	return stretched(usual, paced.took)
}

// stretched is a time in the proportion in which the control took longer than it usually takes.
func stretched(usual, took time.Duration) time.Duration {
	return time.Duration(float64(usual) * min(max(float64(took)/float64(usualHandOvers), 1), mostPatient))
}

// handOver passes a byte to and fro between two threads that wait for each other in the kernel, as who asks and who answers
// do. Both ends block: what waits in Go's own scheduler waits for no processor.
func handOver(times int) time.Duration {
	there, back := pipe(), pipe()
	go func() {
		runtime.LockOSThread() // and ends with the thread
		pass(there[0], back[1], times)
		unix.Close(there[0])
		unix.Close(back[1])
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := time.Now()
	for range times {
		must(unix.Write(there[1], []byte{0}))
		must(unix.Read(back[0], make([]byte, 1)))
	}
	took := time.Since(began)
	unix.Close(there[1])
	unix.Close(back[0])
	return took
}

func pass(from, to, times int) {
	for range times {
		must(unix.Read(from, make([]byte, 1)))
		must(unix.Write(to, []byte{0}))
	}
}

func pipe() (ends [2]int) {
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		panic(fmt.Sprintf("lab: no pipe: %v", err))
	}
	return ends
}

// must is for a pipe that nobody else has.
func must(_ int, err error) {
	if err != nil {
		panic(fmt.Sprintf("lab: a pipe of its own: %v", err))
	}
}
