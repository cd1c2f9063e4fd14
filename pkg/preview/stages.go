package preview

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// teller puts an Answer together.
type teller struct {
	*Answer
	packet
	ground Ground
	to     desk.Passage
	fate   fate
	// svc is the Service that the packet is for, and said what the desk says of the frontend that decides; nil: nothing.
	svc  *cluster.Service
	said *desk.Explained
}

func (t *teller) step(at, format string, args ...any) {
	t.Steps = append(t.Steps, Stage{at, fmt.Sprintf(format, args...)})
}

// tell goes along the way, and says what decides at each step.
func (t *teller) tell() {
	t.Verdict, t.Reason = t.fate.verdict, Coded(t.fate.why)
	t.look()
	t.client()
	if !t.address() {
		return
	}
	t.port()
	if t.fate.hit != t.packet.to {
		t.Redirected = t.fate.hit.String()
		t.step("redirect", "sent on to %s, its ClusterIP: externalTrafficPolicy Local is for clients outside the cluster", t.fate.hit)
	}
	steps := []func() bool{t.sources, t.policies, t.guards}
	if t.packet.to.Proto == ipvs.UDP {
		steps[0], steps[1] = steps[1], steps[0]
	}
	for _, goesOn := range steps {
		if !goesOn() {
			if t.fate.why == desk.NoEndpoint || t.fate.why == desk.NoneForSome {
				t.judge() // which endpoints there are, and why none of them may serve
			}
			return
		}
	}
	if t.Verdict == Served {
		t.backends()
		t.source()
	}
}

// look finds the Service, and what the desk says of the frontend that decides.
func (t *teller) look() {
	if t.to.Service == (cluster.ID{}) {
		return
	}
	t.Service = t.to.Service.String()
	s := t.ground.View.Snapshot(t.to.Service)
	t.svc = s.Service
	explained := s.Explain()
	if i := slices.IndexFunc(explained.Frontends, func(f desk.Explained) bool { return f.Key == t.fate.hit }); i >= 0 {
		t.said = &explained.Frontends[i]
	}
}

func (t *teller) client() {
	text := t.from.why
	if t.to.VIP && strings.HasPrefix(text, "a pod of another node") {
		text += "; what it sends to virtual IPs its own node takes, so ask there"
	}
	if t.from.chosen {
		t.step("client", "%s", text)
	} else {
		t.step("client", "%s is %s", t.Client, text)
	}
}

// address says whose it is. False: there is nothing more to say.
func (t *teller) address() bool {
	a, k := t.packet.to.Addr, t.packet.to
	by := map[desk.Rank]string{desk.RankClusterIP: "the ClusterIP", desk.RankLoadBalancer: "a load balancer's address", desk.RankExternalIP: "an external IP", desk.RankHealthCheck: "a load balancer's address"}
	switch {
	case t.to.Frontend != nil && t.to.Rank == desk.RankNodePort:
		t.step("address", "%s is an address of %s, where %s has node ports", a, t.site.Node.Name, t.Service)
	case t.to.Frontend != nil:
		t.step("address", "%s is %s of %s%s", a, by[t.to.Rank], t.Service, t.rivals())
	case t.to.VIP && t.svc != nil && slices.Contains(t.svc.ClusterIPs, a):
		t.step("address", "%s is the ClusterIP of %s", a, t.Service)
	case t.to.VIP:
		t.step("address", "%s is a virtual IP, of %s", a, t.Service)
	default:
		t.notOurs(k)
		return false
	}
	return true
}

