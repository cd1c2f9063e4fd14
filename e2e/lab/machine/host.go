package machine

import (
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// vmHost is the host's loopback in QEMU's user network.
const vmHost = "10.0.2.2"

// forwardPorts makes a directory with a socket for each port of the loopback, see wire.HostVariable.
func forwardPorts(dir string, ports []uint16) (stop func(), err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	var lns []net.Listener
	stop = func() {
		for _, ln := range lns {
			ln.Close()
		}
	}
	for _, port := range ports {
		ln, err := net.Listen("unix", wire.SocketOf(dir, port))
		if err != nil {
			stop()
			return nil, fmt.Errorf("socket for port %d of the host: %w", port, err)
		}
		lns = append(lns, ln)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go forward(c, port)
			}
		}()
	}
	return stop, nil
}

func forward(c net.Conn, port uint16) {
	to, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		c.Close() // the caller sees the end of its connection, as of a server that just ended
		return
	}
	wire.Splice(c, to)
}
