package sync

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// keeping is a sysctl in memory.
type keeping struct {
	r     *rig
	calls []string
	err   error
	// before is how many virtual servers there were when a port was kept first.
	before map[uint16]int
}

func (k *keeping) Reserve(_ context.Context, ports []uint16, keep bool) ([]string, error) {
	k.r.mu.Lock()
	defer k.r.mu.Unlock()
	k.calls = append(k.calls, fmt.Sprintf("%v %t", ports, keep))
	for _, p := range ports {
		if _, known := k.before[p]; !known {
			k.before[p] = len(k.r.kernel.Servers)
		}
	}
	return nil, k.err
}

// B81: node ports are kept before they are served, whenever they change and each minute, and given back when their Service
// goes; before all of the cluster is known nothing is given back. That it cannot be done is said once, and when it is over.
func TestB81NodePortsAreKept(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7")}
		k := &keeping{r: r, before: map[uint16]int{}, err: ipvs.About{Name: "ports", Err: errors.New("read-only")}}
		web, other := service("web", "10.96.0.10", 80), service("other", "10.96.0.11", 80)
		for i, svc := range []*corev1.Service{web, other} {
			svc.Spec.Type = corev1.ServiceTypeNodePort
			svc.Spec.Ports[0].NodePort = int32(30001 + i)
		}
		r.model.SetNode(nodeNamed("192.0.2.7"))
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		r.opt.Ports = k
		logged := r.startBeside(nil)
		time.Sleep(10 * time.Second)
		r.set(slice(web, "10.244.2.12")) // its ports stay
		time.Sleep(20 * time.Second)
		r.set(other, slice(other, "10.244.2.11"))
		time.Sleep(10 * time.Second)
		r.tamper(func() { k.err = nil })
		time.Sleep(time.Minute)
		r.model.DeleteService("default", "web")
		time.Sleep(10 * time.Second)
		r.tamper(func() {
			want := []string{"[30001] false", "[30001 30002] false", "[30001 30002] false", "[30002] false"}
			if !slices.Equal(k.calls, want) {
				t.Errorf("%q, want %q", k.calls, want)
			}
			if k.before[30001] != 0 || k.before[30002] != 2 {
				t.Errorf("virtual servers when a port was kept: %v, want 0 and those of the other Service", k.before)
			}
			if said, over := logged.FilterMessage("node set-up is incomplete").Len(), logged.FilterMessage("this part of the node's set-up is right now").Len(); said != 1 || over != 1 {
				t.Errorf("said %d times, and that it is over %d times", said, over)
			}
		})
	})
}
