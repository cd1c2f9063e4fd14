package sync

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// A plan is told by name while few are concerned, so that a line of the log has a bound whatever Services there are.
const (
	namedServices  = 4
	namedEndpoints = 3
)

// summary says of a plan what it did for which Service, a line each: "default/kubia: +10.244.1.13:8080 on 4
// frontends". Nil: too many are concerned, or none. What failed says so itself.
func summary(plan ipvs.Plan, jobs []job, failed map[ipvs.Key]error) (lines []string, services int) {
	whose, subjects := map[ipvs.Key]*subject{}, map[string]*subject{}
	for _, j := range jobs {
		if failed[j.key] == nil {
			name := j.subject()
			if subjects[name] == nil {
				subjects[name] = &subject{endpoints: map[endpoint]int{}, at: map[ipvs.Key]bool{}}
			}
			whose[j.key] = subjects[name]
			whose[j.key].more = whose[j.key].more || j.partly != nil
		}
	}
	for _, step := range plan {
		if s := whose[step.Key]; s != nil {
			s.take(step)
		}
	}
	maps.DeleteFunc(subjects, func(_ string, s *subject) bool { return s.writes == 0 })
	if len(subjects) > namedServices {
		return nil, len(subjects)
	}
	for _, name := range slices.Sorted(maps.Keys(subjects)) {
		lines = append(lines, name+": "+subjects[name].String())
	}
	return lines, len(subjects)
}

// subject is who a job is about: a Service, where one is known.
func (j *job) subject() string {
	switch {
	case j.key == ipvs.Adopted:
		return "the first start"
	case j.service == cluster.ID{}:
		return j.key.String()
	}
	return j.service.String()
}

// subject is what a plan does for one Service.
type subject struct {
	servers   [3]int           // frontends made, changed and removed
	endpoints map[endpoint]int // by what becomes of them; on how many frontends
	at        map[ipvs.Key]bool
	writes    int
	more      bool // there is more to be done than a slice has
}

// endpoint is one, and what becomes of it: + comes, - takes no more connections, ~ changes, or it has drained.
type endpoint struct {
	becomes string
	addr    netip.AddrPort
}

func (s *subject) take(step ipvs.Step) {
	s.writes++
	is := step.Op.Effect()
	switch {
	case is.OfServer():
		at := 1
		if is.Made {
			at = 0
		} else if is.Gone {
			at = 2
		}
		s.servers[at]++
	case is.Real.IsValid():
		e := endpoint{"~", is.Real}
		switch {
		case is.Made:
			e.becomes = "+"
		case is.Gone && step.Key.Proto.Drains():
			e.becomes = "drained "
		case is.Removes:
			e.becomes = "-"
		}
		s.endpoints[e]++
		s.at[step.Key] = true
	}
}

func (s *subject) String() string {
	var parts []string
	for i, n := range s.servers {
		if n > 0 {
			parts = append(parts, plural(n, "frontend")+[]string{" made", " changed", " removed"}[i])
		}
	}
	if len(s.endpoints) > 0 {
		parts = append(parts, s.ofEndpoints()+" on "+plural(len(s.at), "frontend"))
	}
	if len(parts) == 0 {
		parts = append(parts, plural(s.writes, "write")+" beside virtual servers")
	}
	if s.more {
		parts = append(parts, "more to come")
	}
	return strings.Join(parts, ", ")
}

// ofEndpoints names endpoints, or counts them.
func (s *subject) ofEndpoints() string {
	var parts []string
	if len(s.endpoints) <= namedEndpoints {
		for _, e := range slices.SortedFunc(maps.Keys(s.endpoints), func(a, b endpoint) int {
			return cmp.Or(cmp.Compare(a.becomes, b.becomes), a.addr.Compare(b.addr))
		}) {
			parts = append(parts, e.becomes+e.addr.String())
		}
		return strings.Join(parts, " ")
	}
	counts := map[string]int{}
	for e := range s.endpoints {
		counts[e.becomes]++
	}
	for _, becomes := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, becomes+plural(counts[becomes], "endpoint"))
	}
	return strings.Join(parts, " ")
}

// plural counts things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
