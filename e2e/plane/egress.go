package plane

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// The API server proxies to pods, which it cannot reach from this machine. As in clusters whose control plane is in a
// network of its own, it is told to ask an HTTP proxy for the way (CONNECT); that proxy is the test, in the lab's
// network, whose connections to the switches are passed on to the API server.

// egress is the API server's configuration for that.
const egress = `apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: HTTPConnect
    transport: {uds: {udsName: %s}}
`

// patience is how long the API server waits for a test that takes its connection.
const patience = 5 * time.Second

// listenForEgress opens the socket and returns the file that tells the API server of it.
func (p *Plane) listenForEgress() (config string, err error) {
	socket := filepath.Join(p.opts.Dir, "egress.sock")
	if p.leaving, err = net.Listen("unix", socket); err != nil {
		return "", fmt.Errorf("listen for the API server's connections to pods: %w", err)
	}
	p.left = make(chan net.Conn)
	go func() {
		for {
			c, err := p.leaving.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go p.offer(c)
			}
		}
	}()
	config = filepath.Join(p.opts.Dir, "egress.yaml")
	return config, os.WriteFile(config, fmt.Appendf(nil, egress, socket), 0o600)
}

// offer waits for a test that takes a connection.
func (p *Plane) offer(c net.Conn) {
	select {
	case p.left <- c:
	case <-time.After(patience):
		c.Close()
	}
}

// takeEgress gives the asker the next connection of the API server's in place of an answer.
func (p *Plane) takeEgress(w http.ResponseWriter, r *http.Request) {
	var c net.Conn
	select {
	case c = <-p.left:
	case <-r.Context().Done(): // the test is over
		return
	}
	to, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		c.Close()
		answer(w, err)
		return
	}
	wire.Splice(to, c)
}
