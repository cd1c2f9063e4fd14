package ipvs_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
)

// TestAfter: after each operation of a change, from any state to any other, the kernel holds what After says of the
// Key. The rest of the change leads on from there.
func TestAfter(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	own := func(f *ipvs.Frontend) *ipvs.Frontend {
		return &ipvs.Frontend{Server: f.Server, Guard: f.Guard.Own()}
	}
	seen := map[ipvs.Kind]int{}
	for range 3000 {
		data := make([]byte, 60)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		k := key
		if rng.IntN(2) == 0 {
			k.Proto = ipvs.UDP
		}
		have, rest := frontendOf(data, false)
		want, _ := frontendOf(rest, true)
		node := fake.New()
		if _, err := node.Base(context.Background()); err != nil {
			t.Fatal(err)
		}
		put(node, k, have)
		ops := ipvs.Diff(k, have, want)
		for i, op := range ops {
			seen[op.Effect().Kind]++
			if o := node.Do(context.Background(), ipvs.Plan{{Key: k, Op: op}})[0]; o.Err != nil {
				t.Fatalf("%s: %v", op, o.Err)
			}
			if got, is := ipvs.After(have, ops[:i+1]), read(t, node, k); !got.Equal(own(is)) {
				t.Fatalf("from %+v, after %v: %+v, and the kernel holds %+v", have, ops[:i+1], got, own(is))
			}
		}
	}
	for kind := range ipvs.KindForget {
		if seen[kind] == 0 {
			t.Errorf("no operation of kind %d came", kind)
		}
	}
}
