package controlplane

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// corefile is kubeadm's, but for the way to the API server: there is no ServiceAccount mounted, so a kubeconfig says
// the same, with the address of the Service default/kubernetes. What is not the cluster's goes nowhere.
const corefile = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       kubeconfig %s default
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    loadbalance
}
`

// S5, discovery by DNS: real CoreDNS behind the ClusterIP of kube-dns, on 53/UDP, 53/TCP and 9153/TCP. It reads the
// API server through the ClusterIP of default/kubernetes. Names of a Service are found short, longer and whole, asked
// over either family; and a rollout of CoreDNS loses no question that a resolver's second try does not mend.
func TestS5DNS(t *testing.T) {
	s := newStage(t, 3)
	s.startDNS()
	s.startAgents()
	kubia := s.createService(web("kubia"))
	dns := s.createService(dnsService())
	s.createDeployment(metav1.NamespaceSystem, deployment("coredns", 2, podSpec("")))
	t.Cleanup(func() { s.removeDNS() })
	pods := s.pods(metav1.NamespaceSystem, "coredns", 2)
	names := []string{"kubia", "kubia." + s.namespace, "kubia." + s.namespace + ".svc.cluster.local"}
	want := clusterIP(kubia, 80).Addr()
	for i, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			to, metrics := clusterIPs(dns, 53)[i], clusterIPs(dns, 9153)[i]
			s.wantServing(t, to, 53, pods...)
			s.wantServing(t, metrics, 9153, pods...)
			for _, c := range s.clients() {
				s.wantNames(t, c, to, names, want)
				wantMetrics(t, c, metrics)
			}
		})
	}
	to := clusterIP(dns, 53)
	asked := s.askThrough(to, names[2], want, func() {
		s.rollOut(metav1.NamespaceSystem, "coredns", "second")
		fresh := s.rolledOut(metav1.NamespaceSystem, "coredns", 2)
		s.wantServing(t, to, 53, fresh...)
	})
	t.Logf("questions while CoreDNS was replaced: %s", asked)
}

// wantNames: a client finds every name at a server, over UDP and TCP.
func (s *stage) wantNames(t *testing.T, c client, server netip.AddrPort, names []string, want netip.Addr) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range names {
			r := newResolver(s, c.Host, network, server)
			if got, err := r.search(name); err != nil || got != want {
				t.Errorf("%s asks %s for %s over %s: %v, %v; want %s", c.name, server, name, network, got, err, want)
			}
		}
	}
}

// dnsService is kubeadm's kube-dns, of both families.
func dnsService() *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "kube-dns"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.10", Selector: map[string]string{"app": "coredns"},
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt32(53)},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, TargetPort: intstr.FromInt32(53)},
				{Name: "metrics", Protocol: corev1.ProtocolTCP, Port: 9153, TargetPort: intstr.FromInt32(9153)},
			}}}
}

// startDNS has the kubelets run CoreDNS in every pod, with the rights that kubeadm gives it.
func (s *stage) startDNS() {
	s.t.Helper()
	read := []string{"list", "watch"}
	_, err := s.api.RbacV1().ClusterRoles().Create(s.ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "system:coredns"},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"endpoints", "services", "pods", "namespaces"}, Verbs: read},
			{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
		}}, metav1.CreateOptions{})
	s.created(err)
	_, err = s.api.CoreV1().ServiceAccounts(metav1.NamespaceSystem).Create(s.ctx,
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "coredns"}}, metav1.CreateOptions{})
	s.created(err)
	s.bind("system:coredns", "system:coredns", metav1.NamespaceSystem, "coredns")
	file := filepath.Join(s.t.TempDir(), "Corefile")
	kubeconfig := s.kubeconfig(metav1.NamespaceSystem, "coredns", netip.MustParseAddrPort("10.96.0.1:443"))
	if err := os.WriteFile(file, fmt.Appendf(nil, corefile, kubeconfig), 0o600); err != nil {
		s.t.Fatal(err)
	}
	k := s.startKubelet()
	k.setLinger(0) // SIGTERM at once: CoreDNS lingers by itself
	k.run = func(t testing.TB, _ *corev1.Pod, p *lab.Pod) (func(), error) {
		a, err := s.w.RunProgram(p.Host, filepath.Join(os.Getenv("LAB_DIR"), "coredns"), "-conf", file)
		if err != nil {
			return nil, err
		}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			if err = healthy(p.Host, "127.0.0.1:8181/ready"); err == nil {
				break
			}
			if !a.Running() || time.Now().After(deadline) {
				return nil, fmt.Errorf("CoreDNS is not ready: %w; its log:\n%s", err, a.Log())
			}
		}
		return func() {
			if err := a.Signal(syscall.SIGTERM); err == nil {
				err = a.Wait(30 * time.Second)
				if err != nil {
					t.Logf("CoreDNS in %s: %v; its log:\n%s", p.Name, err, a.Log())
				}
			}
		}, nil
	}
}

// removeDNS removes what S5 leaves in kube-system.
func (s *stage) removeDNS() {
	ctx, now := context.Background(), int64(0)
	background := metav1.DeletePropagationBackground
	if err := s.api.AppsV1().Deployments(metav1.NamespaceSystem).Delete(ctx, "coredns", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		s.t.Error(err)
	}
	if err := s.api.CoreV1().Services(metav1.NamespaceSystem).Delete(ctx, "kube-dns", metav1.DeleteOptions{}); err != nil {
		s.t.Error(err)
	}
	lab.Eventually(s.t, time.Minute, "CoreDNS is gone", func() error {
		_ = s.api.CoreV1().Pods(metav1.NamespaceSystem).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
		list, err := s.api.CoreV1().Pods(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d pods are left", len(list.Items))
		}
		return err
	})
}

// wantMetrics asks for CoreDNS's metrics behind a frontend.
func wantMetrics(t testing.TB, c client, to netip.AddrPort) {
	t.Helper()
	resp, err := clientIn(c.Host).Get("http://" + to.String() + "/metrics")
	if err != nil {
		t.Errorf("%s asks %s for metrics: %v", c.name, to, err)
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), `coredns_build_info{`) || !strings.Contains(string(body), `version="1.15.0"`) {
		t.Errorf("%s asks %s for metrics: %s, %v, %.200s", c.name, to, resp.Status, err, body)
	}
}

// resolver is Go's own, with the defaults of a resolv.conf: a question is asked again after 5 s. It asks one server
// over one network from a namespace, and each question from a port of its own.
type resolver struct {
	*net.Resolver
	s     *stage
	tries atomic.Int64
}

func newResolver(s *stage, h *lab.Host, network string, server netip.AddrPort) *resolver {
	r := &resolver{s: s}
	r.Resolver = &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
		r.tries.Add(1)
		err = h.Do(func() error {
			c, err = new(net.Dialer).DialContext(ctx, network, server.String())
			return err
		})
		return c, err
	}}
	return r
}

// search looks for a name as a pod of the namespace would: with the search list first, for all its names have fewer
// than five dots.
func (r *resolver) search(name string) (a netip.Addr, err error) {
	for _, suffix := range []string{r.s.namespace + ".svc.cluster.local", "svc.cluster.local", "cluster.local", ""} {
		if a, err = r.lookup(strings.TrimSuffix(name+"."+suffix, ".") + "."); err == nil {
			return a, nil
		}
	}
	return a, err
}

func (r *resolver) lookup(name string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	all, err := r.LookupNetIP(ctx, "ip4", name)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(all) != 1 {
		return netip.Addr{}, fmt.Errorf("%s has addresses %v", name, all)
	}
	return all[0].Unmap(), nil
}

// questions counts what became of many.
type questions struct{ asked, mended, lost atomic.Int64 }

func (q *questions) String() string {
	return fmt.Sprintf("%d asked, %d answered at the second try, %d lost", q.asked.Load(), q.mended.Load(), q.lost.Load())
}

// askThrough has every client ask for a name over both protocols, all the time while f runs: one question after the other,
// so that a machine that is busy gets fewer and not a heap of them. None may stay without the right answer.
func (s *stage) askThrough(to netip.AddrPort, name string, want netip.Addr, f func()) *questions {
	s.t.Helper()
	q, done := &questions{}, make(chan struct{})
	var wg sync.WaitGroup
	for _, c := range s.clients() {
		for _, network := range []string{"udp", "tcp"} {
			wg.Go(func() {
				for t := time.NewTicker(100 * time.Millisecond); ; {
					select {
					case <-done:
						t.Stop()
						return
					case <-t.C:
					}
					r := newResolver(s, c.Host, network, to)
					q.asked.Add(1)
					got, err := r.lookup(name + ".")
					switch {
					case err != nil || got != want:
						q.lost.Add(1)
						s.t.Errorf("%s asks for %s over %s: %v, %v after %d tries", c.name, name, network, got, err, r.tries.Load())
					case r.tries.Load() > 1:
						q.mended.Add(1)
					}
				}
			})
		}
	}
	f()
	close(done)
	wg.Wait()
	return q
}
