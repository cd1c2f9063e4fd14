package main

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
)

// nodes of the cluster, over which endpoints are spread; ours is the first.
const nodes = 500

func nodeName(i int) string { return fmt.Sprint("node-", i%nodes) }

// fill gives a Model a cluster as a source would.
func fill(m *cluster.Model, services, endpoints int) {
	for i := range services {
		m.SetService(service(i, corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}))
		m.SetSlice(webSlice(i, endpoints, 0))
	}
	m.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(0)}})
	m.SetSynced()
	m.SetComplete()
}

func service(i int, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("svc-", i)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: vip(i).String(), ClusterIPs: []string{vip(i).String()}, Ports: ports,
		},
	}
}

// webSlice is the slice of a web Service, with some endpoints more than it had at first.
func webSlice(i, endpoints, more int) *discoveryv1.EndpointSlice {
	s := slice(i, discoveryv1.EndpointPort{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)})
	for j := range endpoints {
		s.Endpoints = append(s.Endpoints, endpoint(i*endpoints+j, nodeName(i*endpoints+j)))
	}
	for j := range more {
		s.Endpoints = append(s.Endpoints, endpoint(1<<22+i*100+j, nodeName(1)))
	}
	return s
}

func slice(i int, ports ...discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	name := fmt.Sprint("svc-", i)
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name + "-abcde",
			Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       ports,
	}
}

func endpoint(i int, node string) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses: []string{pod(i).Addr().String()}, NodeName: &node,
		Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
	}
}

// dns is a Service as urgent as they come: everything in a cluster waits for names.
func dns(i int) (*corev1.Service, *discoveryv1.EndpointSlice) {
	svc := service(i, corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP},
		corev1.ServicePort{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP})
	s := slice(i, discoveryv1.EndpointPort{Name: new("dns"), Port: new(int32(53)), Protocol: new(corev1.ProtocolUDP)},
		discoveryv1.EndpointPort{Name: new("dns-tcp"), Port: new(int32(53)), Protocol: new(corev1.ProtocolTCP)})
	s.Endpoints = append(s.Endpoints, endpoint(1<<22-1, nodeName(1)), endpoint(1<<22-2, nodeName(2)))
	return svc, s
}
