package cluster

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// autoscalerTaint is what the cluster autoscaler puts on a node that it is
// about to remove.
const autoscalerTaint = "ToBeDeletedByClusterAutoscaler"

func sanitiseNode(obj *corev1.Node) (Node, []Problem) {
	p := problems{object: "Node " + obj.Name}
	n := Node{
		Name:     obj.Name,
		Known:    true,
		Zone:     obj.Labels[corev1.LabelTopologyZone],
		Deleting: obj.DeletionTimestamp != nil,
		ToBeDeleted: slices.ContainsFunc(obj.Spec.Taints, func(t corev1.Taint) bool {
			return t.Key == autoscalerTaint
		}),
	}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for i, a := range obj.Status.Addresses {
			if a.Type != kind {
				continue
			}
			addr, fault := parseAddr(a.Address)
			if fault.reason != "" {
				p.add(fault.reason, fmt.Sprintf("status.addresses[%d]", i), "%s", fault.message)
			} else if !slices.Contains(n.Addrs, addr) { // internal and external may be the same
				n.Addrs = append(n.Addrs, addr)
			}
		}
	}
	cidrs := obj.Spec.PodCIDRs
	if len(cidrs) == 0 && obj.Spec.PodCIDR != "" {
		cidrs = []string{obj.Spec.PodCIDR}
	}
	n.PodCIDRs = p.prefixes(cidrs, "spec.podCIDRs")
	return n, p.list
}
