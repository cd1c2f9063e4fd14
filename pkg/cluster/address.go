package cluster

import (
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// addrFault says why an address cannot be used; the zero value: it can.
type addrFault struct{ reason, message string }

// parseAddr reads an address that traffic can be sent to or accepted on.
//
// Leading zeros in IPv4 ("010.0.0.1") are read as decimal, as the API server
// and kube-proxy read them: such addresses are in old clusters, the API server
// still takes them, and everybody in Kubernetes agrees on what they mean. IPv4
// in IPv6 ("::ffff:10.0.0.1") has no agreed family and is refused.
func parseAddr(s string) (netip.Addr, addrFault) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		a, err = netip.ParseAddr(trimOctets(s))
	}
	if err != nil {
		return netip.Addr{}, addrFault{ReasonInvalidAddress, quote(s) + " is not an IP address"}
	}
	for _, f := range [...]struct {
		is           bool
		reason, what string
	}{
		{a.Zone() != "", ReasonZonedAddress, "has a zone"},
		{a.Is4In6(), ReasonIPv4Mapped, "is an IPv4 address written as IPv6"},
		{a.IsUnspecified(), ReasonUnspecified, "is the unspecified address"},
		{a.IsLoopback(), ReasonLoopback, "is a loopback address"},
		{a.IsMulticast(), ReasonMulticast, "is a multicast address"},
		{a.IsLinkLocalUnicast(), ReasonLinkLocal, "is a link-local address"},
		{a == broadcast, ReasonBroadcast, "is the broadcast address"},
		{thisNetwork.Contains(a), ReasonReserved, "is in 0.0.0.0/8, which no packet can be sent to"},
	} {
		if f.is {
			return netip.Addr{}, addrFault{f.reason, quote(s) + " " + f.what}
		}
	}
	return a, addrFault{}
}

var (
	broadcast   = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
)

// trimOctets takes the leading zeros from the octets of a dotted quad.
// Anything else comes back as it is.
func trimOctets(s string) string {
	octets := strings.Split(s, ".")
	if len(octets) != 4 || len(s) > 64 {
		return s
	}
	for i, o := range octets {
		if t := strings.TrimLeft(o, "0"); t != "" {
			octets[i] = t
		} else if o != "" {
			octets[i] = "0"
		}
	}
	return strings.Join(octets, ".")
}

// parsePrefix reads a CIDR and masks it. Space around it and leading zeros
// are tolerated as kube-proxy tolerates them.
func parsePrefix(s string) (netip.Prefix, addrFault) {
	bad := addrFault{ReasonInvalidCIDR, quote(s) + " is not a CIDR"}
	addr, bits, ok := strings.Cut(strings.TrimSpace(s), "/")
	if !ok || bits == "" || len(bits) > 4 || strings.Trim(bits, "0123456789") != "" {
		return netip.Prefix{}, bad
	}
	a, err := netip.ParseAddr(trimOctets(addr))
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, bad
	}
	if a.Is4In6() {
		return netip.Prefix{}, addrFault{ReasonIPv4Mapped, quote(s) + " is an IPv4 CIDR written as IPv6"}
	}
	n, err := strconv.Atoi(bits)
	if err != nil || n > a.BitLen() {
		return netip.Prefix{}, bad
	}
	return netip.PrefixFrom(a, n).Masked(), addrFault{}
}

// parseProtocol reads a protocol; empty is TCP. False: not one that a Service
// can have.
func parseProtocol(p corev1.Protocol) (Protocol, bool) {
	switch p {
	case "", corev1.ProtocolTCP:
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	}
	return 0, false
}

func validPort(n int32) bool { return n >= 1 && n <= 65535 }
