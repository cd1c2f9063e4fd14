package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// manyServices is how many Services the contenders get.
const manyServices = 100

// manyPatience is how long one may take for them on a machine that is not busy.
const manyPatience = 3 * time.Minute

// contender is a proxy that serves node1.
type contender struct {
	name string
	// start starts it; end, if any, ends what it was given.
	start func(s *scene, n *lab.Node) (proxy *lab.Agent, end func(), err error)
}

// mark is what a contender came to.
type mark struct{ all, more time.Duration }

// beside has kube-proxy itself do what the agent does, where this machine has compiled it: each in a world of its own,
// with the same Services.
func (s *show) beside() error {
	program := filepath.Join(os.Getenv("LAB_DIR"), "kube-proxy")
	if _, err := os.Stat(program); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	version, err := exec.Command(program, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", program, err)
	}
	s.title("For comparison: %d Services by kube-proxy itself, %s, one proxy after the other", manyServices, strings.TrimSpace(string(version)))
	contenders := []contender{{"ipvs-proxy", func(s *scene, n *lab.Node) (*lab.Agent, func(), error) {
		a, err := s.w.RunAgent(n, s.cluster, nil)
		return a, func() {}, err
	}}}
	for _, mode := range []string{"ipvs", "iptables"} {
		contenders = append(contenders, contender{"kube-proxy " + mode, func(s *scene, n *lab.Node) (*lab.Agent, func(), error) {
			kubeconfig, end, err := s.cluster.RunAPI(n.Host, netip.AddrPortFrom(n.V4, 6443), s.dir)
			if err != nil {
				return nil, nil, err
			}
			a, err := s.w.RunProgram(n.Host, append([]string{program}, lab.KubeProxyFlags(mode, n, kubeconfig)...)...)
			return a, end, err
		}})
	}
	s.say("%-20s %24s %32s", "proxy", "all answer after", "an endpoint more answers after")
	for _, c := range contenders {
		m, err := s.try(c)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		s.say("%-20s %22.1f s %30.2f s", c.name, m.all.Seconds(), m.more.Seconds())
	}
	s.say("\nOn this machine, from the start of the process; an emulated processor starts programs, as kube-proxy does, more slowly\nthan it computes.")
	return nil
}

// try makes a world of its own for a contender and takes its times there.
func (s *show) try(c contender) (m mark, err error) {
	if err := s.close(); err != nil {
		return m, err
	}
	if s.scene, err = newScene(); err != nil {
		s.scene = &scene{}
		return m, err
	}
	pods := []*lab.Pod{s.w.Pod("pod-b")}
	var objects []lab.Object
	var fronts []netip.AddrPort
	for i := range manyServices {
		svc, front := numbered(i)
		slice, _ := s.w.SlicesFor(svc, pods...)
		objects, fronts = append(objects, svc, slice), append(fronts, front)
	}
	if err := s.cluster.Apply(objects...); err != nil {
		return m, err
	}
	began := time.Now()
	proxy, end, err := c.start(s.scene, s.w.Node(1))
	if err != nil {
		return m, err
	}
	defer end()
	from := s.w.Pod("pod-a")
	left := fronts
	if err := lab.Until(manyPatience, func() error {
		for ; len(left) > 0; left = left[1:] {
			if r := from.Ask(left[0], lab.Timeout(300*time.Millisecond)); r.Verdict != lab.Answered {
				return fmt.Errorf("%s: %s; its log:\n%s", left[0], r, proxy.Log())
			}
		}
		return nil
	}); err != nil {
		return m, err
	}
	m.all, began = time.Since(began), time.Now()
	svc, front := numbered(manyServices / 2)
	slice, _ := s.w.SlicesFor(svc, append(pods, s.w.Pod("pod-c"))...)
	if err := s.cluster.Apply(slice); err != nil {
		return m, err
	}
	err = lab.Until(manyPatience, func() error {
		if r := from.Ask(front, lab.Timeout(300*time.Millisecond)); r.Pod != "pod-c" {
			return fmt.Errorf("%s; its log:\n%s", r, proxy.Log())
		}
		return nil
	})
	m.more = time.Since(began)
	return m, errors.Join(err, proxy.Kill())
}

// numbered is one of many Services, and its frontend.
func numbered(i int) (lab.Service, netip.AddrPort) {
	ip := netip.AddrFrom4([4]byte{10, 96, 100, byte(1 + i)})
	return lab.Service{Name: fmt.Sprintf("web%d", i), ClusterIPs: []string{ip.String()}, Ports: []lab.Port{{Name: "http", Port: 80, TargetPort: httpPort}}},
		netip.AddrPortFrom(ip, 80)
}
