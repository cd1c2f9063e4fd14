// Package controlplane holds the tests with a real control plane: Services come through the API server, endpoints
// from the real controllers, and the nodes' agents read them over the network. The lab plays kubelet and scheduler.
package controlplane

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// soon is how long a change may take from the API to the kernel of an emulated machine.
const soon = 30 * time.Second

// planeInfo is what lab e2e tells of the control plane.
type planeInfo struct {
	Port       uint16 `json:"port"`
	Control    uint16 `json:"control"`
	Kubeconfig string `json:"kubeconfig"`
	Release    string `json:"release"`
}

// readPlane fails where there is no control plane: lab e2e alone runs these tests.
func readPlane(t testing.TB) planeInfo {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(os.Getenv("LAB_DIR"), "plane.json"))
	if err != nil {
		t.Fatalf("these tests need the control plane that `lab e2e` starts: %v", err)
	}
	var p planeInfo
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// stage is a world whose wire leads to the control plane.
type stage struct {
	t         *testing.T
	ctx       context.Context
	w         *lab.World
	plane     planeInfo
	config    *rest.Config
	api       kubernetes.Interface // as an administrator
	namespace string
	gate      *gate
	agents    []*lab.Agent
	sources   [][]string // each agent's way to the API server
	audited   int        // bytes of the audit log that are older than the test
	kubelet   *kubelet
}

// newStage builds the world, has the API server answer on its wire, and makes the Node objects and a namespace.
func newStage(t *testing.T, nodes int) *stage {
	t.Helper()
	s := &stage{t: t, ctx: t.Context(), w: lab.New(t, lab.Config{Nodes: nodes, Pods: []lab.PodSpec{}})}
	s.plane = readPlane(t)
	var err error
	if s.config, err = clientcmd.RESTConfigFromKubeConfig([]byte(s.plane.Kubeconfig)); err != nil {
		t.Fatal(err)
	}
	s.config.ContentType = "application/vnd.kubernetes.protobuf"
	s.config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	s.config.QPS, s.config.Burst = -1, -1
	s.config.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return wire.DialHost(ctx, s.plane.Port) }
	if s.api, err = kubernetes.NewForConfig(s.config); err != nil {
		t.Fatal(err)
	}
	s.audited = len(s.switchPlane(http.MethodGet, "/audit", nil))
	s.gate = openGate(t, s.w, s.plane.Port)
	if err := s.routePods(); err != nil {
		t.Fatal(err)
	}
	for _, n := range s.w.Nodes {
		s.createNode(n)
	}
	s.createNamespace()
	return s
}

// routePods tells the wire the way to the pods: the API server answers those that ask it themselves.
func (s *stage) routePods() error {
	nl := s.w.Wire.Netlink()
	br0, err := nl.LinkByName("br0")
	if err != nil {
		return err
	}
	for _, n := range s.w.Nodes {
		for p, via := range map[netip.Prefix]netip.Addr{n.PodCIDR4: n.V4, n.PodCIDR6: n.V6} {
			dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
			if err := nl.RouteAdd(&netlink.Route{LinkIndex: br0.Attrs().Index, Dst: dst, Gw: via.AsSlice()}); err != nil {
				return fmt.Errorf("route of the wire to the pods of %s: %w", n.Name, err)
			}
		}
	}
	return nil
}

// createNamespace makes a namespace for this test, and waits for its default ServiceAccount, without which there
// can be no pods. It goes with all that is in it before the next test begins.
func (s *stage) createNamespace() {
	s.t.Helper()
	ns, err := s.api.CoreV1().Namespaces().Create(s.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.namespace = ns.Name
	s.t.Cleanup(func() { s.removeNamespace() })
	lab.Eventually(s.t, soon, "the namespace has its default ServiceAccount", func() error {
		_, err := s.api.CoreV1().ServiceAccounts(s.namespace).Get(s.ctx, "default", metav1.GetOptions{})
		return err
	})
}

func (s *stage) removeNamespace() {
	ctx, now := context.Background(), int64(0)
	_ = s.api.CoreV1().Pods(s.namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
	if err := s.api.CoreV1().Namespaces().Delete(ctx, s.namespace, metav1.DeleteOptions{}); err != nil {
		s.t.Errorf("remove the namespace of the test: %v", err)
	}
	lab.Eventually(s.t, time.Minute, "the namespace is gone", func() error {
		// Pods that a controller made meanwhile have no kubelet that ends them.
		_ = s.api.CoreV1().Pods(s.namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
		ns, err := s.api.CoreV1().Namespaces().Get(ctx, s.namespace, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return err
		}
		return fmt.Errorf("it is %s: %v", ns.Status.Phase, ns.Status.Conditions)
	})
}

// createNode makes the object of a node of the world, or one anew, as its kubelet would.
func (s *stage) createNode(n *lab.Node) {
	s.t.Helper()
	zero := int64(0)
	err := s.api.CoreV1().Nodes().Delete(s.ctx, n.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero})
	if err != nil && !apierrors.IsNotFound(err) {
		s.t.Fatal(err)
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{corev1.LabelHostname: n.Name}},
		Spec:       corev1.NodeSpec{PodCIDR: n.PodCIDR4.String(), PodCIDRs: []string{n.PodCIDR4.String(), n.PodCIDR6.String()}},
	}
	if node, err = s.api.CoreV1().Nodes().Create(s.ctx, node, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
	node.Status = corev1.NodeStatus{
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: n.V4.String()}, {Type: corev1.NodeInternalIP, Address: n.V6.String()},
			{Type: corev1.NodeHostName, Address: n.Name},
		},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
			LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}},
	}
	if _, err = s.api.CoreV1().Nodes().UpdateStatus(s.ctx, node, metav1.UpdateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// proxyAccount makes the ServiceAccount of kube-proxy as kubeadm does: the API server's own role system:node-proxier
// and nothing else.
func (s *stage) proxyAccount() {
	s.t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "kube-proxy"}}
	_, err := s.api.CoreV1().ServiceAccounts(metav1.NamespaceSystem).Create(s.ctx, account, metav1.CreateOptions{})
	s.created(err)
	s.bind("kubeadm:node-proxier", "system:node-proxier", metav1.NamespaceSystem, "kube-proxy")
}

