package preview

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// podRanges are those of the scenes' clusters.
var podRanges = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd10:244::/32")}

// ground is what packets are asked of.
func (s *scene) ground(t *testing.T) Ground {
	t.Helper()
	return Input{Node: thisNode, Start: s.rehearse(t), Services: s.model.Services(), Clients: s.clients, Asking: s.model.Asking}.Ground()
}

// ask asks what becomes of a packet.
func (s *scene) ask(t *testing.T, question string) *Answer {
	t.Helper()
	q, err := ParseQuestion([]string{question})
	if err != nil {
		t.Fatal(err)
	}
	return AnswerPacket(s.ground(t), q)
}

// shops is a cluster with something of everything, served by an agent.
func shops(t *testing.T) *scene {
	t.Helper()
	s := newScene()
	s.kernel.Node.Subnets = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	s.service("default/web", []string{"10.96.0.80", "fd00:96::80"}, func(svc *corev1.Service) {
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To[int32](10800)}}
	}, "10.244.1.10@node1", "10.244.2.10@node2", "fd10:244:1::10@node1")
	s.service("default/legacy", []string{"10.96.0.81"}, func(svc *corev1.Service) { svc.Spec.ExternalIPs = []string{"198.51.100.9"} }, "10.244.2.10@node2")
	s.service("shop/edge", []string{"10.96.0.82"}, func(svc *corev1.Service) {
		local(svc)
		svc.Spec.Ports[0].NodePort = 30082
		svc.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24", "10.244.0.0/16"}
		svc.Spec.HealthCheckNodePort = 31000
	}, "10.244.1.11@node1", "10.244.2.11@node2")
	s.service("shop/far", []string{"10.96.0.84"}, func(svc *corev1.Service) {
		local(svc)
		svc.Status.LoadBalancer.Ingress[0].IP = "203.0.113.84"
	}, "10.244.2.12@node2")
	s.service("shop/rival", []string{"10.96.0.85"}, func(svc *corev1.Service) {
		local(svc)
		svc.Status.LoadBalancer.Ingress[0].IP = "203.0.113.84" // far's, which is before it by its name
	}, "10.244.1.12@node1")
	s.service("shop/idle", []string{"10.96.0.83"}, nil)
	s.start(t)
	return s
}

// B73: a packet is explained: each kind of client and of address, and each verdict.
func TestB73ExplainPacket(t *testing.T) {
	s := shops(t)
	for name, c := range map[string]struct {
		question string
		verdict  Verdict
		code     string
	}{
		"served":      {"10.244.1.10 to 10.96.0.80:80", Served, ""},
		"ipv6":        {"node -> [fd00:96::80]:80", Served, ""},
		"redirected":  {"10.244.2.10 to 203.0.113.81:80/TCP", Served, ""},
		"outside":     {"198.51.100.7 to 203.0.113.81:80", Served, ""},
		"node-port":   {"10.244.2.10 to 192.0.2.1:30082", Served, ""},
		"no-port":     {"198.51.100.7 to 203.0.113.81:443", Refused, "IPX0301"},
		"target-port": {"10.244.1.10 to 10.96.0.80:8080", Refused, "IPX0301"},
		"udp":         {"10.244.1.10 to 10.96.0.80:80/udp", Refused, "IPX0301"},
		"idle":        {"10.244.1.10 to 10.96.0.83:80", Refused, "IPX0302"},
		"no-local":    {"198.51.100.7 to 203.0.113.84:80", Dropped, "IPX0303"},
		"no-range":    {"192.0.2.200 to 203.0.113.81:80", Dropped, "IPX0304"},
		"nobodys":     {"10.244.1.10 to 198.51.100.77:80", Passes, "IPX0305"},
		"own-port":    {"198.51.100.7 to 192.0.2.1:22", Passes, "IPX0306"},
		"pod":         {"10.244.1.10 to 10.244.2.10:8080", Passes, "IPX0307"},
		"loopback":    {"node to 127.0.0.1:30082", Passes, "IPX0308"},
		"check":       {"198.51.100.7 to 203.0.113.81:31000", Passes, "IPX0309"},
		"contested":   {"10.244.1.10 to 203.0.113.84:80", Served, ""},
		"forbidden":   {"198.51.100.7 to 198.51.100.9:80", Passes, "IPX0203"},
	} {
		a := s.ask(t, c.question)
		golden(t, "packet-"+name+".txt", a.Text())
		if a.Verdict != c.verdict || a.Code != c.code || !a.Kernel.Agrees {
			t.Errorf("%s: %s %s, want %s %s; the kernel agrees: %t", c.question, a.Verdict, a.Code, c.verdict, c.code, a.Kernel.Agrees)
		}
		if inOrder := c.verdict == Served || c.verdict == Passes && c.code != "IPX0203"; a.InOrder() != inOrder {
			t.Errorf("%s: in order %t", c.question, a.InOrder())
		}
		for line := range strings.Lines(a.Text()) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > Width {
				t.Errorf("%d columns: %s", n, line)
			}
		}
	}
	b, err := json.MarshalIndent(s.ask(t, "10.244.2.10 to 192.0.2.1:30082"), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "packet-node-port.json", string(b)+"\n")
}

