package kubeproxy

import (
	"fmt"
)

// Chain is a chain of one of iptables' tables.
type Chain struct {
	Name string
	// Base: packets come to it by a hook, and not from another chain alone.
	Base bool
	// Drops: it sees what the node forwards, and drops what none of its rules decides.
	Drops bool
}

// Jump is a rule that leads from one chain to another.
type Jump struct{ From, To string }

// Going says which chains of a table go: kube-proxy's, with every rule in them and every one that leads there. Jumps are
// those of chains that are not kube-proxy's. What somebody else relies on stays, and stays says so, a line each.
func Going(all []Chain, jumps []Jump) (going map[string]bool, stays []string) {
	going = map[string]bool{}
	base := map[string]bool{}
	drops := map[string]bool{}
	for _, c := range all {
		if IsChain(c.Name) {
			going[c.Name] = true
		}
		base[c.Name], drops[c.Name] = c.Base, c.Drops
	}
	for _, j := range jumps {
		switch {
		case j.To == forward && drops[j.From] && going[forward]:
			// Replies of endpoints are among what is forwarded, and it may be the only rule that accepts them.
			delete(going, forward)
			stays = append(stays, fmt.Sprintf("chain %s stays: chain %s drops what no rule accepts, and its rules accept the replies of endpoints", forward, j.From))
		case j.To == markMasq && !base[j.From] && !IsChain(j.From) && going[markMasq]:
			// A plugin for host ports may have its packets masqueraded by that mark.
			delete(going, markMasq)
			delete(going, postrouting)
			stays = append(stays, fmt.Sprintf("chains %s and %s stay: chain %s leads there", markMasq, postrouting, j.From))
		}
	}
	return going, stays
}
