package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// HostVariable tells a command the way to the ports of its job: the address that stands for the host's loopback,
// or the directory of Unix sockets that lead to them, one for each port. A socket in a directory is the one way
// out of a network namespace that changes nothing on the machine.
const HostVariable = "LAB_HOST"

// DialHost connects a command of a job to one of the job's ports on the host. It must be called in the network
// namespace in which the command was started.
func DialHost(ctx context.Context, port uint16) (net.Conn, error) {
	host := os.Getenv(HostVariable)
	if host == "" {
		return nil, errors.New("the job has no ports of the host: " + HostVariable + " is not set")
	}
	network, address := "tcp", net.JoinHostPort(host, strconv.Itoa(int(port)))
	if strings.HasPrefix(host, "/") {
		network, address = "unix", SocketOf(host, port)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("dial port %d of the host: %w", port, err)
	}
	return c, nil
}

// SocketOf is the socket in a directory that leads to a port.
func SocketOf(dir string, port uint16) string { return filepath.Join(dir, strconv.Itoa(int(port))) }

// Splice carries bytes between two connections until either ends, and closes both.
func Splice(a, b net.Conn) {
	done := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // its error is the end of a connection
		done <- struct{}{}
	}
	go pass(a, b)
	go pass(b, a)
	<-done
	a.Close()
	b.Close()
	<-done
}
