package preview

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// deskView is the View of a desk at hand, as an agent has it.
type deskView struct {
	*desk.Desk
	model *cluster.Model
}

func (d deskView) Passage(k ipvs.Key) desk.Passage  { return d.Desk.Passage(k, time.Time{}) }
func (d deskView) Asking(a netip.Addr) []cluster.ID { return d.model.Asking(a) }

// manyServices is a desk with 10,000 Services of five endpoints, a tenth of them with a node port.
func manyServices() deskView {
	const n = 10000
	s := newScene()
	for i := range n {
		vip := fmt.Sprintf("10.100.%d.%d", i/250, i%250+1)
		s.service(fmt.Sprintf("many/s%05d", i), []string{vip}, func(svc *corev1.Service) {
			if i%10 == 0 {
				svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, int32(30000+i/10)
			}
		}, "10.244.2.10@node2", "10.244.2.11@node2", "10.244.2.12@node2", "10.244.1.10@node1", "10.244.1.11@node1")
	}
	d := desk.New(s.model, desk.Options{})
	d.Move(s.model.Node(), s.kernel.Node, nil, time.Time{})
	for _, id := range s.model.Services() {
		d.Decide(id, time.Time{})
	}
	return deskView{d, s.model}
}

// costly are questions of which each goes another way, the last to an address that 10,000 Services name.
var costly = []string{"10.244.1.10 to 10.100.20.7:80", "198.51.100.7 to 192.0.2.1:30500", "10.244.1.10 to 10.100.20.7:443", "10.244.1.10 to 198.51.100.1:80",
	"10.244.1.10 to 10.244.2.10:8080"}

// askable are the questions, parsed.
func askable(t testing.TB) (qs []Question) {
	for _, text := range costly {
		q, err := ParseQuestion([]string{text})
		if err != nil {
			t.Fatal(err)
		}
		qs = append(qs, q)
	}
	return qs
}

// B73: what an answer costs of a desk at hand, among 10,000 Services: its own Service, and no other. 50 ms are allowed, and
// it takes a hundredth of that.
func TestB73PacketIsCheap(t *testing.T) {
	view := manyServices()
	for _, q := range askable(t) {
		took := testing.Benchmark(func(b *testing.B) {
			for range b.N {
				AnswerPacket(Ground{Node: thisNode, Clients: Clients{Pods: podRanges}, View: view}, q)
			}
		})
		t.Logf("%s: %s an answer, %d B", q, time.Duration(took.NsPerOp()), took.AllocedBytesPerOp())
		if took.NsPerOp() > int64(50*time.Millisecond) {
			t.Errorf("%s: %s an answer", q, time.Duration(took.NsPerOp()))
		}
	}
}
