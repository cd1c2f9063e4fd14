package kernel

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// sampleMessages are messages as they go over the wire: what the parsers know how to read.
func sampleMessages() (samples [][]byte) {
	message := func(fill func(b *batch)) {
		var b batch
		fill(&b)
		b.finish()
		samples = append(samples, b.data)
	}
	v := ipvsDoor{family: 30}
	l := linkDoor{index: 3}
	for _, k := range []ipvs.Key{key("10.96.0.10", 80), key("fd00:96::10", 80)} {
		message(func(b *batch) {
			v.begin(b, cmdNewService, 0)
			putService(b, ipvs.AddServer{Key: k, Scheduler: "rr", Flags: ipvs.Persistent, Timeout: 600})
		})
		message(func(b *batch) {
			v.begin(b, cmdNewDest, 0)
			r := ipvs.Real{Addr: netip.AddrPortFrom(k.Addr, 8080), Weight: 7}
			putDest(b, k, r.Addr, &r)
		})
		message(func(b *batch) {
			b.begin(ctType(ctMsgNew), 0, nfgen(byte(af(k.Addr)), 0))
			commonOf([]ipvs.Key{k}).put(b)
			b.attrU32(ctID, 7)
		})
		for _, el := range []ipvs.Element{{Set: ipvs.SetOpen}, {Set: ipvs.SetRedirect, To: netip.AddrPortFrom(k.Addr, 81)},
			{Set: ipvs.SetRanges, From: ipvs.Range{First: k.Addr, Last: k.Addr}}} {
			el.Key = k
			message(func(b *batch) { putElement(b, unix.NFT_MSG_NEWSETELEM, 0, el) })
		}
		l.b.reset()
		l.putRoute(unix.RTM_NEWROUTE, 0, k.Addr, k.Addr)
		l.putAddr(unix.RTM_NEWADDR, 0, k.Addr)
		l.b.finish()
		samples = append(samples, append([]byte(nil), l.b.data...))
	}
	message(func(b *batch) { b.begin(unix.NLMSG_ERROR, 0, []byte{0xfe, 0xff, 0xff, 0xff}) })
	message(func(b *batch) { b.begin(unix.NLMSG_ERROR, 0, []byte{0xfe}) })
	return samples
}

// readAll gives a body to every parser.
func readAll(body []byte) {
	_ = errnoOf(body)
	_, _, _ = parseService(body)
	_, _ = parseCounted(body)
	_, _ = parseCountedReal(body, unix.AF_INET)
	for _, family := range []uint16{unix.AF_INET, unix.AF_INET6, 0} {
		_, _, _ = parseDest(body, family)
	}
	if e, err := parseCT(body); err == nil {
		_ = e.bypasses()
	}
	for _, s := range ipvs.Sets {
		for _, f := range families {
			_ = eachElement(body, func(r rawElement) error { _, err := r.parse(s, f); return err })
		}
	}
	_, _, _, _ = parseRule(body)
	_, _, _ = parseRoute(body, 3)
	_, _ = parseStanding(body)
	_, _ = parseLink(body)
}

// FuzzNetlinkMessages: no bytes of whatever origin make a parser panic.
func FuzzNetlinkMessages(f *testing.F) {
	for _, m := range sampleMessages() {
		f.Add(m)
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		_ = eachMessage(data, func(_, _ uint16, _ uint32, body []byte) { readAll(body) })
		readAll(data)
	})
}

// TestSampleMessages: the fuzz target begins with messages that the parsers take.
func TestSampleMessages(t *testing.T) {
	var servers, dests, elements, routes int
	for _, m := range sampleMessages() {
		err := eachMessage(m, func(_, _ uint16, _ uint32, body []byte) {
			if _, s, err := parseService(body); err == nil && s.Exists() {
				servers++
			}
			if r, _, err := parseDest(body, unix.AF_INET); err == nil && r.Weight == 7 {
				dests++
			}
			_ = eachElement(body, func(rawElement) error { elements++; return nil })
			if _, ours, _ := parseRoute(body, 3); ours {
				routes++
			}
		})
		if err != nil {
			t.Error(err)
		}
	}
	if servers != 2 || dests != 2 || elements != 6 || routes != 2 {
		t.Errorf("%d virtual servers, %d real servers, %d elements, %d routes; want 2 of each", servers, dests, elements, routes)
	}
}
