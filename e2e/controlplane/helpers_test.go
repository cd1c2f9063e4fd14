package controlplane

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// startAgents starts an agent on every node, with kube-proxy's credentials. With LAB_PROXY=kube-proxy it is
// kube-proxy itself, which tells whether a test asks for more than that does.
func (s *stage) startAgents(args ...string) {
	s.t.Helper()
	s.proxyAccount()
	if !realKubeProxy() {
		s.t.Cleanup(func() { s.agentCalls() })
	}
	for _, n := range s.w.Nodes {
		s.agents = append(s.agents, s.startAgent(n, args...))
	}
}

func (s *stage) startAgent(n *lab.Node, args ...string) *lab.Agent {
	s.t.Helper()
	if realKubeProxy() {
		return s.startKubeProxy(n, args...)
	}
	source := []string{"--kubeconfig", s.kubeconfig(metav1.NamespaceSystem, "kube-proxy", s.server())}
	s.sources = append(s.sources, source)
	return s.w.StartAgentOf(s.t, n, source, args...)
}

func realKubeProxy() bool { return os.Getenv("LAB_PROXY") == "kube-proxy" }

// client is who asks.
type client struct {
	name string
	*lab.Host
}

// clients are one of each kind: in a pod of its own that is in no Service, a node itself, outside.
func (s *stage) clients() []client {
	s.t.Helper()
	asker := s.w.Pod("asker")
	if asker == nil {
		var err error
		if asker, err = s.w.AddPod(lab.PodSpec{Name: "asker", Node: 1, Number: 200}); err != nil {
			s.t.Fatal(err)
		}
	}
	return []client{{"pod", asker.Host}, {"node", s.w.Node(1).Host}, {"outside", s.w.Client}}
}

// web is a Service on port 80 to the pods' appPort.
func web(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": name},
		Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
	}}
}

// createReplicas makes a ReplicaSet, whose pods the controller makes and the lab's kubelets run.
func (s *stage) createReplicas(name string, n int32) {
	s.t.Helper()
	app := map[string]string{"app": name}
	_, err := s.api.AppsV1().ReplicaSets(s.namespace).Create(s.ctx, &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.ReplicaSetSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: app},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: app}, Spec: podSpec("")}},
	}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

// pods waits until as many pods of a namespace with the label app=NAME are ready, and none else is there.
func (s *stage) pods(namespace, name string, n int) []*lab.Pod {
	s.t.Helper()
	return s.podsThatAre(corev1.PodReady, namespace, name, n)
}

