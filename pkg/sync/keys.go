package sync

import (
	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// KeyOf is a Key that a Service has, and its port for which it has it.
type KeyOf struct {
	Key     ipvs.Key
	Service cluster.ID
	Port    cluster.Port
}

// Keys gives the Keys that Services have, one Service after the other, until there are PageKeys of them. Looked says how
// many Services were looked at: who wants more asks again for the others. Where another Service has a Key, that one counts.
func (v *View) Keys(services []cluster.ID) (keys []KeyOf, looked int) {
	for _, id := range services {
		for k, p := range v.loop.desk.Owned(id) {
			keys = append(keys, KeyOf{Key: k, Service: id, Port: p})
		}
		if looked++; len(keys) >= PageKeys {
			break
		}
	}
	return keys, looked
}
