package page

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// mayLook reports whether a request gets the page where only the node itself does: both of its ends are loopback addresses.
// The peer's is looked at, too, because with net.ipv4.conf.*.route_localnet, which several CNI plugins set, a neighbour on
// the wire can send to 127.0.0.1 (CVE-2020-8558). kubectl port-forward comes from the node itself.
func mayLook(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return local != nil && loopback(local.String()) && loopback(r.RemoteAddr)
}

// loopback reports whether "address:port" is on this machine.
func loopback(text string) bool {
	at, err := netip.ParseAddrPort(text)
	return err == nil && at.Addr().Unmap().IsLoopback()
}

// ownName reports whether a Host header names this machine by a loopback address or as localhost. A page somewhere else may
// have its own name resolve to 127.0.0.1 (DNS rebinding), and would then read ours as its own; its name is in the header.
func ownName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && a.Unmap().IsLoopback()
}
