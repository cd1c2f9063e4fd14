package traffic

import (
	"fmt"
	"net/netip"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// allowExternalIPs has the agents serve externalIPs from the lab's range of them.
var allowExternalIPs = fmt.Sprintf("--external-ip-cidrs=%s,%s", lab.ExternalCIDR4, lab.ExternalCIDR6)

// external gives a Service the externalIPs 198.51.100.n and fd20:51::n.
func external(svc lab.Service, n int) lab.Service {
	svc.Spec = map[string]any{"externalIPs": []string{fmt.Sprintf("198.51.100.%d", n), fmt.Sprintf("fd20:51::%d", n)}}
	return svc
}

// externalAddr is the first externalIP that a Service has of a family.
func externalAddr(svc lab.Service, family int) netip.Addr {
	list, _ := svc.Spec["externalIPs"].([]string)
	for _, ip := range list {
		if a := netip.MustParseAddr(ip); a.Is4() == (family == 4) {
			return a
		}
	}
	return netip.Addr{}
}

// everywhere is a Service with a frontend of each kind, HTTP over TCP and DNS over UDP.
func everywhere(n int) lab.Service {
	svc := web(n)
	svc.Ports = append(svc.Ports, dns(n).Ports...)
	return external(balanced(svc, n), n)
}

// way is one of the ways to a Service.
type way struct {
	kind     string
	tcp, udp netip.AddrPort
}

// ways are those to everywhere(n), node ports on node1.
func (s *stage) ways(svc lab.Service, family int) (list []way) {
	dns := svc
	dns.Ports = svc.Ports[1:]
	tcp, udp := s.frontends(svc, family), s.frontends(dns, family)
	for _, kind := range []string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalIP"} {
		list = append(list, way{kind, tcp[kind], udp[kind]})
	}
	return list
}
