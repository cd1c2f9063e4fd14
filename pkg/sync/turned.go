package sync

import (
	"hash/fnv"
	"io"
	"math/bits"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// turned has the first real servers of a frontend made in another order on every node: rr and the like begin with the same
// place of their list everywhere, so that the first requests of many nodes, each for a Service that it just got, would meet
// in one pod (B89). Schedulers that find the real server by a hash must find the same one on every node.
func (a *act) turned(k ipvs.Key, have, want *ipvs.Frontend, ops []ipvs.Op) []ipvs.Op {
	if want == nil || len(have.Server.Reals) > 0 || slices.Contains(hashing, want.Server.Scheduler) {
		return ops
	}
	var at []int // where real servers are made
	for i, op := range ops {
		if op.Effect().AddsReal() {
			at = append(at, i)
		}
	}
	if len(at) < 2 {
		return ops
	}
	made := make([]ipvs.Op, len(at))
	first := turnOf(a.desk.Site().Node.Name, k, len(at))
	for i, place := range at {
		made[(i+first)%len(at)] = ops[place]
	}
	for i, place := range at {
		ops[place] = made[i]
	}
	return ops
}

// hashing are the schedulers whose tables follow the order of the real servers.
var hashing = []string{"mh", "sh", "dh"}

// turnOf is by how many places, of n, a node turns what a Key has.
func turnOf(node string, k ipvs.Key, n int) int {
	h := fnv.New64a()
	_, _ = io.WriteString(h, node+" "+k.String())
	place, _ := bits.Mul64(h.Sum64(), uint64(n))
	return int(place)
}