// B73: where the kernel is not as it is to be, the answer says what becomes of the packet now, and what is to be written.
func TestB73ExplainPacketKernelDiffers(t *testing.T) {
	s := shops(t)
	web := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.80"), Port: 80, Proto: ipvs.TCP}
	delete(s.kernel.Servers, web)
	a := s.ask(t, "10.244.1.10 to 10.96.0.80:80")
	golden(t, "packet-kernel-differs.txt", a.Text())
	if a.Verdict != Served || a.Kernel.Agrees || a.Kernel.Verdict != Passes || a.InOrder() || len(a.Kernel.Writes) != 3 {
		t.Errorf("without its virtual server: %+v", a.Kernel)
	}
	if other := s.ask(t, "198.51.100.7 to 203.0.113.81:80"); !other.Kernel.Agrees {
		t.Errorf("another Service's packet is not concerned: %+v", other.Kernel)
	}
	s.server("172.16.0.1:443", false, "wlc", "172.16.1.1:443")
	if a := s.ask(t, "node to 172.16.0.1:443"); a.Code != "IPX0310" || a.Kernel.Verdict != Served {
		t.Errorf("another program's virtual server: %s, %+v", a.Text(), a.Kernel)
	}
	fresh := newScene()
	fresh.service("default/web", []string{"10.96.0.80"}, nil, "10.244.1.10@node1")
	if a := fresh.ask(t, "node to 10.96.0.80:80"); a.Kernel.Agrees || a.Kernel.Verdict != Passes || len(a.Kernel.Writes) < 5 {
		t.Errorf("before a start: %s", a.Text())
	}
}

