package main

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

const thisNode = "node1"

var (
	nodeAddr = netip.MustParseAddr("172.28.128.11")
	// cartKey and cartNodePort are frontends of shop/cart, cartLeaves an endpoint of it that leaves while two connections of each last.
	cartKey      = ipvs.Key{Addr: netip.MustParseAddr("10.96.0.81"), Port: 80, Proto: ipvs.TCP}
	cartNodePort = ipvs.Key{Addr: nodeAddr, Port: 30081, Proto: ipvs.TCP}
	cartLeaves   = netip.MustParseAddrPort("10.244.3.81:8080")
)

// endpoint is one of a Service.
type endpoint struct {
	addr, node         string
	ready, terminating bool
}

// world is what the cluster has.
type world struct{ cart *corev1.Service }

// newWorld fills a Model: some Services that look like somebody's, and then as many as it takes.
func newWorld(m *cluster.Model, services int) *world {
	m.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: thisNode}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddr.String()}}}})
	w := &world{}
	named := w.known(m)
	for i := range services - named {
		add(m, web(fmt.Sprintf("team-%02d", i%40), fmt.Sprintf("service-%05d", i), fmt.Sprintf("10.%d.%d.%d", 100+i/60000, i/240%250, i%240+1)), someEndpoints(i)...)
	}
	m.SetSynced()
	m.SetComplete()
	return w
}

// someEndpoints are two that are ready and, of every seventh Service, one that is not; every 97th has none.
func someEndpoints(i int) (list []endpoint) {
	if i%97 == 5 {
		return nil
	}
	at := func(node int) string { return fmt.Sprintf("10.%d.%d.%d", 200+node, i/240%250, i%240+1) }
	list = []endpoint{{at(1), fmt.Sprintf("node%d", i%9+1), true, false}, {at(2), fmt.Sprintf("node%d", i%8+2), true, false}}
	if i%7 == 0 {
		list = append(list, endpoint{at(3), "node3", false, false})
	}
	return list
}

// known are Services that look like somebody's; it gives how many they are.
func (w *world) known(m *cluster.Model) int {
	type known struct {
		svc *corev1.Service
		eps []endpoint
	}
	ready := func(last int, nodes ...int) (list []endpoint) {
		for _, n := range nodes {
			list = append(list, endpoint{fmt.Sprintf("10.244.%d.%d", n, last), fmt.Sprintf("node%d", n), true, false})
		}
		return list
	}
	dns := web("kube-system", "kube-dns", "10.96.0.10")
	dns.Spec.Ports = []corev1.ServicePort{{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, {Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP}}
	edge := exposed(web("shop", "edge", "10.96.0.80"), corev1.ServiceTypeLoadBalancer, 30080, "203.0.113.80")
	edge.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyTypeLocal
	grafana := exposed(web("monitoring", "grafana", "10.96.0.60"), corev1.ServiceTypeNodePort, 30300, "")
	partner := web("billing", "partner-api", "10.96.0.42")
	partner.Spec.ExternalIPs = []string{"198.51.100.9"}
	w.cart = exposed(web("shop", "cart", "10.96.0.81"), corev1.ServiceTypeNodePort, 30081, "")
	list := []known{
		{web("billing", "invoices", "10.96.0.41"), ready(41, 1, 2)}, {partner, ready(42, 2, 3)},
		{web("billing", "reports", "10.96.0.43"), nil}, {dns, ready(10, 1, 4)}, {grafana, ready(60, 3)},
		{web("monitoring", "prometheus", "10.96.0.61"), ready(61, 2)},
		{w.cart, append(ready(81, 1, 2, 3), endpoint{"10.244.4.81", "node4", false, false})},
		{web("shop", "catalogue", "10.96.0.82"), ready(82, 1, 2, 3, 4)}, {edge, ready(80, 2, 3)},
		{web("shop", "payments", "10.96.0.83"), ready(83, 1, 4)},
	}
	for _, k := range list {
		add(m, k.svc, k.eps...)
	}
	return len(list)
}

// roll replaces an endpoint of shop/cart, as a rolling update does.
func (w *world) roll(m *cluster.Model) {
	m.SetSlice(slice(w.cart, endpoint{"10.244.1.81", "node1", true, false}, endpoint{"10.244.2.81", "node2", true, false},
		endpoint{cartLeaves.Addr().String(), "node3", false, true}, endpoint{"10.244.3.94", "node3", true, false}, endpoint{"10.244.4.81", "node4", false, false}))
}

func add(m *cluster.Model, svc *corev1.Service, eps ...endpoint) {
	m.SetService(svc)
	m.SetSlice(slice(svc, eps...))
}

func web(namespace, name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}
}

func exposed(svc *corev1.Service, by corev1.ServiceType, port int32, at string) *corev1.Service {
	svc.Spec.Type, svc.Spec.Ports[0].NodePort = by, port
	if at != "" {
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: at}}
	}
	return svc
}

func slice(svc *corev1.Service, eps ...endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name + "-x7k2p",
		Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}}, AddressType: discoveryv1.AddressTypeIPv4}
	for _, p := range svc.Spec.Ports {
		target := int32(8080)
		if p.Port == 53 {
			target = 53
		}
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new(p.Name), Port: new(target), Protocol: new(p.Protocol)})
	}
	for _, e := range eps {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{e.addr}, NodeName: new(e.node),
			Conditions: discoveryv1.EndpointConditions{Ready: new(e.ready), Serving: new(e.ready || e.terminating), Terminating: new(e.terminating)}})
	}
	return s
}
