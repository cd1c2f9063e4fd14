package cluster

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// fill puts n Services with ten endpoints each into the API server, with as
// much else in the objects as real ones have.
func (f *fakeAPI) fill(n int) {
	fields := []metav1.ManagedFieldsEntry{{Manager: "kube-controller-manager", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1",
		FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:annotations":{".":{},"f:x":{}}},"f:spec":{` + strings.Repeat(`"f:a":{},`, 40) + `"f:b":{}}}`)}}
	var objs []apiObject
	for i := range n {
		svc := apiService(fmt.Sprintf("service-%d", i), fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255))
		svc.ManagedFields, svc.Annotations = fields, map[string]string{"a/b": strings.Repeat("x", 300)}
		slice := tenEndpoints(i, 0)
		slice.Namespace = "default"
		for j := range slice.Endpoints {
			slice.Endpoints[j].TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: fmt.Sprintf("pod-%d-%d", i, j), UID: svc.UID}
		}
		slice.ManagedFields = fields
		objs = append(objs, svc, slice)
	}
	f.set(append(objs, apiNode("own", "z1"))...)
	f.mu.Lock()
	f.history = nil
	f.mu.Unlock()
}

func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// weighed is a store that weighs what there is when a list is complete and not
// yet taken over.
type weighed struct {
	*store
	weigh func()
}

func (w weighed) Replace(list []any, rv string) error {
	for _, obj := range list {
		if _, small := obj.(*object); !small {
			return fmt.Errorf("%T in a complete list", obj)
		}
	}
	w.weigh()
	return w.store.Replace(list, rv)
}

// TestNoTypedCopy: neither the list while it streams in nor what is held after
// it has the API's types, which would take more than 3 KB for each Service alone.
func TestNoTypedCopy(t *testing.T) {
	const services = 2000
	f := newFakeAPI(t)
	f.fill(services)
	m := NewModel(ownNode)
	k, err := NewKubernetes(f.connection(), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	for _, w := range k.kinds[:2] {
		var peak float64
		done := make(chan struct{})
		s := weighed{weigh: func() { peak = heap() - before }, store: &store{kind: w.kind, model: m, heard: func() {}, took: k.took(w.kind), full: func() { close(done) }}}
		ctx, cancel := context.WithCancel(t.Context())
		go cache.NewReflectorWithOptions(k.listWatch(w), w.example, s, cache.ReflectorOptions{}).RunWithContext(ctx)
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatal("no complete list")
		}
		held := heap() - before
		t.Logf("%s: %.1f MB when the list was complete, %.1f MB after", w.kind, peak, held)
		const most = 3.0 * services / 1024
		if peak > most || held > most {
			t.Errorf("%s: %.1f MB when the list was complete, %.1f MB after, want less than %.1f", w.kind, peak, held, most)
		}
		cancel()
	}
	if n := len(m.Services()); n != services {
		t.Errorf("%d Services", n)
	}
	runtime.KeepAlive(f)
}
