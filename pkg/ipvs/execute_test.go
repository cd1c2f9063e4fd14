package ipvs

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
)

// A frontend opens with the real servers that the kernel took, if one of them takes connections: one of weight 0 does not.
func TestExecuteOpensWithWhatServes(t *testing.T) {
	k := Key{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Proto: TCP}
	refused, other := Real{Addr: netip.MustParseAddrPort("10.244.1.1:80"), Weight: 1}, Real{Addr: netip.MustParseAddrPort("10.244.1.2:80")}
	for weight, opens := range map[uint16]bool{0: false, 1: true} {
		other.Weight = weight
		open := Element{Set: SetOpen, Key: k}
		plan := Plan{{k, AddServer{Key: k, Scheduler: "wrr"}}, {k, AddReal{k, refused}}, {k, AddReal{k, other}}, {k, open}}
		var wrote []Op
		out := Execute(context.Background(), plan, func(_ context.Context, steps []Step) []Outcome {
			outcomes := make([]Outcome, len(steps))
			for i, s := range steps {
				if s.Op == Op(AddReal{k, refused}) {
					outcomes[i].Err = errors.New("refused")
				}
				wrote = append(wrote, s.Op)
			}
			return outcomes
		})
		if slices.Contains(wrote, Op(open)) != opens || (out[3].Err == nil) != opens {
			t.Errorf("beside one of weight %d: wrote %v, the last ended with %v", weight, wrote, out[3].Err)
		}
	}
}
