package preview

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// backends says to which real servers IPVS may lead, and with which chance.
func (t *teller) backends() {
	server := t.facts.Frontend(t.fate.hit).Server
	t.Scheduler, t.AffinitySeconds = server.Scheduler, server.Timeout
	if server.Flags&ipvs.Persistent == 0 {
		t.AffinitySeconds = 0
	}
	chance, how := chances(server.Scheduler, t.fate.reals)
	for i, r := range t.fate.reals {
		b := Backend{Addr: r.Addr.String(), Chance: chance[i]}
		seen := t.seen(r.Addr.Addr(), t.ground.Clients)
		if b.Masqueraded, b.why = seen.masqueraded, seen.why; !b.Masqueraded {
			b.Sees = t.from.addr.String()
		}
		t.Backends = append(t.Backends, b)
	}
	t.judge()
	if t.AffinitySeconds > 0 {
		how += fmt.Sprintf("; for %d s after its last connection a client comes back to its endpoint (sessionAffinity)", t.AffinitySeconds)
	}
	t.step("backends", "%s of %s: %s", t.Scheduler, Plural(len(t.Backends), "endpoint"), how)
}

// judge takes what the desk says of endpoints.
func (t *teller) judge() {
	if t.said == nil {
		return
	}
	for _, j := range t.said.Endpoints {
		addr := j.Addr.String()
		if i := slices.IndexFunc(t.Backends, func(b Backend) bool { return b.Addr == addr }); i >= 0 {
			t.Backends[i].Node, t.Backends[i].Reason = j.Node, Coded(j.Why)
		} else if !j.Used() {
			t.LeftOut = append(t.LeftOut, Endpoint{Addr: addr, Node: j.Node, Reason: Coded(j.Why)})
		}
	}
}

// chances are those of real servers by a scheduler, 0 where the connections or the client decide, and how they come about.
func chances(scheduler string, reals []ipvs.Real) (of []float64, how string) {
	of = make([]float64, len(reals))
	sum := 0
	for _, r := range reals {
		sum += int(r.Weight)
	}
	switch scheduler {
	case "rr":
		for i := range of {
			of[i] = 1 / float64(len(reals))
		}
		return of, "each in its turn"
	case "wrr":
		for i, r := range reals {
			of[i] = float64(r.Weight) / float64(sum)
		}
		return of, "each in its turn, by its weight"
	case "sh", "mh":
		return of, "by the client's address, so always the same one"
	case "dh":
		return of, "by the address asked, so always the same one"
	}
	return of, "by the connections that each has, for its weight"
}

// source says as whom the client is seen.
func (t *teller) source() {
	var whys []string
	of := map[string][]Backend{}
	for _, b := range t.Backends {
		why := fmt.Sprintf("masqueraded, so that an endpoint sees an address of this node: %s", b.why)
		if !b.Masqueraded {
			why = fmt.Sprintf("kept, so that an endpoint sees %s: %s", b.Sees, b.why)
		}
		if of[why] == nil {
			whys = append(whys, why)
		}
		of[why] = append(of[why], b)
	}
	for _, why := range whys {
		if len(whys) == 1 {
			t.step("source", "%s", why)
		} else {
			t.step("source", "on the way to %s %s", named(of[why]), why)
		}
	}
}

// named names some of a list of real servers.
func named(bs []Backend) string {
	var names []string
	for _, b := range bs[:min(len(bs), listed)] {
		names = append(names, b.Addr)
	}
	if more := len(bs) - len(names); more > 0 {
		names = append(names, Number(more)+" more")
	}
	return strings.Join(names, ", ")
}

// Text prints it for a person.
func (a *Answer) Text() string {
	t := &table{}
	t.line("%s -> %s on %s\n", a.Client, a.Address, a.Node)
	for i, s := range a.Steps {
		first := fmt.Sprintf("%3d  %-9s", i+1, s.At)
		t.wrap(first, strings.Repeat(" ", len(first)), s.Says)
		if s.At == "backends" || i == len(a.Steps)-1 && a.Verdict != Served {
			t.reals(a)
		}
	}
	t.wrap("  =  ", "     ", a.Conclusion())
	t.reason("     ", Reason{"", a.Why, a.Do})
	a.kernelText(t)
	return t.b.String()
}

// reals prints the real servers and those left out, the first of them where there are many.
func (t *table) reals(a *Answer) {
	const indent = "              "
	for _, b := range a.Backends[:min(len(a.Backends), most)] {
		text := fmt.Sprintf("-> %s  %s", b.Addr, b.Node)
		if b.Chance > 0 && len(a.Backends) > 1 {
			text += fmt.Sprintf("  %.3g %%", 100*b.Chance)
		}
		t.line("%s%s", indent, strings.TrimRight(text, " "))
		t.reason(indent+"   ", b.Reason)
	}
	if more := len(a.Backends) - most; more > 0 {
		t.line("%s... and %s more: -o json names them", indent, Number(more))
	}
	for _, e := range a.LeftOut[:min(len(a.LeftOut), most)] {
		t.line("%sx  %s", indent, strings.TrimRight(e.Addr+"  "+e.Node, " "))
		t.reason(indent+"   ", Reason{e.Code, e.Why, ""})
	}
	if more := len(a.LeftOut) - most; more > 0 {
		t.line("%s... and %s more are left out: -o json names them", indent, Number(more))
	}
}

// Conclusion is the verdict in words.
func (a *Answer) Conclusion() string {
	code := ""
	if a.Code != "" {
		code = " (" + a.Code + ")"
	}
	switch a.Verdict {
	case Served:
		if len(a.Backends) == 1 {
			return "served by " + a.Backends[0].Addr
		}
		return fmt.Sprintf("served by one of %s: %s", Number(len(a.Backends)), named(a.Backends))
	case Refused:
		return "refused: " + a.How + code
	case Dropped:
		return "dropped, " + a.How + code
	}
	if a.Code == desk.CheckAnswered.String() {
		return "answered by the agent itself" + code
	}
	return "not ours: it goes on as if there were no proxy" + code
}

// kernelText says whether the kernel agrees.
func (a *Answer) kernelText(t *table) {
	k := a.Kernel
	switch {
	case k == nil:
		return
	case k.Agrees:
		t.line("\nkernel: agrees")
		return
	}
	now := string(k.Verdict)
	switch {
	case k.Verdict == Served:
		now += " by " + strings.Join(k.Backends[:min(len(k.Backends), listed)], ", ")
		if more := len(k.Backends) - listed; more > 0 {
			now += fmt.Sprintf(", %s more", Number(more))
		}
	case k.Verdict == Passes:
		now = "not taken by it, and goes on"
	}
	t.line("")
	t.wrap("kernel: ", "        ", "differs: as it is now the packet is "+now+".")
	if len(k.Writes) > 0 {
		t.line("        It lacks, or has too much:")
	}
	for _, w := range k.Writes[:min(len(k.Writes), most)] {
		t.command("          ", w)
	}
	if more := len(k.Writes) - most; more > 0 {
		t.line("          ... and %s more: -o json names them", Number(more))
	}
}
