package lab

import (
	"bytes"
	"fmt"
	"os"
	"time"
)

// Finish waits until a pod that takes no new connections has answered all that it was asked on a port, as a server
// does that is told to end. What is still open after the grace period is an error.
func (p *Pod) Finish(port uint16, grace time.Duration) error {
	deadline := time.Now().Add(grace)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		open, err := p.openConnections(port)
		if err == nil && open == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has %d connections on port %d after %s: %w", p.Name, open, port, grace, err)
		}
		time.Sleep(pause)
	}
}

// openConnections counts the connections to a server on which requests may be or come.
func (h *Host) openConnections(port uint16) (n int, err error) {
	err = h.Do(func() error {
		for _, file := range []string{"tcp", "tcp6"} {
			table, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			for line := range bytes.Lines(table) {
				f := bytes.Fields(line)
				if len(f) < 4 || !bytes.HasSuffix(f[1], fmt.Appendf(nil, ":%04X", port)) {
					continue
				}
				switch string(f[3]) {
				case "01", "03", "08", // established, in its handshake, closed by the client alone
					"04", "0B": // closed by the server, and the client has not acknowledged all of the answer
					n++
				}
			}
		}
		return nil
	})
	return n, err
}
