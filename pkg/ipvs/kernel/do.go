package kernel

import (
	"context"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Do writes a plan phase by phase.
func (k *Kernel) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	return ipvs.Execute(ctx, plan, k.write)
}

// write writes the operations of one phase, which are all different, and says how each ended.
func (k *Kernel) write(ctx context.Context, ops []ipvs.Step) []ipvs.Outcome {
	out := make([]ipvs.Outcome, len(ops))
	var elements, servers []int
	for i, s := range ops {
		switch s.Op.(type) {
		case ipvs.Element:
			elements = append(elements, i)
		case ipvs.Bind, ipvs.Unbind:
			out[i] = k.link.write(s.Op)
		default:
			servers = append(servers, i)
		}
	}
	if len(servers) > 0 {
		fill(out, servers, k.ipvs.write(ctx, pick[ipvs.Op](ops, servers)))
	}
	if len(elements) > 0 {
		fill(out, elements, k.writeElements(ctx, pick[ipvs.Step](ops, elements)))
	}
	return out
}

// writeElements writes all in one transaction; one that fails is tried again Key by Key, so that what the
// kernel refuses of one frontend costs no other.
func (k *Kernel) writeElements(ctx context.Context, steps []ipvs.Step) []ipvs.Outcome {
	out := k.nft.write(ctx, elementsOf(steps))
	if !slices.ContainsFunc(out, func(o ipvs.Outcome) bool { return o.Err != nil }) {
		return out
	}
	byKey := map[ipvs.Key][]int{}
	var order []ipvs.Key
	for i, s := range steps {
		if byKey[s.Key] == nil {
			order = append(order, s.Key)
		}
		byKey[s.Key] = append(byKey[s.Key], i)
	}
	if len(order) == 1 {
		return out
	}
	for _, key := range order {
		mine := byKey[key]
		fill(out, mine, k.nft.write(ctx, elementsOf(pick[ipvs.Step](steps, mine))))
	}
	return out
}

func elementsOf(steps []ipvs.Step) []ipvs.Element {
	es := make([]ipvs.Element, len(steps))
	for i, s := range steps {
		es[i] = s.Op.(ipvs.Element)
	}
	return es
}

// pick takes the steps, or their operations, at some places.
func pick[T any](steps []ipvs.Step, at []int) []T {
	out := make([]T, len(at))
	for i, j := range at {
		switch p := any(&out[i]).(type) {
		case *ipvs.Step:
			*p = steps[j]
		case *ipvs.Op:
			*p = steps[j].Op
		}
	}
	return out
}

func fill(out []ipvs.Outcome, at []int, with []ipvs.Outcome) {
	for i, j := range at {
		out[j] = with[i]
	}
}
