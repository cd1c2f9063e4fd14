package controlplane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// kubelet plays the scheduler and every node's kubelet: pods that nobody placed go to the nodes in turn, each gets a
// namespace of the lab and its application there, and its status is what became of it.
type kubelet struct {
	s   *stage
	ctx context.Context

	// run starts the application of a pod; it returns when that is ready, and its end.
	run func(t testing.TB, obj *corev1.Pod, p *lab.Pod) (end func(), err error)
	// linger is how long an application goes on before it ends, as with a sleep in a preStop hook; negative: it
	// is killed at once, with what it was asked.
	linger time.Duration

	mu   sync.Mutex
	wg   sync.WaitGroup
	next int                // the node of the next pod
	pods map[string]*podRun // by name
}

// podRun is a pod on its node.
type podRun struct {
	pod    *lab.Pod
	end    func()
	ending bool
	// probe is what the pod's readiness probe says.
	probe bool
}

const appPort = 8080

// startKubelet starts it for the namespaces of this test and kube-system.
func (s *stage) startKubelet() *kubelet {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	k := &kubelet{s: s, ctx: ctx, run: serveHTTP, linger: 5 * time.Second, pods: map[string]*podRun{}}
	factory := informers.NewSharedInformerFactory(s.api, 0)
	informer := factory.Core().V1().Pods().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { k.sync(o.(*corev1.Pod)) },
		UpdateFunc: func(_, o any) { k.sync(o.(*corev1.Pod)) },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	factory.Start(ctx.Done())
	s.t.Cleanup(func() {
		cancel()
		factory.Shutdown()
		k.wg.Wait()
	})
	s.kubelet = k
	return k
}

// serveHTTP is the usual application: it says who it is, on appPort.
func serveHTTP(_ testing.TB, _ *corev1.Pod, p *lab.Pod) (func(), error) { return p.ServeHTTP(appPort) }

// sync does the next thing that a pod needs.
func (k *kubelet) sync(obj *corev1.Pod) {
	if obj.Namespace != k.s.namespace && obj.Namespace != metav1.NamespaceSystem {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.pods[obj.Name]
	switch {
	case obj.DeletionTimestamp != nil && r == nil:
		k.do(obj.Name, func() error { return k.gone(obj) })
	case obj.DeletionTimestamp != nil && !r.ending:
		r.ending = true
		k.do(obj.Name, func() error { return k.terminate(obj, r) })
	case obj.DeletionTimestamp == nil && obj.Spec.NodeName == "":
		k.next++
		node := k.s.w.Nodes[k.next%len(k.s.w.Nodes)].Name
		k.do(obj.Name, func() error { return k.place(obj, node) })
	case obj.DeletionTimestamp == nil && r == nil:
		r = &podRun{}
		k.pods[obj.Name] = r
		k.do(obj.Name, func() error { return k.start(obj, r) })
	case obj.DeletionTimestamp == nil && r.pod != nil && is(obj, corev1.PodReady) != (r.probe && gatesOpen(obj)):
		probe := r.probe
		k.do(obj.Name, func() error { return k.report(obj.Namespace, obj.Name, r.pod, probe) })
	}
}

// is reports whether a condition of a pod is true.
func is(obj *corev1.Pod, what corev1.PodConditionType) bool {
	return slices.ContainsFunc(obj.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == what && c.Status == corev1.ConditionTrue
	})
}

// gatesOpen reports whether all conditions are true that others set and that a pod needs to be ready.
func gatesOpen(obj *corev1.Pod) bool {
	return !slices.ContainsFunc(obj.Spec.ReadinessGates, func(g corev1.PodReadinessGate) bool { return !is(obj, g.ConditionType) })
}

// do works on a pod aside. An error is the test's, unless the test is over.
func (k *kubelet) do(name string, f func() error) {
	k.wg.Go(func() {
		if err := f(); err != nil && k.ctx.Err() == nil {
			k.s.t.Errorf("kubelet: pod %s: %v", name, err)
		}
	})
}

// patiently tries until the API server is back.
func (k *kubelet) patiently(f func() error) error {
	return retry.OnError(retry.DefaultBackoff, func(err error) bool {
		return k.ctx.Err() == nil && !apierrors.IsNotFound(err)
	}, f)
}

func (k *kubelet) place(obj *corev1.Pod, node string) error {
	return k.patiently(func() error {
		err := k.s.api.CoreV1().Pods(obj.Namespace).Bind(k.ctx, &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Name: obj.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}, metav1.CreateOptions{})
		if apierrors.IsConflict(err) { // bound already
			return nil
		}
		return err
	})
}

func (k *kubelet) start(obj *corev1.Pod, r *podRun) error {
	index, err := strconv.Atoi(obj.Spec.NodeName[len("node"):])
	if err != nil {
		return fmt.Errorf("node %s: %w", obj.Spec.NodeName, err)
	}
	p, err := k.s.w.AddPod(lab.PodSpec{Name: obj.Name, Node: index})
	if err != nil {
		return err
	}
	end, err := k.run(k.s.t, obj, p)
	if err != nil {
		return err
	}
	k.mu.Lock()
	r.pod, r.end = p, end
	k.mu.Unlock()
	return k.setReady(obj.Namespace, obj.Name, p, true)
}

// setReady changes what the readiness probe of a pod says, and reports it.
func (k *kubelet) setReady(namespace, name string, p *lab.Pod, ready bool) error {
	k.mu.Lock()
	k.pods[name].probe = ready
	k.mu.Unlock()
	return k.report(namespace, name, p, ready)
}

