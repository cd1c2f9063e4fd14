package ipvs

import "context"

// Execute takes a Plan through its phases. write is given the Steps of one phase, no two with the same Op,
// and says how each ended. A Key whose Step fails is left out of the later phases: what comes later may
// only be done on top of it. Real servers that the kernel refuses are no such failure as long as one was
// taken: the frontend serves with those it has. Equal Ops of several Keys are one write with one outcome for
// all of them.
func Execute(ctx context.Context, plan Plan, write func(context.Context, []Step) []Outcome) []Outcome {
	out := make([]Outcome, len(plan))
	failed := map[Key]bool{}
	for _, phase := range Phases() {
		var steps []Step
		var places [][]int
		first := map[Op]int{}
		for i, s := range plan {
			if s.Op.Phase() != phase {
				continue
			}
			if failed[s.Key] {
				out[i].Err = ErrNotTried
				continue
			}
			if j, ok := first[s.Op]; ok {
				places[j] = append(places[j], i)
				continue
			}
			first[s.Op] = len(steps)
			steps = append(steps, s)
			places = append(places, []int{i})
		}
		if len(steps) == 0 {
			continue
		}
		added, refused := map[Key]bool{}, map[Key]bool{}
		for j, o := range write(ctx, steps) {
			_, adds := steps[j].Op.(AddReal)
			for _, i := range places[j] {
				out[i] = o
				switch k := plan[i].Key; {
				case adds && o.Err == nil:
					added[k] = true
				case adds && !o.Unknown:
					refused[k] = true
				case o.Err != nil:
					failed[k] = true
				}
			}
		}
		for k := range refused {
			failed[k] = failed[k] || !added[k]
		}
	}
	return out
}
