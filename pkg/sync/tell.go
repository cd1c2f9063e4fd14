package sync

import (
	"strings"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// Events tells the users of the cluster what is wrong with their objects.
type Events interface {
	// Warn puts an Event of type Warning on a Service; the zero ID stands for the own Node. The reason is
	// CamelCase and from a bounded set, the note at most 1 KiB. It must not block: what cannot be sent in time is
	// dropped.
	Warn(about cluster.ID, reason, note string)
}

// tell logs what is wrong with a Service when it changes, and when it is mended, counts it by reason, and puts
// Events on the Service for what is this node's to say.
func (l *Loop) tell(id cluster.ID, problems []desk.Problem) {
	l.raise(id, problems)
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = p.Text
	}
	text := strings.Join(lines, "; ")
	if text == l.told[id] {
		return
	}
	l.count(id, problems)
	what, subject := "Service", zap.Stringer("service", id)
	if id == desk.OwnNode {
		what, subject = "Node", zap.String("node", l.desk.Site().Node.Name)
	}
	if text == "" {
		delete(l.told, id)
		l.log.Info(what+" is in order again", subject)
		return
	}
	l.told[id] = text
	l.log.Warn("parts of a "+what+" cannot be used", subject, zap.Strings("problems", lines))
}

// count keeps the metric of problems by reason.
func (l *Loop) count(id cluster.ID, problems []desk.Problem) {
	for reason, n := range l.counted[id] {
		l.opt.Health.Problems(reason, -n)
	}
	delete(l.counted, id)
	if len(problems) == 0 {
		return
	}
	counts := map[string]int{}
	for _, p := range problems {
		counts[p.Reason] += max(p.Count, 1)
	}
	for reason, n := range counts {
		l.opt.Health.Problems(reason, n)
	}
	l.counted[id] = counts
}

// noteLimit is how long the note of an Event may be (events.k8s.io/v1).
const noteLimit = 1024

// raise puts Events on a Service, one a reason, when what this node has to say of it is new. With 5,000 nodes each
// would otherwise say the same: of an endpoint only its own node speaks, of an address of a node that node, and of
// everything else the node that has the Service's first endpoint. Of a Service without endpoints there is the log
// of every node.
func (l *Loop) raise(id cluster.ID, problems []desk.Problem) {
	if l.opt.Events == nil || len(problems) == 0 && l.raised[id] == nil {
		return
	}
	if len(problems) == 0 {
		delete(l.raised, id)
		return
	}
	speaks := l.desk.Speaks(id)
	notes := map[string]string{}
	lasting := map[string]bool{}
	var reasons []string
	for _, p := range problems {
		lasting[p.Reason] = true
		if !p.Here && !(p.Anywhere && speaks) {
			continue
		}
		if notes[p.Reason] == "" {
			reasons = append(reasons, p.Reason)
			notes[p.Reason] = p.Text
		} else {
			notes[p.Reason] += "; " + p.Text
		}
	}
	before := l.raised[id]
	after := map[string]string{}
	for reason, note := range before {
		if lasting[reason] { // also while another node speaks: it may be this one's turn again
			after[reason] = note
		}
	}
	for _, reason := range reasons {
		note := notes[reason]
		if len(note) > noteLimit {
			note = strings.ToValidUTF8(note[:noteLimit-len("…")], "") + "…"
		}
		if before[reason] != note {
			l.opt.Events.Warn(id, reason, note)
		}
		after[reason] = note
	}
	if len(after) == 0 {
		delete(l.raised, id)
	} else {
		l.raised[id] = after
	}
}
