package ipvs

import "net/netip"

// FactKind is a kind of fact that the kernel holds once for several Keys.
type FactKind uint8

// The kinds of facts.
const (
	FactBind     FactKind = iota // the address is on our interface
	FactVIP                      // the guard refuses what is not open on the address
	FactHairpin                  // the pod's connections to itself are masqueraded
	FactMisbound                 // the address is on our interface in another form than is configured; never wanted
)

// Fact is one such fact.
type Fact struct {
	Kind FactKind
	Addr netip.Addr
}

// FactsOf lists the facts that a frontend shares with others.
func FactsOf(k Key, fe *Frontend, f func(Fact)) {
	if fe == nil {
		return
	}
	if fe.Bind {
		f(Fact{FactBind, k.Addr})
	}
	if fe.Misbound {
		f(Fact{FactMisbound, k.Addr})
	}
	if fe.Guard.VIP {
		f(Fact{FactVIP, k.Addr})
	}
	for _, a := range fe.Guard.Hairpin {
		f(Fact{FactHairpin, a})
	}
}
