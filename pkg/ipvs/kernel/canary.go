package kernel

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// canary notices that another program removed or added virtual servers. IPVS does not notify, but it counts those of
// IPv4, and a single one of IPv6 can be asked for: when all are gone, it is gone.
type canary struct {
	optSocket
	known   bool
	servers int      // of IPv4, when last counted, and what was written since
	witness ipvs.Key // a virtual server of IPv6; zero: none is known
}

// count asks for the number of virtual servers of IPv4.
func (c *canary) count() (int, error) {
	// struct ip_vs_getinfo is three words: version, size of the connection table, number of virtual servers. The
	// library has no such call, but one for an option of eight words.
	words, err := unix.GetsockoptICMPv6Filter(c.fd, unix.IPPROTO_IP, getInfo)
	if err != nil {
		return 0, fmt.Errorf("count virtual servers: %w", err)
	}
	return int(words.Data[2]), nil
}

// wrote takes one of our own writes into account.
func (c *canary) wrote(op ipvs.Op, o ipvs.Outcome) {
	switch is := op.Effect(); {
	case !is.OfServer():
	case is.Made:
		c.changed(is.Key, o, 1)
		if o.Err == nil {
			c.saw(is.Key)
		}
	case is.Gone:
		c.changed(is.Key, o, -1)
		if is.Key == c.witness {
			c.witness = ipvs.Key{}
		}
	}
}

func (c *canary) changed(k ipvs.Key, o ipvs.Outcome, by int) {
	switch {
	case o.Unknown:
		c.known = false
	case o.Err == nil && k.Addr.Is4():
		c.servers += by
	}
}

// saw notes a virtual server that is there.
func (c *canary) saw(k ipvs.Key) {
	if !c.witness.HasServer() && k.HasServer() && k.Addr.Is6() {
		c.witness = k
	}
}

// Canary looks whether another program added or removed virtual servers.
func (k *Kernel) Canary(ctx context.Context) (is ipvs.Census, err error) {
	c := k.canary
	n, err := c.count()
	if err != nil {
		return is, err
	}
	if c.known && n != c.servers {
		is = ipvs.Changed
	}
	c.known, c.servers = true, n
	gone := is == ipvs.Changed && n == 0
	if c.witness.HasServer() {
		found, err := k.ipvs.services(ctx, []ipvs.Key{c.witness})
		switch {
		case errors.Is(err, errLoadedAnew):
			return ipvs.Changed, nil
		case err != nil:
			return is, err
		case len(found) > 0:
			gone = false
		default:
			c.witness, is, gone = ipvs.Key{}, ipvs.Changed, n == 0
		}
	}
	if gone { // of IPv4; of IPv6 there may be others, which nobody counts
		left, err := k.ipvs.allServices(ctx)
		if err != nil {
			return is, err
		}
		for key := range left {
			c.saw(key)
		}
		if len(left) == 0 {
			is = ipvs.AllGone
		}
	}
	return is, nil
}
