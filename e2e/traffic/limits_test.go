package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B88: from one port of a client there is one connection to a pod, through whichever virtual IP: of two through two Services one
// is lost. The controls are another port, and another pod.
func TestB88OneClientPort(t *testing.T) {
	s := newStage(t).start()
	c := s.w.Pod("pod-c")
	first, second, elsewhere := web(88), web(89), web(90)
	s.apply(first, c)
	s.apply(second, c)
	s.apply(elsewhere, s.w.Pod("pod-b"))
	for _, svc := range []lab.Service{first, second, elsewhere} {
		s.ready(svc)
	}
	each(t, func(t *testing.T, family int) {
		client := s.w.Pod("pod-a")
		const port = 41000
		done := make(chan lab.Reply)
		go func() {
			done <- client.Ask(at(first, family, 80), lab.FromPort(port), lab.Wait(8*time.Second), lab.Timeout(16*time.Second))
		}()
		lab.Eventually(t, soon, "the first connection stands", func() error {
			if active(t, s.w.Node(1), at(first, family, 80), netip.AddrPortFrom(c.Addr(family), 8080).String()) == 0 {
				return errors.New("it does not")
			}
			return nil
		})
		if r := client.Ask(at(elsewhere, family, 80), lab.FromPort(port)); r.Verdict != lab.Answered {
			t.Errorf("from the same port to another pod: %s", r)
		}
		if r := client.Ask(at(second, family, 80), lab.FromPort(port+1)); r.Verdict != lab.Answered {
			t.Errorf("from another port to the same pod: %s", r)
		}
		later := client.Ask(at(second, family, 80), lab.FromPort(port))
		former := <-done
		t.Logf("from the same port to the same pod: the first connection %s, the second %s", former, later)
		if later.Verdict == lab.Answered && former.Verdict == lab.Answered {
			t.Error("both stand, and limits.md says that one is lost")
		}
	})
}

// B88: a UDP client that always sends from one port stays with one pod. The control sends each datagram from a port of its own.
func TestB88OneUDPPort(t *testing.T) {
	s := newStage(t).start()
	s.serveUDP(5353, s.pods()...)
	svc := nodePort(88)
	s.apply(svc, s.pods()...)
	each(t, func(t *testing.T, family int) {
		client, to := s.w.Pod("pod-a"), at(svc, family, 53)
		lab.Eventually(t, soon, "the Service answers", func() error { return client.AskUDP(to).Err })
		count := func(opts ...lab.AskOption) map[string]int {
			pods := map[string]int{}
			for range 9 {
				r := client.AskUDP(to, opts...)
				if r.Verdict != lab.Answered {
					t.Fatalf("%s", r)
				}
				pods[r.Pod]++
			}
			return pods
		}
		if pods := count(lab.FromPort(41000)); len(pods) != 1 {
			t.Errorf("from one port: %v", pods)
		}
		if pods := count(); len(pods) != 3 {
			t.Errorf("from many ports: %v", pods)
		}
	})
}

