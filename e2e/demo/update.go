package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// entry is where a load enters, and by which node.
type entry struct {
	name string
	node *lab.Node
	to   netip.AddrPort
}

func (s *show) entries() []entry {
	n := s.w.Node(3)
	return []entry{
		{"node port of node3", n, netip.AddrPortFrom(n.V4, nodePort)},
		{"cluster IP by node1", s.w.Node(1), kubia6},
	}
}

// roll is a rolling update and what it cost.
type roll struct {
	name string
	entry
	lab.LoadReport
}

func (r roll) String() string {
	return r.name + " at the " + r.entry.name + ": " + r.LoadReport.String()
}

// A request takes 200 ms, so that at any time some are under way.
var load = lab.LoadConfig{Rate: 40, Wait: 200 * time.Millisecond, Timeout: 8 * time.Second}

// updater is who carries a rolling update out.
type updater struct {
	name string
	// swap has the proxies send new requests to the fresh pod and not to the old one, which has some at that moment.
	swap func(old, fresh *lab.Pod) error
	// drained waits until the proxies send nothing to the old pod any more; nil: nobody waits for that.
	drained func(old *lab.Pod) error
	// grace is how long the old pod may then take for the requests that it has, before what is left is cut off.
	grace time.Duration
	out   func() error // the old pod has ended
}

// underUpdate replaces the Service's pods one after the other while requests come in at each entry.
func (s *show) underUpdate(u updater) error {
	var loads []*lab.Load
	for _, e := range s.entries() {
		loads = append(loads, s.w.Client.StartLoad(e.to, load))
	}
	goOn := func() error {
		before := make([]int, len(loads))
		for i, l := range loads {
			before[i] = l.Report().Sent
		}
		return eventually("requests go on", func() error {
			for i, l := range loads {
				if r := l.Report(); r.Sent < before[i]+30 {
					return fmt.Errorf("%s", r)
				}
			}
			return nil
		})
	}
	if err := goOn(); err != nil {
		return err
	}
	for i, old := range slices.Clone(s.kubia) {
		if err := s.replace(u, i, old); err != nil {
			return err
		}
	}
	if err := goOn(); err != nil {
		return err
	}
	reports := make([]lab.LoadReport, len(loads))
	var wg sync.WaitGroup // each waits for what it has under way, and would go on meanwhile
	for i, l := range loads {
		wg.Go(func() { reports[i] = l.Stop() })
	}
	wg.Wait()
	for i, e := range s.entries() {
		s.rolls = append(s.rolls, roll{u.name, e, reports[i]})
	}
	return nil
}

// replace puts a fresh pod into the place of one, and ends that.
func (s *show) replace(u updater, place int, old *lab.Pod) error {
	fresh, err := s.successor(old)
	if err != nil {
		return err
	}
	if err := eventually(old.Name+" has requests under way", func() error { return asked(old) }); err != nil {
		return err
	}
	if err := u.swap(old, fresh); err != nil {
		return err
	}
	s.kubia[place] = fresh
	if u.drained != nil {
		if err := u.drained(old); err != nil {
			return err
		}
	}
	if _, err := old.Finish(httpPort, u.grace); err != nil { // what is cut off counts as lost where it was asked
		return err
	}
	return errors.Join(u.out(), old.Remove())
}

// asked tells whether a pod has requests under way.
func asked(p *lab.Pod) error {
	open, err := p.OpenConnections(httpPort)
	if err == nil && open == 0 {
		err = errors.New("none")
	}
	return err
}

// successor starts a pod of the next version beside an old one: pod-a2 for pod-a, pod-a3 for that.
func (s *show) successor(old *lab.Pod) (*lab.Pod, error) {
	name := old.Name + "2"
	if base, again := strings.CutSuffix(old.Name, "2"); again {
		name = base + "3"
	}
	p, err := s.w.AddPod(lab.PodSpec{Name: name, Node: old.Node.Index})
	if err != nil {
		return nil, err
	}
	_, err = p.ServeHTTP(httpPort)
	return p, err
}

