package sync

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// system is a Service of the namespace in which the cluster's own are.
func system(name, ip string, ports ...int32) *corev1.Service {
	s := service(name, ip, ports...)
	s.Namespace = metav1.NamespaceSystem
	return s
}

// labelled is one that has the label of the cluster's DNS.
func labelled(s *corev1.Service) *corev1.Service {
	s.Labels = map[string]string{"k8s-app": "kube-dns"}
	return s
}

// TestB93UrgentFirst: the API server's Service and the cluster's DNS come before everything else that waits, at a
// start, when they change and when their first try failed; no other Service does, whatever its ports are.
func TestB93UrgentFirst(t *testing.T) {
	for name, c := range map[string]struct {
		svc    *corev1.Service
		urgent bool
	}{
		"the API server":                 {service("kubernetes", "10.95.0.1", 443), true},
		"kube-dns":                       {system("kube-dns", "10.95.0.1", 53), true},
		"coredns":                        {system("coredns", "10.95.0.1", 53), true},
		"DNS by its label":               {labelled(system("rke2-coredns", "10.95.0.1", 53)), true},
		"port 53 of anybody":             {service("mine", "10.95.0.1", 53), false},
		"the label in another namespace": {labelled(service("mine", "10.95.0.1", 53)), false},
		"the name in another namespace":  {service("kube-dns", "10.95.0.1", 53), false},
	} {
		t.Run(name, func(t *testing.T) {
			key := ipvs.Key{Addr: netip.MustParseAddr("10.95.0.1"), Port: uint16(c.svc.Spec.Ports[0].Port), Proto: ipvs.TCP}
			s := newStepper()
			s.opt.AuditPeriod = time.Hour
			written, before := map[ipvs.Key]bool{}, []int{}
			s.door.fault = func(op ipvs.Op) fault {
				add, is := op.(ipvs.AddServer)
				if !is {
					return fault{}
				}
				s.now = s.now.Add(2 * time.Millisecond)
				if written[add.Key] = true; add.Key != key {
					return fault{}
				}
				if before = append(before, len(written)-1); len(before) < 3 {
					return fault{err: errLost}
				}
				return fault{}
			}
			s.start(completeModel(append(crowd(2000), c.svc, slice(c.svc, "10.244.2.10"))...))
			s.pass(time.Minute)
			if len(before) != 3 || len(written) != 2001 {
				t.Fatalf("%d frontends written, this one tried %d times, want 2001 and 3", len(written), len(before))
			}
			t.Logf("before it were written %d; at its second try %d, at its third %d", before[0], before[1], before[2])
			// At 2 ms a frontend its retry is due after 25 to 33 of them and 50 to 66; a slice may have to be ended.
			if first := before[2] < 5*sliceKeys; first != c.urgent {
				t.Errorf("%d others were written first, at the second try %d, at the third %d; urgent %t, want %t", before[0], before[1], before[2], first, c.urgent)
			}
		})
	}
}

// TestB93NobodyStarves: a Service that changes without end, with more frontends than a slice of work has, is in no
// other's way for long, not even when it is urgent.
func TestB93NobodyStarves(t *testing.T) {
	var ports []int32
	for p := range int32(200) {
		ports = append(ports, 53+p)
	}
	for name, restless := range map[string]*corev1.Service{"anybody's": service("restless", "10.95.0.1", ports...), "DNS": system("kube-dns", "10.95.0.1", ports...)} {
		t.Run(name, func(t *testing.T) {
			quiet := service("quiet", "10.95.0.2", 80)
			s := newStepper()
			s.opt.AuditPeriod = time.Hour
			s.start(completeModel(append(crowd(10), restless, quiet, slice(restless, "10.244.2.10"), slice(quiet, "10.244.2.10"))...))
			s.pass(time.Minute)
			changes := 0
			turn := func() {
				changes++
				give(s.model, slice(restless, fmt.Sprintf("10.244.2.%d", 10+changes%2)))
				s.loop.turn(t.Context())
				s.now = s.now.Add(20 * time.Millisecond)
			}
			for range 10 {
				turn()
			}
			waited := func(what string, done func() bool) {
				t.Helper()
				for turns := range 200 {
					if done() {
						t.Logf("%s: %d turns", what, turns)
						if turns > 10 {
							t.Errorf("%s: after %d turns", what, turns)
						}
						return
					}
					turn()
				}
				t.Errorf("%s: not within 200 turns", what)
			}
			key := ipvs.Key{Addr: netip.MustParseAddr("10.95.0.2"), Port: 80, Proto: ipvs.TCP}
			give(s.model, slice(quiet, "10.244.2.10", "10.244.2.11"))
			waited("a change", func() bool { return len(s.kernel.Servers[key].Reals) == 2 })
			delete(s.kernel.Servers, key)
			s.loop.doubt(key)
			waited("what another program deleted", func() bool { return len(s.kernel.Servers[key].Reals) == 2 })
		})
	}
}