func (s *stage) podsThatAre(what corev1.PodConditionType, namespace, name string, n int) (pods []*lab.Pod) {
	s.t.Helper()
	lab.Eventually(s.t, 2*time.Minute, fmt.Sprintf("%d pods of %s are %s", n, name, what), func() error {
		list, err := s.api.CoreV1().Pods(namespace).List(s.ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		if err != nil {
			return err
		}
		pods = nil
		for _, p := range list.Items {
			if pod := s.w.Pod(p.Name); is(&p, what) && pod != nil && p.DeletionTimestamp == nil {
				pods = append(pods, pod)
			}
		}
		if len(pods) != n || len(list.Items) != n {
			return fmt.Errorf("%d of %d are", len(pods), len(list.Items))
		}
		return nil
	})
	return pods
}

// reals are the real servers of a frontend on a node that take connections, of whatever protocol.
func reals(n *lab.Node, to netip.AddrPort) (list []string, err error) {
	servers, err := n.VirtualServers()
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("no virtual server")
	for _, v := range servers {
		if v.Addr != to {
			continue
		}
		err = nil
		for _, r := range v.Reals {
			if r.Weight > 0 {
				list = append(list, r.Addr.String())
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list), err
}

// wantServing waits until exactly these pods serve a frontend on every node.
func (s *stage) wantServing(t testing.TB, to netip.AddrPort, port uint16, pods ...*lab.Pod) {
	t.Helper()
	s.wantServingWithin(t, soon, to, port, pods...)
}

func (s *stage) wantServingWithin(t testing.TB, within time.Duration, to netip.AddrPort, port uint16, pods ...*lab.Pod) {
	t.Helper()
	var want []string
	for _, p := range pods {
		a := p.V4
		if to.Addr().Is6() {
			a = p.V6
		}
		want = append(want, netip.AddrPortFrom(a, port).String())
	}
	slices.Sort(want)
	for _, n := range s.w.Nodes {
		lab.Eventually(t, within, fmt.Sprintf("%s serves %s", n.Name, to), func() error {
			got, err := reals(n, to)
			if err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("by %s, want %s", strings.Join(got, ", "), strings.Join(want, ", "))
			}
			return err
		})
	}
}

// wantGone waits until no node has a virtual server on an address.
func (s *stage) wantGone(t testing.TB, a netip.Addr) {
	t.Helper()
	for _, n := range s.w.Nodes {
		lab.Eventually(t, soon, fmt.Sprintf("%s leaves %s", a, n.Name), func() error {
			servers, err := n.VirtualServers()
			for _, v := range servers {
				if v.Addr.Addr() == a {
					return fmt.Errorf("virtual server %s", v.Addr)
				}
			}
			return err
		})
	}
}

// hits: a client's requests are answered by each of the pods, as often as by the others.
func hits(t testing.TB, c client, to netip.AddrPort, pods ...*lab.Pod) {
	t.Helper()
	want := map[string]int{}
	for _, p := range pods {
		want[p.Name] = 3
	}
	if got, lost := c.Spread(to, 3*len(pods)); !maps.Equal(got, want) {
		t.Errorf("%s asks %s: answered by %v, want %v; lost %v", c.name, to, got, want, lost)
	}
}

// underLoad asks a frontend from all clients while f runs, and a little before and after, and reports.
func underLoad(s *stage, to netip.AddrPort, f func()) (r lab.LoadReport) {
	s.t.Helper()
	var loads []*lab.Load
	clients := s.clients()
	for _, c := range clients {
		loads = append(loads, c.StartLoad(to, lab.LoadConfig{Rate: 10, Timeout: 20 * time.Second}))
	}
	for _, l := range loads {
		answered(s.t, l, 10)
	}
	f()
	for _, l := range loads {
		answered(s.t, l, l.Report().Answered+10)
	}
	for i, l := range loads {
		one := l.Stop()
		s.t.Logf("load from %s to %s: %s", clients[i].name, to, one)
		r.Sent, r.Answered, r.Lost = r.Sent+one.Sent, r.Answered+one.Answered, r.Lost+one.Lost
		r.Duration = max(r.Duration, one.Duration)
	}
	r.Rate = float64(r.Sent) / r.Duration.Seconds()
	return r
}

func answered(t testing.TB, l *lab.Load, n int) {
	t.Helper()
	lab.Eventually(t, time.Minute, "the load is answered", func() error {
		if r := l.Report(); r.Answered < n {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// wantNone: a load lost nothing; and it would have noticed, for when a virtual server is taken away and comes back,
// as with an agent that builds its table anew, it does lose.
func wantNone(s *stage, what string, to netip.AddrPort, r lab.LoadReport) {
	s.t.Helper()
	s.t.Logf("%s: %d lost of %d in %s (%.0f/s)", what, r.Lost, r.Sent, r.Duration.Round(time.Second), r.Rate)
	if r.Lost > 0 {
		s.t.Errorf("%s: %d of %d requests were lost", what, r.Lost, r.Sent)
	}
	control := underLoadUntilLoss(s, to)
	s.t.Logf("control, the virtual server taken away: %s", control)
}

func underLoadUntilLoss(s *stage, to netip.AddrPort) lab.LoadReport {
	s.t.Helper()
	n := s.w.Node(1)
	load := s.w.Client.StartLoad(to, lab.LoadConfig{Rate: 10, Timeout: 2 * time.Second})
	defer load.Stop()
	answered(s.t, load, 5)
	var deleted time.Time // it is back within a second: deleted again where the load was not fast enough
	lab.Eventually(s.t, time.Minute, "the control loses requests", func() error {
		r := load.Report()
		if r.Lost > 0 {
			return nil
		}
		if time.Since(deleted) < 2*time.Second {
			return fmt.Errorf("%s", r)
		}
		deleted = time.Now()
		return errors.Join(n.DeleteVirtualServer(to), fmt.Errorf("%s", r))
	})
	return load.Stop()
}

// watchHealth asks every node's /livez and /healthz once a second until stop, which fails the test when one ever
// answered anything but 200.
func (s *stage) watchHealth() (stop func()) {
	s.t.Helper()
	pages := []string{"127.0.0.1:10256/livez", "127.0.0.1:10256/healthz"}
	for _, n := range s.w.Nodes {
		for _, page := range pages {
			lab.Eventually(s.t, soon, n.Name+" is healthy", func() error { return healthy(n.Host, page) })
		}
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	asked, bad := make([]int, len(s.w.Nodes)), make([]error, len(s.w.Nodes))
	for i, n := range s.w.Nodes {
		wg.Go(func() {
			for t := time.NewTicker(time.Second); ; {
				select {
				case <-done:
					t.Stop()
					return
				case <-t.C:
				}
				for _, page := range pages {
					asked[i]++
					if err := healthy(n.Host, page); err != nil {
						bad[i] = errors.Join(bad[i], fmt.Errorf("%s, answer %d: %s: %w", n.Name, asked[i], page, err))
					}
				}
			}
		})
	}
	return sync.OnceFunc(func() {
		close(done)
		wg.Wait()
		s.t.Logf("answers of /livez and /healthz: %v", asked)
		if err := errors.Join(bad...); err != nil {
			s.t.Errorf("health: %v", err)
		}
		if slices.Min(asked) < 2 {
			s.t.Errorf("health was asked %v times: too few", asked)
		}
	})
}

func healthy(h *lab.Host, page string) error {
	resp, err := clientIn(h).Get("http://" + page)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", resp.Status)
	}
	return nil
}
