package kernel

import (
	"context"
	"errors"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// errReadOnly is the outcome of every write of a Kernel that only reads.
var errReadOnly = errors.New("this process only looks at the kernel")

// Do writes a plan phase by phase.
func (k *Kernel) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	if k.readOnly {
		out := make([]ipvs.Outcome, len(plan))
		for i := range out {
			out[i].Err = errReadOnly
		}
		return out
	}
	out := ipvs.Execute(ctx, plan, k.write)
	for i, o := range out {
		if is := plan[i].Op.Effect(); is.Set == ipvs.SetRanges && o.Err != nil {
			k.mayHaveRanges(is.Key)
		}
	}
	return out
}

// write writes the operations of one phase, which are all different, and says how each ended.
func (k *Kernel) write(ctx context.Context, ops []ipvs.Step) []ipvs.Outcome {
	out := make([]ipvs.Outcome, len(ops))
	var elements, servers, links, forget []int
	for i, s := range ops {
		switch s.Op.Effect().Table {
		case ipvs.TableSets:
			elements = append(elements, i)
		case ipvs.TableInterface:
			links = append(links, i)
		case ipvs.TableConntrack:
			forget = append(forget, i)
		default:
			servers = append(servers, i)
		}
	}
	if len(servers) > 0 {
		assign(out, servers, k.ipvs.write(ctx, opsOf(ops, servers)))
	}
	if len(elements) > 0 {
		assign(out, elements, k.writeElements(ctx, at(ops, elements)))
	}
	if len(links) > 0 {
		assign(out, links, k.link.write(ctx, opsOf(ops, links)))
	}
	if len(forget) > 0 {
		assign(out, forget, k.conntrack.forget(ctx, forgetsOf(ops, forget)))
	}
	return out
}

func forgetsOf(steps []ipvs.Step, places []int) []ipvs.Forget {
	fs := make([]ipvs.Forget, len(places))
	for i, j := range places {
		fs[i] = steps[j].Op.(ipvs.Forget)
	}
	return fs
}

func elementsOf(steps []ipvs.Step) []ipvs.Element {
	es := make([]ipvs.Element, len(steps))
	for i, s := range steps {
		es[i] = s.Op.(ipvs.Element)
	}
	return es
}

func opsOf(steps []ipvs.Step, places []int) []ipvs.Op {
	ops := make([]ipvs.Op, len(places))
	for i, p := range places {
		ops[i] = steps[p].Op
	}
	return ops
}
