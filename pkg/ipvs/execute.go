package ipvs

import "context"

// Execute takes a Plan through its phases. write is given the Steps of one phase, no two with the same Op,
// and says how each ended. A Key whose Step fails is left out of the later phases: what comes later may
// only be done on top of it. Real servers that the kernel refuses are no such failure as long as one was
// taken that takes connections: the frontend serves with those it has. Equal Ops of several Keys are one write with one outcome for
// all of them.
func Execute(ctx context.Context, plan Plan, write func(context.Context, []Step) []Outcome) []Outcome {
	out := make([]Outcome, len(plan))
	failed := map[Key]bool{}
	for _, phase := range Phases() {
		t := turn{plan: plan}
		for i, s := range plan {
			switch {
			case s.Op.Phase() != phase:
			case failed[s.Key]:
				out[i].Err = ErrNotTried
			default:
				t.add(i)
			}
		}
		if len(t.steps) > 0 {
			t.tell(write(ctx, t.steps), out, failed)
		}
	}
	return out
}

// turn is the part of a Plan that is written at a time.
type turn struct {
	plan  Plan
	steps []Step
	at    []int         // the place of each step in the Plan
	first map[Op]int    // the step of each Op that several Keys may want
	more  map[int][]int // further places of a step
}

// add takes up a step of the Plan.
func (t *turn) add(i int) {
	s := t.plan[i]
	if s.Op.Effect().Fact.Addr.IsValid() { // several Keys may want the very same write; all others name their Key
		if j, ok := t.first[s.Op]; ok {
			t.more[j] = append(t.more[j], i)
			return
		}
		if t.first == nil {
			t.first, t.more = map[Op]int{}, map[int][]int{}
		}
		t.first[s.Op] = len(t.steps)
	}
	t.steps = append(t.steps, s)
	t.at = append(t.at, i)
}

// tell hands out the outcomes and notes which Keys failed.
func (t *turn) tell(outcomes []Outcome, out []Outcome, failed map[Key]bool) {
	var refused map[Key]bool // Keys of which a real server was refused
	for j, o := range outcomes {
		out[t.at[j]] = o
		for _, i := range t.more[j] {
			out[i] = o
			if o.Err != nil {
				failed[t.plan[i].Key] = true
			}
		}
		if o.Err == nil {
			continue
		}
		k := t.plan[t.at[j]].Key
		if !t.steps[j].Op.Effect().AddsReal() || o.Unknown {
			failed[k] = true
			continue
		}
		if refused == nil {
			refused = map[Key]bool{}
		}
		refused[k] = true
	}
	if refused == nil {
		return
	}
	added := map[Key]bool{}
	for j, o := range outcomes {
		if t.steps[j].Op.Effect().Serves && o.Err == nil {
			added[t.steps[j].Key] = true
		}
	}
	for k := range refused {
		failed[k] = failed[k] || !added[k]
	}
}