// rivals says who asks for the address and port as well, and does not have them.
func (t *teller) rivals() string {
	var names []string
	asking := t.ground.View.Asking(t.packet.to.Addr)
	for _, id := range asking[:min(len(asking), listed+1)] { // the owner is one of them
		if owner, taken := t.ground.View.Snapshot(id).Owners[t.packet.to]; taken {
			names = append(names, fmt.Sprintf("%s asks for it, too, and does not have this port (%s)", id, owner.Why))
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "; " + strings.Join(names, "; ")
}

// notOurs says what an address is that no Service has.
func (t *teller) notOurs(k ipvs.Key) {
	a := k.Addr
	for _, id := range t.ground.View.Asking(a) {
		for _, r := range t.ground.View.Snapshot(id).Explain().Refused {
			if r.Addr == a {
				t.Service, t.Reason = id.String(), Coded(r.Why)
				t.step("address", "%s asks for %s in %s, and may not have it", id, a, r.Field)
				return
			}
		}
	}
	switch {
	case a.Is6() && t.site.Local.NoIPv6:
		t.Reason = Coded(desk.IPv6Off)
		t.step("address", "%s is of a family that %s does not have", a, t.site.Node.Name)
	case a.IsLoopback():
		t.Reason = Coded(desk.LoopbackPort)
		t.step("address", "%s is of the loopback interface", a)
	case t.site.IsLocal(a) || slices.Contains(t.site.Node.Addrs, a):
		t.Reason = Coded(desk.NodesOwnPort)
		t.step("address", "%s is an address of %s itself, and %s is no node port there", a, t.site.Node.Name, portOf(k))
	case t.to.Named.Pod != (cluster.ID{}) || t.to.Named.ByHand != (cluster.ID{}):
		t.Reason = Coded(desk.PodsAddress)
		of := t.to.Named.Pod
		if of == (cluster.ID{}) {
			of = t.to.Named.ByHand
		}
		t.Service = of.String()
		t.step("address", "%s is no Service's, but an endpoint of %s", a, of)
	default:
		t.step("address", "%s is no Service's on this node", a)
	}
}

// portOf is a Key's port in the words of kubectl.
func portOf(k ipvs.Key) string {
	return fmt.Sprintf("%d/%s", k.Port, strings.ToUpper(k.Proto.String()))
}

// port says which of the Service's it is.
func (t *teller) port() {
	k := t.packet.to
	if t.to.Frontend == nil {
		var has []string
		for _, other := range t.to.Ports {
			has = append(has, portOf(other))
		}
		if t.to.More > 0 {
			has = append(has, fmt.Sprintf("%d more", t.to.More))
		}
		t.step("port", "%s is no port of it: it has %s", portOf(k), strings.Join(has, ", "))
		t.meant()
		return
	}
	if t.to.Rank == desk.RankHealthCheck {
		t.Reason = Coded(desk.CheckAnswered)
		t.step("port", "%s is its healthCheckNodePort", portOf(k))
		return
	}
	name := "port"
	if t.to.Rank == desk.RankNodePort {
		name = "node port"
	}
	if p := t.portNamed(); p.Name != "" {
		t.step("port", "%s is its %s %s", portOf(k), name, p.Name)
	} else {
		t.step("port", "%s is a %s of it", portOf(k), name)
	}
}

// portNamed is the port of the Service that was asked for.
func (t *teller) portNamed() (p cluster.Port) {
	if t.svc == nil {
		return p
	}
	for _, p := range t.svc.Ports {
		number := p.Port
		if t.to.Rank == desk.RankNodePort {
			number = p.NodePort
		}
		if number == t.packet.to.Port && ipvs.Proto(p.Protocol) == t.packet.to.Proto {
			return p
		}
	}
	return p
}

// meant adds what may have been meant by a port that the Service does not have.
func (t *teller) meant() {
	if t.svc == nil {
		return
	}
	k := t.packet.to
	s := t.ground.View.Snapshot(t.to.Service)
	for _, p := range t.svc.Ports {
		switch {
		case p.NodePort == k.Port:
			t.Do = fmt.Sprintf("%d is a node port of it, for addresses of nodes: here the port is %d.", k.Port, p.Port)
		case p.Port == k.Port && ipvs.Proto(p.Protocol) != k.Proto:
			t.Do = fmt.Sprintf("It has this port over %s.", p.Protocol)
		case slices.ContainsFunc(s.Endpoints, func(ep cluster.Endpoint) bool {
			return ep.Port == k.Port && ep.PortName == p.Name && ep.Protocol == p.Protocol
		}):
			t.Do = fmt.Sprintf("%d is the port of its endpoints (targetPort): the Service's own is %d.", k.Port, p.Port)
		default:
			continue
		}
		return
	}
}

// sources says whether loadBalancerSourceRanges let the client in. Each of these is false where the way ends.
func (t *teller) sources() bool {
	if t.to.Frontend == nil || !t.to.Frontend.Guard.Limited {
		return true
	}
	if t.fate.why == desk.OutOfRanges {
		t.How = "in silence"
		t.step("ranges", "%s is in none of its loadBalancerSourceRanges: %s", t.from.source(), sources(t.to.Frontend.Guard.Ranges))
		return false
	}
	t.step("ranges", "%s is in its loadBalancerSourceRanges", t.from.source())
	return true
}

// source is the source of the packet, with why it has that.
func (c client) source() string {
	if c.chosen {
		return fmt.Sprintf("%s, the source of the node's own packets to it,", c.addr)
	}
	return c.addr.String()
}

// listed is how many of a list are named in a sentence.
const listed = 4

func sources(ranges []ipvs.Range) string {
	var texts []string
	for _, r := range ranges[:min(len(ranges), listed)] {
		texts = append(texts, r.String())
	}
	switch more := len(ranges) - len(texts); {
	case len(texts) == 0:
		return "none can be used"
	case more > 0:
		texts = append(texts, fmt.Sprintf("%s more", Number(more)))
	}
	return strings.Join(texts, ", ")
}

// policies says what the traffic policies of the way make of it.
func (t *teller) policies() bool {
	if t.svc == nil || t.to.Frontend == nil || t.to.Rank == desk.RankHealthCheck {
		return true
	}
	field, local := "externalTrafficPolicy", t.svc.ExternalLocal
	if t.said != nil && t.said.Rank == desk.RankClusterIP {
		field, local = "internalTrafficPolicy", t.svc.InternalLocal
	}
	switch {
	case t.fate.why == desk.NoneForSome:
		t.How = "in silence"
		t.step("policy", "%s Local, and no endpoint of this node may serve, but others could", field)
		return false
	case !local:
		t.step("policy", "%s Cluster: endpoints of all nodes", field)
	case t.said != nil && slices.ContainsFunc(t.said.Endpoints, func(j desk.Judged) bool { return j.Used() && j.Node != t.site.Node.Name }):
		t.step("policy", "%s Local, but no endpoint of this node may serve: clients inside the cluster get those of others", field)
	default:
		t.step("policy", "%s Local: endpoints of this node", field)
	}
	return true
}

// guards says whether the guard lets the packet in.
func (t *teller) guards() bool {
	if t.Verdict != Refused {
		if t.Verdict == Served {
			t.step("guard", "new connections are let in")
		}
		return true
	}
	switch k := t.packet.to; {
	case k.Proto == ipvs.TCP:
		t.How = "TCP reset"
	case k.Proto == ipvs.SCTP && k.Addr.Is4():
		t.How = "ICMP protocol unreachable"
	default:
		t.How = "ICMP port unreachable"
	}
	if t.fate.why == desk.NoEndpoint {
		t.step("guard", "closed: no endpoint may serve")
	} else {
		t.step("guard", "closed: what no Service has of a virtual IP is refused, whoever listens on the node")
	}
	return false
}
