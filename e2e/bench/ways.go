package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	agent "github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// The cases of a packet's way, in the order in which they are shown.
var cases = []struct {
	name string
	// direct: it goes without a Service, so that a node without a proxy has it, too.
	direct bool
	from   func(*world) *place
	to     func(*world, int) netip.AddrPort
	count  func(traveller) (time.Duration, error)
}{
	{"connect, pod to ClusterIP", false, fromPod, toClusterIP, traveller.connect},
	{"connect, outside to node port", false, fromOutside, toNodePort, traveller.connect},
	{"connect, pod to pod", true, fromPod, toPod, traveller.connect},
	{"round trip, pod to ClusterIP", false, fromPod, toClusterIP, traveller.roundTrip},
	{"round trip, pod to pod", true, fromPod, toPod, traveller.roundTrip},
	{"visit, pod to ClusterIP", false, fromPod, toClusterIP, traveller.visit},
	{"visit, pod to pod", true, fromPod, toPod, traveller.visit},
}

// world is a node with two pods and a client outside.
type world struct {
	client, server, outside *place
	listen                  [2]int
}

const (
	podPort  = 8080
	nodePort = 30080
)

func fromPod(w *world) *place     { return w.client }
func fromOutside(w *world) *place { return w.outside }

func toPod(w *world, family int) netip.AddrPort {
	return netip.AddrPortFrom(w.server.addrs[family].Addr(), podPort)
}

func toNodePort(w *world, family int) netip.AddrPort {
	return netip.AddrPortFrom(w.outside.ends[family].Addr(), nodePort)
}

func toClusterIP(_ *world, family int) netip.AddrPort {
	return netip.AddrPortFrom(clusterIPs(0)[family], 80)
}

func clusterIPs(i int) [2]netip.Addr {
	six := netip.MustParseAddr("fd00:96::").As16()
	six[13], six[14], six[15] = byte((i+1)>>16), byte((i+1)>>8), byte(i+1)
	return [2]netip.Addr{vip(i), netip.AddrFrom16(six)}
}

func buildWorld() (*world, error) {
	var w world
	w.client, w.server, w.outside = places()
	if err := buildPlaces(w.client, w.server, w.outside); err != nil {
		return nil, err
	}
	for family := range w.listen {
		fd, err := w.server.listener(family, podPort)
		if err != nil {
			return nil, fmt.Errorf("listen in the %s: %w", w.server.name, err)
		}
		w.listen[family] = fd
	}
	return &w, nil
}

// taken are the counts of one proxy at one size: by case and IP family. What the proxy has not is 0.
type taken [][2]time.Duration

// travel counts all cases.
func (w *world) travel(proxied bool) (taken, error) {
	all := make(taken, len(cases))
	for i, c := range cases {
		for family := range w.listen {
			if !c.direct && !proxied {
				continue
			}
			d, err := c.count(traveller{c.from(w), family, c.to(w, family), w.listen[family]})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			all[i][family] = d
		}
	}
	return all, nil
}

// runDirect counts on a node without any packet filter; tracked: with one rule for address translation that nothing matches, so that
// connections are tracked, which every Service proxy needs.
func runDirect(tracked bool) (taken, error) {
	w, err := buildWorld()
	if err != nil {
		return nil, err
	}
	if tracked {
		c, err := nftables.New()
		if err != nil {
			return nil, err
		}
		t := c.AddTable(&nftables.Table{Name: "tracked", Family: nftables.TableFamilyINet})
		post := c.AddChain(&nftables.Chain{Name: "post", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		never := &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}}
		c.AddRule(&nftables.Rule{Table: t, Chain: post, Exprs: []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, never, &expr.Masq{}}})
		if err := c.Flush(); err != nil {
			return nil, err
		}
	}
	return w.travel(false)
}

// quietWatch counts the frontends that open, and remembers when the last plan ended.
type quietWatch struct{ opened, last atomic.Int64 }

func (q *quietWatch) began(time.Time) {}

func (q *quietWatch) ended(now time.Time, plan ipvs.Plan, _ []ipvs.Outcome) {
	for _, s := range plan {
		if e, ok := s.Op.(ipvs.Element); ok && e.Set == ipvs.SetOpen && !e.Remove {
			q.opened.Add(1)
		}
	}
	q.last.Store(now.UnixNano())
}

