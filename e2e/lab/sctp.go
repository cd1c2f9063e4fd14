package lab

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// SCTP in its one-to-one style has the calls of TCP, so that servers and questions are those of TCP on another
// kind of socket; what they say to each other is the same HTTP. Each family has sockets of its own: SCTP tells
// its peer the addresses under which it can be reached, and no balancer translates those.

// ServeSCTP answers over SCTP on a port of the namespace, as ServeHTTP does over TCP: on the given addresses, or
// on the wildcards of both families.
func (h *Host) ServeSCTP(name string, port uint16, addrs ...netip.Addr) (stop func(), err error) {
	if len(addrs) == 0 {
		addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	return h.serve(unix.IPPROTO_SCTP, name, port, 0, addrs)
}

// AskSCTP opens an association, asks once and closes it: Ask with OverSCTP, which Connect, Spread and loads take
// too.
//
// Of refusals a client of SCTP hears little (measured on 6.1, held by TestSCTPRefusals). A port on which nobody
// listens answers with an ABORT, and that is Refused at once. An ICMP error is passing trouble to it, and it
// tries on until its attempts have run out, which the default timers put at 333 s: port unreachable, which is also
// what a virtual server without real servers answers, is TimedOut. So is a network without a route. The one exception
// is IPv4's protocol unreachable, Refused within 60 ms by ENOPROTOOPT.
func (h *Host) AskSCTP(to netip.AddrPort, opts ...AskOption) Reply {
	return h.Ask(to, append(opts[:len(opts):len(opts)], OverSCTP())...)
}