// TestB93EachWaitsOnce: however often Services change while nothing can be decided, each of them waits once, and those
// that are urgent come first.
func TestB93EachWaitsOnce(t *testing.T) {
	s := newStepper()
	s.kernel.FailRead = func() error { return errTimeout }
	m := completeModel(crowd(300)...)
	s.start(m)
	web, dns := service("s0", "10.96.0.1", 80), system("kube-dns", "10.95.0.1", 53)
	for i := range 1000 {
		give(m, slice(web, fmt.Sprintf("10.244.2.%d", 1+i%200)), dns, slice(dns, fmt.Sprintf("10.244.2.%d", 1+i%200)))
		s.settle()
		s.now = s.now.Add(time.Second)
	}
	if n := s.loop.dirty.len(); n != 301 {
		t.Errorf("1,000 changes of 301 Services while the node's addresses cannot be read: %d wait", n)
	}
	if first := s.loop.dirty.take(2); !slices.Equal(first, []cluster.ID{{Namespace: "kube-system", Name: "kube-dns"}, idOf("s0")}) {
		t.Errorf("first come %v", first)
	}
}

// TestB93QueueIsBounded: whatever happens to some Keys, the queue holds as much as there are of them.
func TestB93QueueIsBounded(t *testing.T) {
	const keys = 50
	q, r, now := newQueue(), rand.New(rand.NewPCG(1, 2)), time.Now()
	most := 0
	for range 100_000 {
		k := ipvs.Key{Addr: netip.AddrFrom4([4]byte{10, 96, 0, byte(r.IntN(keys))}), Port: 80, Proto: ipvs.TCP}
		switch r.IntN(8) {
		case 0:
			turns := q.pop(now, 1+r.IntN(3))
			q.back(turns[:len(turns)/2])
		case 1, 2, 3:
			q.addAt(k, now.Add(time.Hour+time.Duration(r.IntN(100))*time.Second), class(r.IntN(int(classes))))
		default:
			q.add(k, class(r.IntN(int(classes))))
		}
		entries := len(q.waiting)
		for _, l := range q.ready {
			entries += len(l.entries)
		}
		most = max(most, entries)
		if due := q.due[0]; due < 0 || due > len(q.where) {
			t.Fatalf("%d Keys are ready of %d", due, len(q.where))
		}
	}
	t.Logf("%d Keys had %d entries at most", keys, most)
	if limit := 4 * (2*keys + few + 1); most > limit {
		t.Errorf("%d entries for %d Keys, want %d at most", most, keys, limit)
	}
	for seen := map[ipvs.Key]bool{}; ; {
		turns := q.pop(now.Add(2*time.Hour), 7)
		if len(turns) == 0 {
			break
		}
		for _, t2 := range turns {
			if seen[t2.key] {
				t.Errorf("%s has two turns", t2.key)
			}
			seen[t2.key] = true
		}
	}
	if q.len() != 0 || q.due != [2]int{} || !q.next(now).IsZero() {
		t.Errorf("all had their turn, and %d wait, %v are ready, next %v", q.len(), q.due, q.next(now))
	}
}
