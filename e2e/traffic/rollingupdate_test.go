package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	mobyipvs "github.com/moby/ipvs"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// rollout is a Deployment whose pods are replaced one after the other while requests come in on several ways.
type rollout struct {
	*stage
	svc   lab.Service
	pods  []*lab.Pod
	ways  []netip.AddrPort // into the Service, by node1
	turns int
}

// run replaces every pod. swap brings a fresh pod in and has no new connection reach the old one, which has some at
// that moment; after that the old one finishes what it has within the grace period, then the rest is cut off; gone is
// told when it has.
func (r *rollout) run(grace time.Duration, swap, gone func(old, fresh *lab.Pod)) (reports []lab.LoadReport, cut int) {
	t := r.t
	t.Helper()
	var loads []*lab.Load
	for _, to := range r.ways {
		// A request takes 200 ms, so that at any time some are under way.
		loads = append(loads, r.w.Client.StartLoad(to, lab.LoadConfig{Rate: 20, Wait: 200 * time.Millisecond, Timeout: 15 * time.Second}))
	}
	goOn := func() {
		t.Helper()
		for _, l := range loads {
			before := l.Report()
			lab.Eventually(t, time.Minute, "requests go on", func() error {
				if now := l.Report(); now.Answered+now.Lost < before.Answered+before.Lost+20 {
					return fmt.Errorf("%s", now)
				}
				return nil
			})
		}
	}
	goOn()
	r.turns++
	for i, old := range slices.Clone(r.pods) {
		fresh, err := r.w.AddPod(lab.PodSpec{Name: fmt.Sprintf("v%d-%d", r.turns, i), Node: old.Node.Index})
		if err != nil {
			t.Fatal(err)
		}
		r.w.ServeHTTP(t, 8080, fresh)
		wantAsked(t, old)
		swap(old, fresh)
		r.pods[i] = fresh
		open, err := old.Finish(8080, grace)
		if err != nil {
			t.Error(err)
		}
		cut += open
		gone(old, fresh)
		if err := old.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	goOn()
	for i, l := range loads {
		rep := l.Stop()
		t.Logf("%s: %s", r.ways[i], rep)
		reports = append(reports, rep)
	}
	return reports, cut
}

// wantAsked waits until a pod has requests under way.
func wantAsked(t testing.TB, p *lab.Pod) {
	t.Helper()
	lab.Eventually(t, soon, p.Name+" has requests under way", func() error {
		open, err := p.OpenConnections(8080)
		if err == nil && open == 0 {
			err = errors.New("none")
		}
		return err
	})
}

// write writes the Service with its pods, one of which may be terminating.
func (r *rollout) write(pods []*lab.Pod, terminating *lab.Pod) {
	r.t.Helper()
	v4, v6 := r.w.SlicesFor(r.svc, pods...)
	for _, sl := range []lab.Slice{v4, v6} {
		for i, e := range sl.Endpoints {
			if terminating != nil && e.Pod == terminating.Name {
				yes, no := true, false
				sl.Endpoints[i].Ready, sl.Endpoints[i].Serving, sl.Endpoints[i].Terminating = &no, &yes, &yes
			}
		}
		r.cluster.Apply(sl)
	}
	r.cluster.Apply(r.svc)
}

// B33: a Deployment is updated under load, pod by pod, and loses no request on any of its frontends. The control,
// in the same world: another program deletes the real server of a pod at once that ends.
func TestB33RollingUpdate(t *testing.T) {
	s := newStage(t).start()
	r := &rollout{stage: s, svc: balanced(web(61), 61), pods: s.pods()}
	for family, kind := range map[int][]string{4: {"NodePort", "LoadBalancer"}, 6: {"ClusterIP", "LoadBalancer"}} {
		for _, k := range kind {
			r.ways = append(r.ways, s.frontends(r.svc, family)[k])
		}
	}
	slices.SortFunc(r.ways, netip.AddrPort.Compare)
	node := s.w.Node(1)
	r.write(r.pods, nil)
	for _, to := range r.ways {
		answers(t, s.w.Client, to)
	}
	reports, cut := r.run(patient, func(old, fresh *lab.Pod) {
		r.write(append(slices.Clone(r.pods), fresh), old)
		for _, to := range r.ways {
			takesNoMore(t, node, to, realAt(old, to))
			takes(t, node, to, realAt(fresh, to))
		}
		s.wantIdle(t, old) // also of what is on its way to it, of which it knows nothing yet
	}, func(*lab.Pod, *lab.Pod) { r.write(r.pods, nil) })
	if cut > 0 {
		t.Errorf("%d connections of pods that were told to end had to be cut off", cut)
	}
	figures(t, "ipvs-proxy", reports)
	for i, rep := range reports {
		if rep.Lost > 0 {
			t.Errorf("rolling update, %s: %s", r.ways[i], rep)
		}
	}
	for _, a := range s.agents {
		if err := a.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	lost := 0
	reports, _ = r.run(time.Second, func(old, fresh *lab.Pod) {
		for _, to := range r.ways {
			replaceReal(t, node, to, realAt(old, to), realAt(fresh, to))
		}
	}, func(*lab.Pod, *lab.Pod) {})
	figures(t, "deleted at once", reports)
	for _, rep := range reports {
		lost += rep.Lost
	}
	if lost == 0 {
		t.Error("the control lost nothing: that the agent lost nothing means nothing")
	}
}

// figures keeps what was sent and lost in a rolling update.
func figures(t *testing.T, by string, reports []lab.LoadReport) {
	t.Helper()
	sent, lost := 0, 0
	for _, r := range reports {
		sent, lost = sent+r.Sent, lost+r.Lost
	}
	lab.Figure(t, by+", requests sent", sent)
	lab.Figure(t, by+", requests lost", lost)
}

// realAt is a pod as a real server behind a frontend.
func realAt(p *lab.Pod, to netip.AddrPort) netip.AddrPort {
	if to.Addr().Is4() {
		return netip.AddrPortFrom(p.V4, 8080)
	}
	return netip.AddrPortFrom(p.V6, 8080)
}

// takes waits until a real server takes connections.
func takes(t testing.TB, n *lab.Node, vip, real netip.AddrPort) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s takes connections of %s on %s", real, vip, n.Name), func() error {
		if got := reals(t, n, vip); !slices.Contains(got, real.String()+" 1") {
			return fmt.Errorf("real servers %v", got)
		}
		return nil
	})
}

// replaceReal adds a real server and deletes another at once, as a naive program would.
func replaceReal(t *testing.T, n *lab.Node, vip, old, fresh netip.AddrPort) {
	t.Helper()
	err := n.Do(func() error {
		h, err := lab.OpenIPVS()
		if err != nil {
			return err
		}
		defer h.Close()
		af := uint16(syscall.AF_INET)
		if vip.Addr().Is6() {
			af = syscall.AF_INET6
		}
		svc := &mobyipvs.Service{AddressFamily: af, Protocol: syscall.IPPROTO_TCP, Address: vip.Addr().AsSlice(), Port: vip.Port()}
		dest := func(a netip.AddrPort) *mobyipvs.Destination {
			return &mobyipvs.Destination{AddressFamily: af, Address: a.Addr().AsSlice(), Port: a.Port(), Weight: 1, ConnectionFlags: mobyipvs.ConnFwdMasq}
		}
		return errors.Join(h.NewDestination(svc, dest(fresh)), h.DelDestination(svc, dest(old)))
	})
	if err != nil {
		t.Fatalf("%s for %s at %s: %v", fresh, old, vip, err)
	}
}
