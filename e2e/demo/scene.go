package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// The Services of the examples.
var (
	kubia4    = netip.MustParseAddrPort("10.96.0.80:80")
	kubia6    = netip.MustParseAddrPort("[fd00:96::80]:80")
	resolver4 = netip.MustParseAddrPort("10.96.0.10:53")
	resolver6 = netip.MustParseAddrPort("[fd00:96::10]:53")
)

const (
	nodePort = 30123 // of kubia
	httpPort = 8080  // of its pods
	dnsPort  = 5353  // of the resolver's
)

// scene is the world that the demo and its shell play in: three nodes, the Services of the examples.
type scene struct {
	w       *lab.World
	cluster *lab.Cluster
	dir     string // holds the cluster's directory and whatever else the scene needs
	running []*lab.Agent
}

// newScene builds the world. Nothing of the Services is on node3.
func newScene() (s *scene, err error) {
	s = &scene{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.dir, err = os.MkdirTemp("", "ipvs-proxy-demo-"); err != nil {
		return s, err
	}
	if s.w, err = lab.Build(lab.Config{Nodes: 3, Pods: []lab.PodSpec{
		{Name: "pod-a", Node: 1}, {Name: "pod-b", Node: 1}, {Name: "pod-c", Node: 2}, {Name: "dns-a", Node: 2}}}); err != nil {
		return s, err
	}
	for _, name := range []string{"pod-a", "pod-b", "pod-c"} {
		if _, err := s.w.Pod(name).ServeHTTP(httpPort); err != nil {
			return s, err
		}
	}
	if _, err := s.w.Pod("dns-a").ServeUDP("dns-a", dnsPort); err != nil {
		return s, err
	}
	dir := filepath.Join(s.dir, "cluster")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return s, err
	}
	s.cluster, err = s.w.NewCluster(dir)
	return s, err
}

// close ends all of it.
func (s *scene) close() error {
	var errs []error
	if s.w != nil {
		errs = append(errs, s.w.Close())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// apply puts an example into the cluster and returns its text.
func (s *scene) apply(example string) (string, error) {
	text, err := os.ReadFile(filepath.Join(os.Getenv("LAB_DIR"), "examples", example))
	if err != nil {
		return "", err
	}
	return string(text), s.cluster.Write(example, string(text))
}

// start starts the agent of a node and waits until it has programmed what there is.
func (s *scene) start(n *lab.Node, log io.Writer) (a *lab.Agent, took time.Duration, err error) {
	began := time.Now()
	if a, err = s.w.RunAgent(n, s.cluster, log); err != nil {
		return nil, 0, err
	}
	s.running = append(s.running, a)
	err = eventually(n.Name+" is programmed", func() error {
		if !strings.Contains(a.Log(), "all Services are programmed") {
			return fmt.Errorf("not said in the log:\n%s", a.Log())
		}
		return nil
	})
	return a, time.Since(began), err
}