func (s *show) update() error {
	s.title("A rolling update: all of its pods are replaced, one after the other, while requests go on")
	s.say("For each pod: its successor is ready, it is terminating and answers what it has, it is out of the slice and gone.")
	shown := false
	swap := func(old, fresh *lab.Pod) error {
		if err := s.endpoints(append(slices.Clone(s.kubia), fresh), old); err != nil {
			return err
		}
		if err := eventually("new requests go to "+fresh.Name, func() error { return s.swapped(old, fresh) }); err != nil {
			return err
		}
		if shown {
			return nil
		}
		shown = true
		e := s.entries()[0]
		s.say("%s when %s has just begun to end: weight 0, no new connection, and it keeps those that it has.\n", e.node.Name, old.Name)
		return s.table(e.node, 0, e.to)
	}
	// What a node has chosen the old pod for may still be on its way there: only the node knows of it.
	drained := func(old *lab.Pod) error {
		return eventually(old.Name+" is left with no connection", func() error { return s.idle(old) })
	}
	out := func() error { return s.endpoints(s.kubia, nil) }
	// As kubelet gives by default.
	if err := s.underUpdate(updater{name: "ipvs-proxy", swap: swap, drained: drained, grace: 30 * time.Second, out: out}); err != nil {
		return err
	}
	sent, lost := 0, 0
	for _, r := range s.rolls {
		sent, lost = sent+r.Sent, lost+r.Lost
	}
	s.say("\n%d requests meanwhile, %d lost.", sent, lost)
	if lost > 0 {
		return fmt.Errorf("lost in a rolling update: %v", s.rolls)
	}
	return nil
}

// endpoints writes the Service with these pods, one of which may be on its way out.
func (s *show) endpoints(pods []*lab.Pod, terminating *lab.Pod) error {
	text, err := os.ReadFile(filepath.Join(s.cluster.Dir, "kubia.yaml"))
	if err != nil {
		return err
	}
	service, _, _ := strings.Cut(string(text), "---\n")
	docs := []string{service}
	svc := lab.Service{Name: "kubia", Ports: []lab.Port{{Name: "http", Port: kubia4.Port(), TargetPort: httpPort}}}
	v4, v6 := s.w.SlicesFor(svc, pods...)
	for _, sl := range []lab.Slice{v4, v6} {
		for i, e := range sl.Endpoints {
			if terminating != nil && e.Pod == terminating.Name {
				yes, no := true, false
				sl.Endpoints[i].Ready, sl.Endpoints[i].Serving, sl.Endpoints[i].Terminating = &no, &yes, &yes
			}
		}
		doc, err := lab.YAML(sl)
		if err != nil {
			return err
		}
		docs = append(docs, doc)
	}
	return s.cluster.Write("kubia.yaml", strings.Join(docs, "---\n"))
}

// idle tells whether a pod has no active connection left where requests come in.
func (s *show) idle(pod *lab.Pod) error {
	for _, e := range s.entries() {
		servers, err := frontends(e.node, e.to)
		if err != nil {
			return err
		}
		for _, r := range servers[0].Reals {
			if a := r.Addr.Addr(); (a == pod.V4 || a == pod.V6) && r.Active > 0 {
				return fmt.Errorf("%s at %s: %d are active", e.name, e.node.Name, r.Active)
			}
		}
	}
	return nil
}

// swapped tells whether a pod has taken the place of another where requests come in.
func (s *show) swapped(old, fresh *lab.Pod) error {
	for _, e := range s.entries() {
		servers, err := frontends(e.node, e.to)
		if err != nil {
			return err
		}
		weight := map[netip.Addr]int{}
		for _, r := range servers[0].Reals {
			weight[r.Addr.Addr()] = r.Weight
		}
		family := 4
		if e.to.Addr().Is6() {
			family = 6
		}
		if weight[fresh.Addr(family)] != 1 || weight[old.Addr(family)] != 0 {
			return fmt.Errorf("%s at %s: weights %v", e.name, e.node.Name, weight)
		}
	}
	return nil
}
