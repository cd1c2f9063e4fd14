package desk

import (
	"iter"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Owned gives the Keys that a Service has, in canonical order, each with the port for which it has it. Keys that another
// Service has are not among them, nor those that stand for no port: what answers load balancers' checks.
func (d *Desk) Owned(id cluster.ID) iter.Seq2[ipvs.Key, cluster.Port] {
	return func(yield func(ipvs.Key, cluster.Port) bool) {
		ports := d.cluster.Ports(id)
		for _, k := range d.KeysOf(id) {
			c, held := d.Held(k)
			if !held || c.Service != id {
				continue
			}
			if p := PortOf(ports, k, c.Rank); p.Port != 0 && !yield(k, p) {
				return
			}
		}
	}
}
