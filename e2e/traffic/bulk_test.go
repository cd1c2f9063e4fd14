package traffic

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B10: what is sent through a Service arrives as it was sent, byte for byte and both ways, and the end of what the client
// sends (it closes its half) is heard by the pod, which answers after it. As much as that is in flight: it is cut into
// segments on the way. The kernel's own test of IPVS sends a file one way; this is that and the way back.
func TestB10BytesAreIntact(t *testing.T) {
	const size = 2 << 20
	s := newStage(t).start()
	svc := web(168)
	s.apply(svc, s.w.Pod("pod-b"), s.w.Pod("pod-c"))
	s.ready(svc)
	for _, p := range []*lab.Pod{s.w.Pod("pod-b"), s.w.Pod("pod-c")} {
		s.serveBack(t, p, 8082)
	}
	svc.Ports = append(svc.Ports, lab.Port{Name: "bulk", Port: 82, TargetPort: 8082})
	s.apply(svc, s.w.Pod("pod-b"), s.w.Pod("pod-c"))
	data := make([]byte, size)
	seed := rand.Uint64()
	for i, r := 0, rand.New(rand.NewPCG(seed, 0)); i < size; i++ {
		data[i] = byte(r.Uint32())
	}
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 82)
		for _, c := range s.clients() {
			lab.Eventually(t, soon, "the port is served", func() error {
				if r := c.Connect(to, lab.Timeout(time.Second)); r.Verdict != lab.Answered {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
			for range 2 { // one pod, then the other
				if err := c.Do(func() error { return sentBack(to.String(), data) }); err != nil {
					t.Errorf("%s, seed %d: %v", c.name, seed, err)
				}
			}
		}
	})
}

// serveBack has a pod take all that a client sends, until it closes its half, and send the sum of it and all of it back.
func (s *stage) serveBack(t *testing.T, p *lab.Pod, port int) {
	t.Helper()
	var listener net.Listener
	if err := p.Do(func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(soon))
				if data, err := io.ReadAll(conn); err == nil && len(data) > 0 {
					sum := sha256.Sum256(data)
					_, _ = conn.Write(append(sum[:], data...))
				}
			}()
		}
	}()
}

// sentBack sends data, closes its half, and wants the sum and the data back.
func sentBack(to string, data []byte) error {
	conn, err := net.DialTimeout("tcp", to, soon)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(soon))
	if _, err := conn.Write(data); err != nil {
		return err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	if want := append(sum[:], data...); !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes came back, want %d with the sum of those sent", len(got), len(want))
	}
	return nil
}
