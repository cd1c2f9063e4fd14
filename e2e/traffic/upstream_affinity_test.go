package traffic

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// Affinity on every kind of frontend: a client leaves its pod when its time is over, stays until then, and it is
// switched off and on while clients ask.
func TestUpstreamAffinity(t *testing.T) {
	s := newStage(t).start()
	a := &affine{stage: s, without: balanced(web(140), 140)}
	a.with = a.without
	a.with.Spec = map[string]any{"sessionAffinity": "ClientIP"}
	t.Run("timeout", a.timeout)
	s.apply(a.with, s.pods()...)
	a.pins(t, 10800)
	t.Run("work", func(t *testing.T) {
		a.each(t, func(t *testing.T, c client, to netip.AddrPort) {
			answers(t, c.Host, to)
			sticks(t, c, to)
		})
	})
	t.Run("switch", func(t *testing.T) {
		a.each(t, func(t *testing.T, c client, to netip.AddrPort) {
			s.apply(a.without, s.pods()...)
			a.pins(t, 0)
			hits(t, c, to, map[string]int{"pod-a": 2, "pod-b": 2, "pod-c": 2})
			s.apply(a.with, s.pods()...)
			a.pins(t, 10800)
			sticks(t, c, to)
		})
	})
}

// affine is a LoadBalancer with and without affinity.
type affine struct {
	*stage
	with, without lab.Service
}

// each runs f for each kind of frontend and family, with who asks it.
func (a *affine) each(t *testing.T, f func(t *testing.T, c client, to netip.AddrPort)) {
	for _, kind := range []string{"ClusterIP", "NodePort", "LoadBalancer"} {
		t.Run(kind, func(t *testing.T) {
			each(t, func(t *testing.T, family int) { f(t, a.asker(kind), a.frontends(a.without, family)[kind]) })
		})
	}
}

func (a *affine) asker(kind string) client {
	if kind == "LoadBalancer" {
		return client{"outside", a.w.Client}
	}
	return a.from()
}

// pins waits until all frontends hold their clients for so many seconds.
func (a *affine) pins(t *testing.T, seconds uint32) {
	t.Helper()
	for _, family := range []int{4, 6} {
		for kind, to := range a.frontends(a.without, family) {
			if kind == "NodePort" { // each node has its own
				lab.Eventually(t, soon, "affinity of "+to.String(), func() error {
					if f, ok := table(t, a.w.Node(1))["tcp "+to.String()]; !ok || f.pins != seconds {
						return fmt.Errorf("there: %t, holds clients for %d s, want %d", ok, f.pins, seconds)
					}
					return nil
				})
				continue
			}
			a.wantPins(t, asks[0], to, seconds)
		}
	}
}

// sticks: a client that asks on and on gets one pod.
func sticks(t *testing.T, c client, to netip.AddrPort) {
	t.Helper()
	byPod, lost := c.Spread(to, 15)
	if len(byPod) != 1 || len(lost) > 0 {
		t.Errorf("%s asks %s 15 times: %v, lost %v; want one pod", c.name, to, byPod, lost)
	}
}

// timeout: within its time a client stays with its pod; after it the next one is due. The kernel holds a client
// for as long as it remembers a connection of it, which for one that was closed in the usual way is 2 min; so
// these are reset, and remembered for 10 s. All frontends wait at once.
func (a *affine) timeout(t *testing.T) {
	short := a.with
	short.Spec = map[string]any{"sessionAffinity": "ClientIP",
		"sessionAffinityConfig": map[string]any{"clientIP": map[string]any{"timeoutSeconds": 12}}}
	a.apply(short, a.pods()...)
	a.pins(t, 12)
	was := map[netip.AddrPort]string{}
	for _, family := range []int{4, 6} {
		for kind, to := range a.frontends(a.without, family) {
			for i := range 5 {
				pod, err := askAndReset(a.asker(kind).Host, to)
				if err != nil || i > 0 && pod != was[to] {
					t.Errorf("question %d of %s to the %s %s: %q, %v; before that %q", i+1, a.asker(kind).name, kind, to, pod, err, was[to])
				}
				was[to] = pod
			}
		}
	}
	lab.Eventually(t, time.Minute, "no client is held any more", func() error {
		held, err := holds(a.w.Node(1))
		if err == nil && held != "" {
			err = fmt.Errorf("still held:\n%s", held)
		}
		return err
	})
	a.each(t, func(t *testing.T, c client, to netip.AddrPort) {
		if pod, err := askAndReset(c.Host, to); err != nil || pod == was[to] {
			t.Errorf("%s asks %s after the time is over: %q, %v; before that %q", c.name, to, pod, err, was[to])
		}
	})
}

// holds are the entries by which a node holds clients: those whose client has no port.
func holds(n *lab.Node) (held string, err error) {
	err = n.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/ip_vs_conn")
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 2 && f[2] == "0000" {
				held += line
			}
		}
		return err
	})
	return held, err
}

// askAndReset asks over HTTP, and resets the connection once it is answered.
func askAndReset(h *lab.Host, to netip.AddrPort) (pod string, err error) {
	var conn *net.TCPConn
	if err := h.Do(func() (err error) {
		conn, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
		return err
	}); err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(lab.Patience(lab.DefaultTimeout))); err != nil {
		return "", err
	}
	if err := conn.SetLinger(0); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", to); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	pod, _, _ = strings.Cut(strings.TrimPrefix(string(body), "pod="), " ")
	return pod, err
}
