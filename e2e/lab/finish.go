package lab

import (
	"bytes"
	"fmt"
	"os"
	"time"
)

// Finish waits until a pod that takes no new connections has answered all that it was asked on a port, as a server
// does that is told to end, and returns how many connections are still open after the grace period: those that its
// node cuts off then.
func (p *Pod) Finish(port uint16, grace time.Duration) (open int, err error) {
	waited := Until(grace, func() error {
		if open, err = p.OpenConnections(port); err == nil && open > 0 {
			return fmt.Errorf("%s has %d connections on port %d", p.Name, open, port)
		}
		return err
	})
	if err != nil {
		return open, waited
	}
	return open, nil
}

// OpenConnections counts the connections to a server on which requests may be or come.
func (h *Host) OpenConnections(port uint16) (n int, err error) {
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
