package preview

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Question asks what becomes of the first packet of a new connection.
type Question struct {
	// Client is the packet's source; not valid: the node itself sends it, with the source that the kernel chooses.
	Client netip.Addr
	// To is where it is sent.
	To ipvs.Key
}

func (q Question) String() string { return q.client() + " -> " + q.To.String() }

// client is the client in words.
func (q Question) client() string {
	if !q.Client.IsValid() {
		return "node"
	}
	return q.Client.String()
}

// QuestionForm is how to ask a Question.
const QuestionForm = "CLIENT [to] ADDRESS:PORT[/PROTO], such as 192.0.2.7 to 10.96.0.10:53/udp, [fd10::7] to [fd00:96::10]:53, or node to 10.96.0.10:53"

// A QuestionError is a question that cannot be understood. It says what is wrong, and how to ask.
type QuestionError struct{ Wrong string }

func (e *QuestionError) Error() string { return e.Wrong + ": want " + QuestionForm }

// ParseQuestion reads a Question from words, in one text or in several. Between client and address may stand "->" or "to".
// The client is an address, or "node"; the protocol tcp, udp or sctp, and tcp where none is said. The error is a
// QuestionError.
func ParseQuestion(words []string) (q Question, err error) {
	text := strings.ReplaceAll(strings.Join(words, " "), "->", " ")
	var parts []string
	for i, w := range strings.Fields(text) {
		if i > 0 && strings.EqualFold(w, "to") {
			continue
		}
		parts = append(parts, w)
	}
	if n := len(parts); n > 0 && parts[n-1] == "-" {
		return q, &QuestionError{"the shell has taken what stands behind -> for a file: put the question in quotes, or say to"}
	}
	if len(parts) != 2 {
		return q, &QuestionError{fmt.Sprintf("%.100q are not a client and an address", strings.Join(words, " "))}
	}
	if q.Client, err = parseClient(parts[0]); err != nil {
		return q, err
	}
	if q.To, err = parseTarget(parts[1]); err != nil {
		return q, err
	}
	if q.Client.IsValid() && q.Client.Is4() != q.To.Addr.Is4() {
		return q, &QuestionError{fmt.Sprintf("the client %s and the address %s are not of one family", q.Client, q.To.Addr)}
	}
	return q, nil
}

// parseClient reads who sends.
func parseClient(word string) (a netip.Addr, err error) {
	if strings.EqualFold(word, "node") {
		return a, nil
	}
	bare, open := strings.CutPrefix(word, "[")
	bare, closed := strings.CutSuffix(bare, "]")
	if a, err = netip.ParseAddr(bare); err != nil || open != closed {
		if _, withPort := netip.ParseAddrPort(word); withPort == nil {
			return netip.Addr{}, &QuestionError{fmt.Sprintf("the client %q has a port, by which nothing is decided", word)}
		}
		return netip.Addr{}, &QuestionError{fmt.Sprintf("the client %.64q is neither an IP address nor the word node", word)}
	}
	return a, usable("client", a)
}

// usable says why an address is none that a packet has.
func usable(what string, a netip.Addr) error {
	switch {
	case a.Zone() != "":
		return &QuestionError{fmt.Sprintf("the %s %s names an interface", what, a)}
	case a.Is4In6():
		return &QuestionError{fmt.Sprintf("the %s %s is an IPv4 address written as IPv6, which no packet has: that is %s", what, a, a.Unmap())}
	case a.IsUnspecified(), a.IsMulticast():
		return &QuestionError{fmt.Sprintf("the %s %s is no host's address", what, a)}
	}
	return nil
}

// protocols are those of a question, by their names.
var protocols = map[string]ipvs.Proto{"tcp": ipvs.TCP, "udp": ipvs.UDP, "sctp": ipvs.SCTP}

// parseTarget reads ADDRESS:PORT[/PROTO].
func parseTarget(word string) (k ipvs.Key, err error) {
	at, proto, named := strings.Cut(word, "/")
	k.Proto = ipvs.TCP
	if named {
		if k.Proto = protocols[strings.ToLower(proto)]; k.Proto == 0 {
			return k, &QuestionError{fmt.Sprintf("the protocol %.32q of %.64q is none of tcp, udp and sctp", proto, word)}
		}
	}
	colon := strings.LastIndexByte(at, ':')
	host, port := at, ""
	if colon >= 0 {
		host, port = at[:colon], at[colon+1:]
	}
	bare, open := strings.CutPrefix(host, "[")
	bare, closed := strings.CutSuffix(bare, "]")
	if _, whole := netip.ParseAddr(at); whole == nil {
		if strings.Contains(at, ":") {
			return k, &QuestionError{fmt.Sprintf("%s is an IPv6 address without a port, or without brackets: [%s]:80", at, at)}
		}
		return k, &QuestionError{fmt.Sprintf("%s has no port", at)}
	}
	a, err := netip.ParseAddr(bare)
	if err != nil || open != closed || open != a.Is6() {
		return k, &QuestionError{fmt.Sprintf("%.64q is no address and port", at)}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return k, &QuestionError{fmt.Sprintf("the port %.32q of %.64q is no number from 1 to 65535", port, at)}
	}
	k.Addr, k.Port = a, uint16(n)
	return k, usable("address", a)
}