// runAgent counts on a node of the agent with so many Services of both families.
func runAgent(o options) (counts taken, err error) {
	w, err := buildWorld()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	k, err := kernel.Open(ctx, kernel.Config{ClusterCIDRs: podRanges(), Binding: kernel.Binding(o.binding)})
	if err != nil {
		return nil, err
	}
	defer k.Close()
	model := cluster.NewModel(cluster.Options{NodeName: nodeName(0)})
	w.things(o.services).fill(model)
	watch := &quietWatch{}
	r := &recorder{Kernel: k, watch: watch}
	loop := agent.New(r, model, quietLog(), agent.Options{Proxies: k})
	stopped := make(chan error, 1)
	go func() { stopped <- loop.Run(ctx) }()
	if err := settled(watch, r, 2*o.services); err != nil {
		return nil, err
	}
	// The loop goes on, as on a node; its turns are few beside what is counted, of which the median is taken.
	counts, err = w.travel(true)
	cancel()
	return counts, errors.Join(err, <-stopped)
}

// things are a cluster's objects.
type things struct {
	services []*corev1.Service
	slices   []*discoveryv1.EndpointSlice
	node     *corev1.Node
}

func (c things) fill(m *cluster.Model) {
	for _, svc := range c.services {
		m.SetService(svc)
	}
	for _, s := range c.slices {
		m.SetSlice(s)
	}
	m.SetNode(c.node)
	m.SetSynced()
	m.SetComplete()
}

// things are Services of both families and of one endpoint each. The first one and the last are served by the place for that, and
// the first has a node port.
func (w *world) things(services int) (c things) {
	for i := range services {
		vips, cluster := clusterIPs(i), corev1.ServiceInternalTrafficPolicyCluster
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("svc-", i), UID: types.UID(fmt.Sprint("svc-", i))},
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: vips[0].String(), ClusterIPs: []string{vips[0].String(), vips[1].String()},
				IPFamilies:      []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
				SessionAffinity: corev1.ServiceAffinityNone, InternalTrafficPolicy: &cluster,
				Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}
		if i == 0 {
			svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, nodePort
			svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
		}
		c.services = append(c.services, svc)
		for family := range vips {
			s := slice(i, discoveryv1.EndpointPort{Name: new("http"), Port: new(int32(podPort)), Protocol: new(corev1.ProtocolTCP)})
			s.Name += strconv.Itoa(family)
			s.UID = types.UID(s.Name)
			s.AddressType = []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}[family]
			ep := endpoint(i, nodeName(0))
			switch {
			case i == 0 || i == services-1:
				ep.Addresses[0] = w.server.addrs[family].Addr().String()
			case family == 1:
				a := clusterIPs(i)[1].As16()
				a[3] = 0x97
				ep.Addresses[0] = netip.AddrFrom16(a).String()
			}
			s.Endpoints = append(s.Endpoints, ep)
			c.slices = append(c.slices, s)
		}
	}
	c.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(0), UID: "node"}}
	for _, a := range w.outside.ends {
		c.node.Status.Addresses = append(c.node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.Addr().String()})
	}
	return c
}

// settled waits until so many frontends are open, nothing was written for a while, and Services are shielded.
func settled(q *quietWatch, r *recorder, frontends int) error {
	for range 600 {
		time.Sleep(time.Second)
		if err := r.failed(); err != nil {
			return err
		}
		if q.opened.Load() >= int64(frontends) && time.Since(time.Unix(0, q.last.Load())) > 5*time.Second && shielded() {
			return nil
		}
	}
	return fmt.Errorf("not programmed after 10 min: %d of %d frontends open, shielded %t", q.opened.Load(), frontends, shielded())
}

func shielded() bool {
	c, err := nftables.New()
	if err != nil {
		return false
	}
	t := &nftables.Table{Name: "ipvs-proxy", Family: nftables.TableFamilyINet}
	e, err := c.GetSetElements(&nftables.Set{Table: t, Name: "shielded", KeyType: nftables.TypeNFProto})
	return err == nil && len(e) == 2
}
