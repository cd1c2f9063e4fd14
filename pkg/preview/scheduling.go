package preview

import (
	"fmt"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// Scheduling is what a Service asks for in how a frontend's connections are shared out; its zero value: nothing.
type Scheduling struct {
	// Wanted is the scheduler that is wanted; "": nobody asks for any, and it is the node's.
	Wanted string `json:"wantedScheduler,omitempty"`
	// WhyWanted says why it is that one.
	WhyWanted string `json:"whyScheduler,omitempty"`
	// Flags are those of the virtual server, by their names in the annotations.
	Flags []string `json:"flags,omitempty"`
	// SlowStart is over how many seconds the weights of new endpoints grow; 0: they do not.
	SlowStart float64 `json:"slowStartSeconds,omitempty"`
}

// SchedulingOf says what the desk says of it.
func SchedulingOf(s desk.Shares) (is Scheduling) {
	if s.Why == "" && s.SlowStart == 0 && s.Flags&^ipvs.Persistent == 0 {
		return is
	}
	is = Scheduling{Wanted: s.Scheduler, WhyWanted: s.Why, SlowStart: s.SlowStart.Seconds()}
	for _, f := range []struct {
		flag ipvs.Flags
		name string
	}{{ipvs.Fallback, s.Scheduler + "-fallback"}, {ipvs.ClientPorts, s.Scheduler + "-port"}, {ipvs.OnePacket, "one-packet"}} {
		if s.Flags&f.flag != 0 {
			is.Flags = append(is.Flags, f.name)
		}
	}
	return is
}

// Text says it in a line; "": there is nothing to say.
func (s Scheduling) Text() string {
	if s.Wanted == "" {
		return ""
	}
	parts := []string{s.Wanted}
	if s.WhyWanted != "" {
		parts[0] += ", " + s.WhyWanted
	}
	if len(s.Flags) > 0 {
		parts = append(parts, "flags "+strings.Join(s.Flags, ", "))
	}
	if s.SlowStart > 0 {
		parts = append(parts, "slow start over "+time.Duration(s.SlowStart*float64(time.Second)).String())
	}
	return strings.Join(parts, "; ")
}

// GrowingText says how far an endpoint's weight has come, and when it is there.
func GrowingText(weight, of uint16, until time.Time) string {
	return fmt.Sprintf("weight %d of %d, slow start until %s", weight, of, until.Local().Format(time.TimeOnly))
}