// B73: questions in all their forms, and what is said of those that are none.
func TestB73PacketQuestions(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.1 -> 10.96.0.10:53/udp":    "10.0.0.1 -> 10.96.0.10:53/udp",
		"10.0.0.1->10.96.0.10:53":          "10.0.0.1 -> 10.96.0.10:53/tcp",
		"10.0.0.1|10.96.0.10:53/UDP":       "10.0.0.1 -> 10.96.0.10:53/udp",
		"10.0.0.1|to|10.96.0.10:53/sctp":   "10.0.0.1 -> 10.96.0.10:53/sctp",
		"10.0.0.1|->|10.96.0.10:53":        "10.0.0.1 -> 10.96.0.10:53/tcp",
		"node TO 10.96.0.10:53":            "node -> 10.96.0.10:53/tcp",
		"[fd10::7] to [fd00:96::10]:53":    "fd10::7 -> [fd00:96::10]:53/tcp",
		"fd10::7|[fd00:96::10]:53/udp":     "fd10::7 -> [fd00:96::10]:53/udp",
		"Node|[fd00:96::10]:65535":         "node -> [fd00:96::10]:65535/tcp",
		"10.0.0.1|-":                       "put the question in quotes, or say to",
		"10.0.0.1 to":                      "are not a client and an address",
		"10.0.0.1 to 10.96.0.10":           "10.96.0.10 has no port",
		"10.0.0.1 to fd00:96::10:53":       "without brackets: [fd00:96::10:53]:80",
		"10.0.0.1 to 10.96.0.10:0":         `the port "0" of "10.96.0.10:0" is no number from 1 to 65535`,
		"10.0.0.1 to 10.96.0.10:http":      "is no number from 1 to 65535",
		"10.0.0.1 to 10.96.0.10:65536":     "is no number from 1 to 65535",
		"10.0.0.1 to 10.96.0.10:53/icmp":   `the protocol "icmp"`,
		"10.0.0.1 to kubernetes:443":       "is no address and port",
		"10.0.0.1 to [10.96.0.10]:53":      "is no address and port",
		"10.0.0.1 to [fd00::1:53":          "is no address and port",
		"10.0.0.1:1234 to 10.96.0.10:53":   "has a port, by which nothing is decided",
		"pod-a to 10.96.0.10:53":           `"pod-a" is neither an IP address nor the word node`,
		"fd00::1 to 10.96.0.10:53":         "are not of one family",
		"::ffff:10.0.0.1 to 10.96.0.10:53": "that is 10.0.0.1",
		"10.0.0.1 to 224.0.0.1:53":         "is no host's address",
		"fe80::1%eth0 to [fd00::1]:53":     "names an interface",
		"a b c d":                          "are not a client and an address",
	} {
		q, err := ParseQuestion(strings.Split(text, "|"))
		if wrong := (*QuestionError)(nil); errors.As(err, &wrong) {
			if !strings.Contains(wrong.Wrong, want) || !strings.HasSuffix(err.Error(), ": want "+QuestionForm) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q: %v, want %q", text, err, want)
			}
		} else if err != nil || q.String() != want {
			t.Errorf("%q: %s, %v, want %q", text, q, err, want)
		}
	}
}

// B73: how clients are told apart, by each of the ways to do it.
func TestB73PacketClients(t *testing.T) {
	s := shops(t)
	site := s.ground(t).View.Passage(ipvs.AddrKey(netip.MustParseAddr("10.96.0.80"))).Site
	site.Node.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	pods, bare := Clients{Pods: podRanges}, Clients{}
	for _, c := range []struct {
		clients Clients
		from    string
		kind    ClientKind
		known   bool
		why     string
	}{
		{pods, "10.244.1.10", ClientPod, true, "a pod of this node: in 10.244.0.0/16 of clusterCIDR"},
		{pods, "10.244.2.10", ClientPod, true, "a pod of another node"},
		{pods, "192.0.2.1", ClientNode, true, "node1 itself"},
		{pods, "192.0.2.2", ClientOutside, true, "neither in clusterCIDR (10.244.0.0/16) nor an address of node1"},
		{bare, "10.244.1.10", ClientOutside, false, "without clusterCIDR no pod is known of"},
		{bare, "192.0.2.1", ClientNode, false, "node1 itself"},
		{Clients{NodePods: true}, "10.244.1.10", ClientPod, true, "in 10.244.1.0/24 of the Node's podCIDRs"},
		{Clients{NodePods: true}, "10.244.2.10", ClientOutside, true, "neither in the Node's podCIDRs"},
		{Clients{Interface: "cni0"}, "10.244.1.10", ClientPod, true, "if it comes by cni0"},
		{Clients{Interface: "veth*"}, "10.244.2.10", ClientOutside, true, "unless it comes by veth*"},
		{pods, "127.0.0.1", ClientNode, true, "by its loopback interface"},
	} {
		to := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.80"), Port: 80, Proto: ipvs.TCP}
		got := c.clients.clientOf(Question{netip.MustParseAddr(c.from), to}, site)
		if got.kind != c.kind || got.known != c.known || !strings.Contains(got.why, c.why) {
			t.Errorf("%+v: %s is %+v, want %s, %q", c.clients, c.from, got, c.kind, c.why)
		}
	}
}
