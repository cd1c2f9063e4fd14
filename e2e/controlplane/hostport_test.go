package controlplane

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// hostPort is the same for all pods of TestUpstreamHostPort, outside of the range of node ports.
const hostPort = 54323

// TestUpstreamHostPort: three pods of one node with one host port, on different addresses of the node and for different
// protocols. The CNI plugin portmap programs them, as with a container runtime, beside the agent: each is reached at its
// own address over its own protocol, and their Service is, too, by ClusterIP and by node port.
func TestUpstreamHostPort(t *testing.T) {
	s := newStage(t, 2)
	s.startKubelet().run = serveHostPorts
	s.startAgents()
	svc := web("hosted")
	svc.Spec.Type = corev1.ServiceTypeNodePort
	svc = s.createService(svc)
	node := s.w.Node(1)
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			other := netip.MustParseAddr("127.0.0.1")
			if family == 6 {
				other = node.Gateway6 // the kernel routes nothing from ::1 to a pod
			}
			ofThree := map[string]hosted{
				fmt.Sprintf("other%d", family): {corev1.ProtocolTCP, netip.AddrPortFrom(other, hostPort)},
				fmt.Sprintf("tcp%d", family):   {corev1.ProtocolTCP, netip.AddrPortFrom(node.Addr(family), hostPort)},
				fmt.Sprintf("udp%d", family):   {corev1.ProtocolUDP, netip.AddrPortFrom(node.Addr(family), hostPort)},
			}
			for name, h := range ofThree {
				s.createHostPort(name, h)
			}
			pods := s.pods(s.namespace, "hosted", 3)
			s.wantHostPorts(t, ofThree)
			for _, to := range []netip.AddrPort{clusterIPs(svc, 80)[family/2-2], netip.AddrPortFrom(node.Addr(family), uint16(svc.Spec.Ports[0].NodePort))} {
				lab.Eventually(t, soon, fmt.Sprintf("%s serves %s", node.Name, to), func() error {
					if got, err := reals(node, to); err != nil || len(got) != len(pods) {
						return fmt.Errorf("by %v: %w", got, err)
					}
					return nil
				})
				for _, c := range s.clients() {
					hits(t, c, to, pods...)
				}
			}
			s.wantHostPorts(t, ofThree) // still
			s.removePods("hosted")
		})
	}
}

// hosted is a host port.
type hosted struct {
	protocol corev1.Protocol
	at       netip.AddrPort
}

// wantHostPorts asks each pod at its host port: the node does, and where the address is not its own alone the client
// outside, too.
func (s *stage) wantHostPorts(t *testing.T, pods map[string]hosted) {
	t.Helper()
	for name, h := range pods {
		for _, c := range []client{{"the node", s.w.Node(1).Host}, {"outside", s.w.Client}} {
			if c.Host == s.w.Client && !lab.WireCIDR4.Contains(h.at.Addr()) && !lab.WireCIDR6.Contains(h.at.Addr()) {
				continue
			}
			ask := c.Ask
			if h.protocol == corev1.ProtocolUDP {
				ask = c.AskUDP
			}
			if r := ask(h.at); r.Pod != name {
				t.Errorf("%s asks %s over %s: %s; want %s", c.name, h.at, h.protocol, r, name)
			}
		}
	}
}

// createHostPort makes a pod on node1 with the host port.
func (s *stage) createHostPort(name string, h hosted) {
	s.t.Helper()
	spec := podSpec(s.w.Node(1).Name)
	ports := &spec.Containers[0].Ports
	if h.protocol != corev1.ProtocolTCP { // else it is the one that is there
		*ports = append([]corev1.ContainerPort{{Name: "hosted", Protocol: h.protocol, ContainerPort: appPort}}, *ports...)
	}
	(*ports)[0].HostPort, (*ports)[0].HostIP = hostPort, h.at.Addr().String()
	s.createPodOf(name, map[string]string{"app": "hosted"}, spec)
}

// serveHostPorts is an application over TCP and UDP, to which portmap leads what the pod's host ports get.
func serveHostPorts(t testing.TB, obj *corev1.Pod, p *lab.Pod) (func(), error) {
	end, err := p.ServeHTTP(appPort)
	if err != nil {
		return nil, err
	}
	endUDP, err := p.ServeUDP(p.Name, appPort)
	if err != nil {
		return nil, err
	}
	if err := portmap("ADD", obj, p); err != nil {
		return nil, err
	}
	return func() {
		if err := portmap("DEL", obj, p); err != nil {
			t.Error(err)
		}
		end()
		endUDP()
	}, nil
}

// portmap calls the plugin on the pod's node as a container runtime does, once the pod has its addresses.
func portmap(command string, obj *corev1.Pod, p *lab.Pod) error {
	var mappings []map[string]any
	for _, c := range obj.Spec.Containers {
		for _, port := range c.Ports {
			if port.HostPort != 0 {
				mappings = append(mappings, map[string]any{"hostPort": port.HostPort, "containerPort": port.ContainerPort,
					"protocol": strings.ToLower(string(port.Protocol)), "hostIP": port.HostIP})
			}
		}
	}
	config, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": "lab", "type": "portmap", "backend": "nftables",
		"runtimeConfig": map[string]any{"portMappings": mappings},
		"prevResult": map[string]any{"cniVersion": "1.0.0", "interfaces": []any{map[string]any{"name": "eth0", "sandbox": "pod"}},
			"ips": []any{map[string]any{"address": p.V4.String() + "/24", "interface": 0}, map[string]any{"address": p.V6.String() + "/64", "interface": 0}}},
	})
	if err != nil {
		return err
	}
	var out bytes.Buffer
	err = p.Node.Do(func() error {
		cmd := exec.Command(filepath.Join(os.Getenv("LAB_DIR"), "portmap"))
		// It has no need of the pod's namespace, and the node's is the only one with a name.
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+string(obj.UID), "CNI_IFNAME=eth0", "CNI_PATH=/",
			"CNI_NETNS=/proc/thread-self/ns/net", "CNI_NETNS_OVERRIDE=true")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(config), &out, &out
		return cmd.Run()
	})
	if err != nil {
		return fmt.Errorf("portmap %s on %s for pod %s: %w: %s", command, p.Node.Name, p.Name, err, out.Bytes())
	}
	return nil
}