// report reports a pod as running, with what its readiness probe says: it is ready when its gates are open, too.
func (k *kubelet) report(namespace, name string, p *lab.Pod, probe bool) error {
	return k.patiently(func() error {
		obj, err := k.s.api.CoreV1().Pods(namespace).Get(k.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		now := metav1.Now()
		others := slices.DeleteFunc(obj.Status.Conditions, func(c corev1.PodCondition) bool {
			return !slices.ContainsFunc(obj.Spec.ReadinessGates, func(g corev1.PodReadinessGate) bool { return g.ConditionType == c.Type })
		})
		obj.Status = corev1.PodStatus{
			Phase: corev1.PodRunning, HostIP: p.Node.V4.String(), PodIP: p.V4.String(), StartTime: &now,
			PodIPs: []corev1.PodIP{{IP: p.V4.String()}, {IP: p.V6.String()}}, Conditions: others,
		}
		own := map[corev1.PodConditionType]bool{corev1.PodInitialized: true, corev1.PodScheduled: true,
			corev1.ContainersReady: probe, corev1.PodReady: probe && gatesOpen(obj)}
		for what, is := range own {
			c := corev1.PodCondition{Type: what, Status: corev1.ConditionFalse, LastTransitionTime: now}
			if is {
				c.Status = corev1.ConditionTrue
			}
			obj.Status.Conditions = append(obj.Status.Conditions, c)
		}
		_, err = k.s.api.CoreV1().Pods(namespace).UpdateStatus(k.ctx, obj, metav1.UpdateOptions{})
		return err
	})
}

// terminate ends a pod's application, after what it was asked is answered, and then the pod.
func (k *kubelet) terminate(obj *corev1.Pod, r *podRun) error {
	k.mu.Lock()
	p, end := r.pod, r.end
	k.mu.Unlock()
	if p == nil {
		return k.gone(obj)
	}
	k.mu.Lock()
	linger := k.linger
	k.mu.Unlock()
	if linger >= 0 {
		select {
		case <-time.After(linger):
		case <-k.ctx.Done():
			return nil
		}
		open, err := p.Finish(appPort, time.Minute)
		if err == nil && open > 0 {
			err = fmt.Errorf("%s has %d connections on port %d after a minute", p.Name, open, appPort)
		}
		if err != nil {
			return err
		}
	}
	end()
	if err := p.Remove(); err != nil {
		return err
	}
	return k.gone(obj)
}

// gone tells the API server that nothing is left of a pod.
func (k *kubelet) gone(obj *corev1.Pod) error {
	now := int64(0)
	return k.patiently(func() error {
		err := k.s.api.CoreV1().Pods(obj.Namespace).Delete(k.ctx, obj.Name, metav1.DeleteOptions{GracePeriodSeconds: &now,
			Preconditions: metav1.NewUIDPreconditions(string(obj.UID))})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		return err
	})
}

// setLinger changes linger for applications that are ended from now on.
func (k *kubelet) setLinger(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.linger = d
}

// createPod makes a pod that somebody placed.
func (s *stage) createPod(name string, labels map[string]string, n *lab.Node) {
	s.t.Helper()
	s.createPodOf(name, labels, podSpec(n.Name))
}

func (s *stage) createPodOf(name string, labels map[string]string, spec corev1.PodSpec) {
	s.t.Helper()
	_, err := s.api.CoreV1().Pods(s.namespace).Create(s.ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: spec,
	}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

// removePods ends the pods with the label app=NAME and waits until nothing is left of them.
func (s *stage) removePods(name string) {
	s.t.Helper()
	s.kubelet.setLinger(0)
	of, pods := metav1.ListOptions{LabelSelector: "app=" + name}, s.api.CoreV1().Pods(s.namespace)
	if err := pods.DeleteCollection(s.ctx, metav1.DeleteOptions{}, of); err != nil {
		s.t.Fatal(err)
	}
	lab.Eventually(s.t, time.Minute, "the pods of "+name+" are gone", func() error {
		list, err := pods.List(s.ctx, of)
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are left", len(list.Items))
		}
		return err
	})
}

func podSpec(node string) corev1.PodSpec {
	return corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "app", Image: "lab",
		Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: appPort}}}}}
}

// createService makes a Service of both families in the namespace of the test, unless it says otherwise.
func (s *stage) createService(svc *corev1.Service) *corev1.Service {
	s.t.Helper()
	made, err := s.tryService(svc)
	if err != nil {
		s.t.Fatal(err)
	}
	return made
}

// tryService is createService for other goroutines than the test's.
func (s *stage) tryService(svc *corev1.Service) (*corev1.Service, error) {
	both := corev1.IPFamilyPolicyRequireDualStack
	if svc.Spec.IPFamilyPolicy == nil && svc.Spec.Type != corev1.ServiceTypeExternalName {
		svc.Spec.IPFamilyPolicy = &both
	}
	if svc.Namespace == "" {
		svc.Namespace = s.namespace
	}
	return s.api.CoreV1().Services(svc.Namespace).Create(s.ctx, svc, metav1.CreateOptions{})
}

// clusterIP is a frontend of a Service, of its first family.
func clusterIP(svc *corev1.Service, port uint16) netip.AddrPort { return clusterIPs(svc, port)[0] }

// clusterIPs are the frontends of a Service on a port, one of each family.
func clusterIPs(svc *corev1.Service, port uint16) (all []netip.AddrPort) {
	for _, a := range svc.Spec.ClusterIPs {
		all = append(all, netip.AddrPortFrom(netip.MustParseAddr(a), port))
	}
	return all
}
