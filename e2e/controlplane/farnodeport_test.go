package controlplane

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// TestFarNodePortOfAPolicyLocal asks what upstream's spec "should fallback to local terminating endpoints when there are no
// ready endpoints with externalTrafficPolicy=Local" asks, of a Service whose only endpoint ends on node1: pods of node1 and
// node2 reach it by node1's node port, and a pod of node1 by node2's does not. The last of it depends on the CNI: where pods
// are masqueraded on their way to another node's address node2 sees node1, and nobody is served. Where they keep their
// address (ipMasq false, as in the lab) node2 sees a pod of the cluster, for which all endpoints count. Here it is served.
// kube-proxy's rules lead it to the endpoint as well, but do not masquerade it, so that the answer goes past node2 and is
// never understood (LAB_PROXY=kube-proxy, mode iptables: it times out). Upstream's spec, which wants no answer, is content with that.
func TestFarNodePortOfAPolicyLocal(t *testing.T) {
	modes := [][]string{nil}
	if realKubeProxy() {
		modes = [][]string{{"--proxy-mode=iptables"}, {"--proxy-mode=nftables"}}
	}
	for _, args := range modes {
		t.Run(strings.Join(append(args, "proxy"), " "), func(t *testing.T) { farNodePort(t, args) })
	}
}

func farNodePort(t *testing.T, args []string) {
	s := newStage(t, 2)
	s.startKubelet().setLinger(10 * time.Minute) // the end of the test is theirs
	s.startAgents(args...)
	svc := web("ending")
	svc.Spec.Type, svc.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyLocal
	svc = s.createService(svc)
	s.createPod("ending", map[string]string{"app": "ending"}, s.w.Node(1))
	ending := s.pods(s.namespace, "ending", 1)[0]
	near := s.askerOn(1)
	far := s.askerOn(2)
	grace := int64(600)
	if err := s.api.CoreV1().Pods(s.namespace).Delete(s.ctx, ending.Name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		t.Fatal(err)
	}
	s.wantTerminating(svc)
	port := uint16(svc.Spec.Ports[0].NodePort)
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			at := func(node int) netip.AddrPort { return netip.AddrPortFrom(s.w.Node(node).Addr(family), port) }
			// Each node hears of the endpoint in its own time.
			reach := func(t *testing.T, name string, from *lab.Pod, node int) {
				t.Helper()
				lab.Eventually(t, soon, name+" is answered", func() error {
					if r := from.Ask(at(node)); r.Verdict != lab.Answered {
						return fmt.Errorf("%s", r)
					}
					return nil
				})
				hits(t, client{name, from.Host}, at(node), ending)
			}
			reach(t, "pod of node1", near, 1)
			reach(t, "pod of node2", far, 1)
			t.Run("pods keep their address", func(t *testing.T) {
				if !realKubeProxy() {
					reach(t, "pod of node1 by node2", near, 2)
					return
				}
				for range 5 {
					if r := near.Ask(at(2), lab.Timeout(3*time.Second)); r.Verdict != lab.TimedOut {
						t.Errorf("a pod of node1 by node2: %s; its answer was not to find the way back", r)
					}
				}
			})
			t.Run("pods are masqueraded", func(t *testing.T) {
				s.masqueradePods(t, s.w.Node(1), family)
				for range 5 { // as often as upstream's
					if r := near.Ask(at(2), lab.Timeout(5*time.Second)); r.Verdict == lab.Answered {
						t.Errorf("a pod of node1 by node2, which has no endpoint: %s", r)
					}
				}
				hits(t, client{"pod of node2", far.Host}, at(1), ending)
			})
		})
	}
}

// askerOn is a pod of a node that is in no Service.
func (s *stage) askerOn(node int) *lab.Pod {
	s.t.Helper()
	pod, err := s.w.AddPod(lab.PodSpec{Name: fmt.Sprintf("asker-%d", node), Node: node, Number: 200})
	if err != nil {
		s.t.Fatal(err)
	}
	return pod
}

// masqueradePods has a node do what a CNI with ipMasq does: whatever pods send out of the pods' network, and so to another
// node's address, leaves as the node's own.
func (s *stage) masqueradePods(t *testing.T, n *lab.Node, family int) {
	t.Helper()
	ip, pods := "ip", lab.ClusterCIDR4
	if family == 6 {
		ip, pods = "ip6", lab.ClusterCIDR6
	}
	run := func(script string) error {
		return n.Do(func() error {
			cmd := exec.Command("nft", "-f", "-")
			cmd.Stdin = strings.NewReader(script)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("nft: %w: %s", err, out)
			}
			return nil
		})
	}
	if err := run(fmt.Sprintf("table %[1]s cni { chain post { type nat hook postrouting priority srcnat; oifname eth0 %[1]s saddr %[2]s %[1]s daddr != %[2]s masquerade; }; }", ip, pods)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := run("delete table " + ip + " cni"); err != nil {
			t.Error(err)
		}
	})
}