// B88: a load balancer that probes a node from the very address that it announces for a Service gets no answer: the node has
// that address itself. The control is the same probe before the Service has the address.
func TestB88ProbeFromTheAddress(t *testing.T) {
	s := newStage(t).start()
	n := s.w.Node(1)
	svc := balanced(web(88), 88)
	plain := svc
	plain.Status = nil
	s.apply(plain, s.w.Pod("pod-b"))
	eth0, err := s.w.Client.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []int{4, 6} {
		a := balancerAddr(svc, family)
		if err := s.w.Client.Netlink().AddrAdd(eth0, &netlink.Addr{Flags: 0x02 /* IFA_F_NODAD */, IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}); err != nil {
			t.Fatal(err)
		}
		wire, err := n.Netlink().LinkByName("eth0")
		if err == nil {
			err = n.Netlink().RouteAdd(&netlink.Route{LinkIndex: wire.Attrs().Index, Gw: s.w.Client.Addr(family).AsSlice(),
				Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ask := func(family int) lab.Reply {
		return s.w.Client.Ask(netip.AddrPortFrom(n.Addr(family), svc.Ports[0].NodePort), lab.From(balancerAddr(svc, family)))
	}
	each(t, func(t *testing.T, family int) {
		lab.Eventually(t, soon, "the control is answered", func() error { return ask(family).Err })
	})
	s.apply(svc, s.w.Pod("pod-b"))
	each(t, func(t *testing.T, family int) {
		lab.Eventually(t, soon, "the address is the node's", func() error { return isBound(t, n, balancerAddr(svc, family), true) })
		if r := ask(family); r.Verdict != lab.TimedOut {
			t.Errorf("a probe from the address: %s", r)
		}
	})
}

// B88: IPVS forgets a connection 60 s after its client has closed its half, and 120 s after its server has, if nothing is sent
// meanwhile: what the other one sends then is lost. The control is what is sent before.
func TestB88HalfClosed(t *testing.T) {
	s := newStage(t).start()
	c, client, n := s.w.Pod("pod-c"), s.w.Pod("pod-a"), s.w.Node(1)
	svc := web(88)
	svc.Ports = []lab.Port{{Name: "half", Port: 80, TargetPort: 8090}}
	s.apply(svc, c)
	server := halfServer(t, c)
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 80)
		wantReals(t, n, to, netip.AddrPortFrom(c.Addr(family), 8090).String()+" 1")
		open := func() (near, far *net.TCPConn) {
			t.Helper()
			lab.Eventually(t, soon, "a connection", func() error {
				return client.Do(func() error {
					conn, err := (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: -1}).Dial("tcp", to.String())
					if err == nil {
						near = conn.(*net.TCPConn)
					}
					return err
				})
			})
			far = <-server
			t.Cleanup(func() { near.Close(); far.Close() })
			return near, far
		}
		near, far := open()
		if err := near.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(far); err != nil {
			t.Fatal(err)
		}
		if _, err := far.Write([]byte("before")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		if k, err := near.Read(b); err != nil || string(b[:k]) != "before" {
			t.Fatalf("the control: %q, %v", b[:k], err)
		}
		began := time.Now()
		if state, expires := entry(t, n, near); state != "CLOSE_WAIT" || expires > 60 || expires < 50 {
			t.Errorf("half closed by the client: %s, %d s left, want CLOSE_WAIT and 60", state, expires)
		}
		second, secondFar := open()
		if err := secondFar.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(second); err != nil {
			t.Fatal(err)
		}
		if state, expires := entry(t, n, second); state != "FIN_WAIT" || expires > 120 || expires < 110 {
			t.Errorf("half closed by the server: %s, %d s left, want FIN_WAIT and 120", state, expires)
		}
		lab.Eventually(t, 2*time.Minute, "IPVS has forgotten the first", func() error {
			if state, expires := entry(t, n, near); state != "" {
				return fmt.Errorf("%s, %d s left", state, expires)
			}
			return nil
		})
		t.Logf("forgotten after %s", time.Since(began).Round(time.Second))
		_, _ = far.Write([]byte("after"))
		if err := near.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if k, err := near.Read(b); err == nil || string(b[:k]) == "after" {
			t.Errorf("what was sent after IPVS had forgotten arrived: %q, %v", b[:k], err)
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Logf("the client sees %v", err)
		}
	})
}

// halfServer gives the connections to port 8090 of a pod.
func halfServer(t *testing.T, p *lab.Pod) <-chan *net.TCPConn {
	t.Helper()
	var l net.Listener
	if err := p.Do(func() (err error) {
		l, err = (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp", "[::]:8090")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	conns := make(chan *net.TCPConn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c.(*net.TCPConn)
		}
	}()
	return conns
}

// entry is IPVS's entry of a client's connection: its state, and how many seconds it has left; no state: there is none.
func entry(t *testing.T, n *lab.Node, conn net.Conn) (state string, expires int) {
	t.Helper()
	from := netip.MustParseAddrPort(conn.LocalAddr().String())
	var text []byte
	if err := n.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/ip_vs_conn")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	addr, port := fmt.Sprintf("%X", from.Addr().Unmap().AsSlice()), fmt.Sprintf("%04X", from.Port())
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line) // Pro FromIP FPrt ToIP TPrt DestIP DPrt State Expires
		if len(f) < 9 || f[2] != port || strings.ToUpper(strings.NewReplacer("[", "", "]", "", ":", "").Replace(f[1])) != addr {
			continue
		}
		expires, err := strconv.Atoi(f[8])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return f[7], expires
	}
	return "", 0
}
