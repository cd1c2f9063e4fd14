package sync

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// balancer is a LoadBalancer with an address, made at some time.
func balancer(name, clusterIP, address string, created int64, ports ...int32) *corev1.Service {
	s := service(name, clusterIP, ports...)
	s.CreationTimestamp = metav1.Unix(created, 0)
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: address}}
	return s
}

// node gives a Service's ports node ports.
func nodePorts(s *corev1.Service, ports ...int32) *corev1.Service {
	if s.Spec.Type == corev1.ServiceTypeClusterIP {
		s.Spec.Type = corev1.ServiceTypeNodePort
	}
	for i, p := range ports {
		s.Spec.Ports[i].NodePort = p
	}
	return s
}