// bind gives a ServiceAccount a ClusterRole.
func (s *stage) bind(name, role, namespace, account string) {
	s.t.Helper()
	_, err := s.api.RbacV1().ClusterRoleBindings().Create(s.ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: account}},
	}, metav1.CreateOptions{})
	s.created(err)
}

// created accepts what another test has made before.
func (s *stage) created(err error) {
	s.t.Helper()
	if err != nil && !apierrors.IsAlreadyExists(err) {
		s.t.Fatal(err)
	}
}

// token is one of a ServiceAccount, for an hour.
func (s *stage) token(namespace, account string) string {
	s.t.Helper()
	hour := int64(3600)
	r, err := s.api.CoreV1().ServiceAccounts(namespace).CreateToken(s.ctx, account,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &hour}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Status.Token
}

// kubeconfig writes a kubeconfig as kubeadm's ConfigMap of kube-proxy has it, for a ServiceAccount.
func (s *stage) kubeconfig(namespace, account string, server netip.AddrPort) string {
	s.t.Helper()
	dir := s.t.TempDir()
	token := filepath.Join(dir, "token")
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: default
  cluster:
    server: https://%s
    certificate-authority-data: %s
users:
- name: default
  user: {tokenFile: %s}
contexts:
- name: default
  context: {cluster: default, user: default, namespace: default}
current-context: default
`, server, base64.StdEncoding.EncodeToString(s.config.CAData), token)
	file := filepath.Join(dir, "kubeconfig.conf")
	for name, text := range map[string]string{token: s.token(namespace, account), file: config} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	return file
}

// server is the API server as the nodes reach it.
func (s *stage) server() netip.AddrPort { return netip.AddrPortFrom(s.w.Wire.V4, s.plane.Port) }

// switchPlane uses a switch of the control plane, see package plane.
func (s *stage) switchPlane(method, path string, body io.Reader) []byte {
	s.t.Helper()
	b, err := s.trySwitch(method, path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func (s *stage) trySwitch(method, path string, body io.Reader) ([]byte, error) {
	c := &http.Client{Timeout: 5 * time.Minute, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return wire.DialHost(ctx, s.plane.Control) }}}
	req, err := http.NewRequest(method, "http://plane"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the control plane's %s: %s: %s", path, resp.Status, b)
	}
	return b, err
}

// stopAPI ends the API server; it is back when the test ends, whatever became of it.
func (s *stage) stopAPI(how string) {
	s.t.Helper()
	s.switchPlane(http.MethodPost, how, nil)
	s.t.Cleanup(func() {
		if _, err := s.trySwitch(http.MethodPost, "/start", nil); err != nil && !strings.Contains(err.Error(), "runs already") {
			s.t.Error(err)
		}
	})
}

func (s *stage) startAPI() {
	s.t.Helper()
	s.switchPlane(http.MethodPost, "/start", nil)
}

// gate is where the wire meets the API server.
type gate struct {
	ln    net.Listener
	port  uint16
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// openGate listens on the wire and hands connections on to the host.
func openGate(t *testing.T, w *lab.World, port uint16) *gate {
	t.Helper()
	g := &gate{port: port, conns: map[net.Conn]struct{}{}}
	err := w.Wire.Do(func() (err error) {
		g.ln, err = net.Listen("tcp4", netip.AddrPortFrom(w.Wire.V4, port).String())
		return err
	})
	if err != nil {
		t.Fatalf("listen on the wire: %v", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := g.ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				wg.Go(func() { g.pass(c) })
			}
		}
	})
	t.Cleanup(func() {
		g.ln.Close()
		g.drop()
		wg.Wait()
	})
	return g
}

// pass carries a connection. When the API server is not there, the caller is reset, as it would be by its kernel.
func (g *gate) pass(c net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	to, err := wire.DialHost(ctx, g.port)
	if err != nil {
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
		return
	}
	g.add(c, to)
	wire.Splice(c, to)
	g.mu.Lock()
	delete(g.conns, c)
	delete(g.conns, to)
	g.mu.Unlock()
}

// add has drop close connections, too.
func (g *gate) add(conns ...net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range conns {
		g.conns[c] = struct{}{}
	}
}

// drop ends all connections, as the end of the API server's machine would.
func (g *gate) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		c.Close()
	}
}
