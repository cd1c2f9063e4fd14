package ipvs

import "net/netip"

// Kind is a kind of operation, one for each type that is an Op.
type Kind uint8

// The kinds of operations.
const (
	KindAddServer Kind = iota
	KindSetServer
	KindDelServer
	KindAddReal
	KindSetReal
	KindDelReal
	KindBind
	KindUnbind
	KindAddElement
	KindDelElement
	KindForget
)

// Table is where in the kernel an operation writes.
type Table uint8

// The tables.
const (
	TableIPVS      Table = iota
	TableInterface       // the addresses of ours
	TableSets            // of our nftables table
	TableConntrack
)

// Effect is what an operation does, said once for all who have to know: in which table, on what, and what may be known
// of the kernel once it took place.
type Effect struct {
	Kind  Kind
	Table Table
	// Made and Gone: it makes something, or takes away what its opposite makes. What changes something in place does
	// neither.
	Made, Gone bool
	// Serves: it makes a real server that takes connections.
	Serves bool
	// Removes: it takes something out of service, for some clients at least.
	Removes bool
	// Key is the virtual server's, or that of the element of a set; zero: it is about an address alone.
	Key Key
	// Real is the real server that comes, changes or goes.
	Real netip.AddrPort
	// Fact is what it makes or takes away for several Keys at once: their equal operations are one write. Its Addr is
	// not valid where it does not.
	Fact Fact
	// Set is that of an element.
	Set Set
	// Scheduler is what a virtual server is to have.
	Scheduler string
}

// AddsReal: a real server comes.
func (e Effect) AddsReal() bool { return e.Made && e.Real.IsValid() }

// OfServer: it makes or takes away a virtual server as a whole, or changes its configuration.
func (e Effect) OfServer() bool { return e.Table == TableIPVS && !e.Real.IsValid() }

// Binds reports whether it puts an address on the interface.
func (e Effect) Binds() bool { return e.Table == TableInterface && e.Made }

// Effect of an operation.
func (o AddServer) Effect() Effect {
	return Effect{Kind: KindAddServer, Made: true, Key: o.Key, Scheduler: o.Scheduler}
}

// Effect of an operation.
func (o SetServer) Effect() Effect {
	return Effect{Kind: KindSetServer, Key: o.Key, Scheduler: o.Scheduler}
}

// Effect of an operation.
func (o DelServer) Effect() Effect {
	return Effect{Kind: KindDelServer, Key: o.Key, Gone: true, Removes: true}
}

// Effect of an operation.
func (o AddReal) Effect() Effect {
	return Effect{Kind: KindAddReal, Made: true, Key: o.Key, Real: o.Real.Addr, Serves: o.Real.Weight > 0}
}

// Effect of an operation.
func (o SetReal) Effect() Effect {
	return Effect{Kind: KindSetReal, Key: o.Key, Real: o.Real.Addr, Removes: o.Real.Weight == 0}
}

// Effect of an operation.
func (o DelReal) Effect() Effect {
	return Effect{Kind: KindDelReal, Key: o.Key, Real: o.Addr, Gone: true, Removes: true}
}

// Effect of an operation.
func (o Bind) Effect() Effect {
	return Effect{Kind: KindBind, Table: TableInterface, Made: true, Fact: Fact{FactBind, o.Addr}}
}

// Effect of an operation.
func (o Unbind) Effect() Effect {
	return Effect{Kind: KindUnbind, Table: TableInterface, Fact: Fact{FactBind, o.Addr}, Gone: true, Removes: true}
}

// Effect of an operation.
func (e Element) Effect() Effect {
	is := Effect{Kind: KindAddElement, Table: TableSets, Key: e.Key, Set: e.Set, Made: !e.Remove, Gone: e.Remove, Removes: e.Remove != e.Set.Bars()}
	if e.Remove {
		is.Kind = KindDelElement
	}
	switch e.Set {
	case SetVIPs:
		is.Fact = Fact{FactVIP, e.Key.Addr}
	case SetHairpin:
		is.Fact = Fact{FactHairpin, e.Key.Addr}
	}
	return is
}

// Effect of an operation.
func (o Forget) Effect() Effect { return Effect{Kind: KindForget, Table: TableConntrack, Key: o.Key} }
