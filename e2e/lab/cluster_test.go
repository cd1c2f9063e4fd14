package lab

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeWorld has nodes and pods on paper only, for tests that need no kernel.
func fakeWorld() (*World, *Pod) {
	n := &Node{Host: &Host{Name: "node1"}, PodCIDR4: netip.MustParsePrefix("10.244.1.0/24"), PodCIDR6: netip.MustParsePrefix("fd10:244:1::/64")}
	n.V4, n.V6 = wireAddrs(11)
	p := &Pod{Node: n, Host: &Host{Name: "pod-a",
		V4: netip.MustParseAddr("10.244.1.10"), V6: netip.MustParseAddr("fd10:244:1::10")}}
	return &World{Nodes: []*Node{n}}, p
}

func TestObjects(t *testing.T) {
	w, p := fakeWorld()
	s := Service{Name: "web", Type: "NodePort", ClusterIPs: []string{"fd00:96::5", "10.96.0.5"},
		Ports: []Port{{Name: "http", Port: 80, TargetPort: 8080, NodePort: 30080}},
		Spec:  map[string]any{"externalTrafficPolicy": "Local"}}
	v4, v6 := w.SlicesFor(s, p)
	if got, err := YAML(s); err != nil || got != serviceYAML {
		t.Errorf("%v\n%s", err, cmp.Diff(serviceYAML, got))
	}
	if got, err := YAML(v6); err != nil || got != sliceYAML {
		t.Errorf("%v\n%s", err, cmp.Diff(sliceYAML, got))
	}
	if got, err := YAML(v4); err != nil || !strings.Contains(got, "addressType: IPv4") || !strings.Contains(got, "- 10.244.1.10") {
		t.Errorf("%v\n%s", err, got)
	}
}

const serviceYAML = `apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: default
spec:
  clusterIP: fd00:96::5
  clusterIPs:
  - fd00:96::5
  - 10.96.0.5
  externalTrafficPolicy: Local
  internalTrafficPolicy: Cluster
  ipFamilies:
  - IPv6
  - IPv4
  ipFamilyPolicy: RequireDualStack
  ports:
  - name: http
    nodePort: 30080
    port: 80
    protocol: TCP
    targetPort: 8080
  selector:
    app: web
  sessionAffinity: None
  type: NodePort
status:
  loadBalancer: {}
`

const sliceYAML = `addressType: IPv6
apiVersion: discovery.k8s.io/v1
endpoints:
- addresses:
  - fd10:244:1::10
  conditions:
    ready: true
    serving: true
    terminating: false
  nodeName: node1
  targetRef:
    kind: Pod
    name: pod-a
    namespace: default
kind: EndpointSlice
metadata:
  labels:
    endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
    kubernetes.io/service-name: web
  name: web-ipv6
  namespace: default
ports:
- name: http
  port: 8080
  protocol: TCP
`

func TestCluster(t *testing.T) {
	w, p := fakeWorld()
	c := w.Cluster(t)
	s := Service{Name: "web", Namespace: "shop", ClusterIPs: []string{"10.96.0.5"}, Ports: []Port{{Port: 80}}}
	v4, v6 := w.SlicesFor(s, p)
	c.Apply(s, v4, v6)
	files := func() (names []string) {
		entries, err := os.ReadDir(c.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	want := []string{"endpointslice.shop.web-ipv4.yaml", "endpointslice.shop.web-ipv6.yaml", "nodes.yaml", "service.shop.web.yaml"}
	if diff := cmp.Diff(want, files()); diff != "" {
		t.Error(diff)
	}
	c.Delete(v4, v6, s)
	if diff := cmp.Diff([]string{"nodes.yaml"}, files()); diff != "" {
		t.Error(diff)
	}
	nodes, err := os.ReadFile(filepath.Join(c.Dir, "nodes.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"kind: Node", "name: node1", "address: 172.28.128.11", "address: fd28:128::11", "podCIDR: 10.244.1.0/24", "- fd10:244:1::/64"} {
		if !strings.Contains(string(nodes), text) {
			t.Errorf("no %q in nodes.yaml:\n%s", text, nodes)
		}
	}
	outside := &Cluster{Dir: filepath.Join(c.Dir, "missing")}
	if outside.Write("x.yaml", "") == nil || outside.Remove("x.yaml") == nil || outside.Apply(s) == nil {
		t.Error("no error from a cluster without a directory")
	}
}
