package desk

import (
	"maps"
	"slices"
)

// portClaims are the numbers that are claimed as node ports on this node, of whichever protocol and address.
type portClaims struct {
	claims  map[uint16]int
	changes uint64
}

// count notes that there is one claim of a port more, or one less.
func (n *portClaims) count(port uint16, more bool) {
	switch {
	case more && n.claims[port] > 0:
		n.claims[port]++
	case more:
		n.claims[port] = 1
		n.changes++
	case n.claims[port] > 1:
		n.claims[port]--
	default:
		delete(n.claims, port)
		n.changes++
	}
}

// NodePortNumbers are the ports of this node that are claimed as node ports, sorted.
func (d *Desk) NodePortNumbers() []uint16 { return slices.Sorted(maps.Keys(d.ledger.nodePorts.claims)) }

// NodePortChanges changes whenever NodePortNumbers may.
func (d *Desk) NodePortChanges() uint64 { return d.ledger.nodePorts.changes }
