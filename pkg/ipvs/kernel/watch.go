package kernel

import (
	"encoding/binary"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kubeproxy"
)

// watcher hears the kernel's notifications. It says that addresses came or went on the node's interfaces, without
// saying what: who cares reads anew. And it says that another program changed our interface, what stands on it, or our
// nftables table. It reads and writes nothing.
type watcher struct {
	changed   chan struct{} // has a token when addresses of other interfaces changed
	ours      atomic.Int32  // index of our interface
	up        atomic.Bool   // it was up when last heard of, or found: a new one is not, at first
	tampering *tampering
	link, nft ownPorts // of the sockets that write
	unbinding expected
	links     *ear
	tables    *ear
	// deaf says why nothing is heard of the nftables table.
	deaf error
}

// anything may have been changed: what was heard is lost, or cannot be read.
var anything = ipvs.Tampering{Base: true, Keys: true}

// overrun is what is heard where the kernel had no room for its notifications.
var overrun = ipvs.Tampering{Base: true, Keys: true, Lost: true}

// watch begins to listen in this thread's network namespace.
func watch(binding Binding) (*watcher, error) {
	w := &watcher{changed: make(chan struct{}, 1), tampering: newTampering()}
	groups := []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR}
	if binding == BindRoute {
		groups = append(groups, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	}
	var err error
	if w.links, err = openEar(unix.NETLINK_ROUTE, "interfaces and addresses", groups...); err != nil {
		return nil, err
	}
	w.link.ear = w.links
	go w.links.run(w.hearLinks, func() {
		w.unbinding.clear()
		w.up.Store(true)
		signal(w.changed)
		w.tampering.hear(overrun)
	})
	if w.tables, err = openEar(unix.NETLINK_NETFILTER, "nftables", unix.NFNLGRP_NFTABLES); err != nil {
		w.deaf = err
		return w, nil
	}
	w.nft.ear = w.tables
	go w.tables.run(w.hearTables, func() { w.tampering.hear(overrun) })
	return w, nil
}

// found takes where our interface is, 0 for nowhere. Whether it is up is asked for once: then it is heard.
func (w *watcher) found(index int, up bool) {
	if w.ours.Swap(int32(index)) != int32(index) {
		w.up.Store(up)
	}
}

func (w *watcher) close() {
	w.links.close()
	if w.tables != nil {
		w.tables.close()
	}
}

// hearLinks takes notifications of rtnetlink.
func (w *watcher) hearLinks(data []byte) {
	var news bool
	var heard ipvs.Tampering
	err := eachNotice(data, func(typ uint16, port uint32, body []byte) {
		news = news || w.isNews(typ, body)
		heard = heard.And(w.linkTampering(typ, port, body))
	})
	if err != nil { // whatever it was
		news, heard = true, anything
	}
	if news {
		signal(w.changed)
	}
	w.tampering.hear(heard)
}

// isNews looks for an address of another interface that is more than link-local: those come and go with every pod.
func (w *watcher) isNews(typ uint16, body []byte) bool {
	if typ != unix.RTM_NEWADDR && typ != unix.RTM_DELADDR || len(body) < unix.SizeofIfAddrmsg {
		return false
	}
	scope, index := body[3], int32(binary.NativeEndian.Uint32(body[4:]))
	return index != w.ours.Load() && scope != unix.RT_SCOPE_LINK
}

// linkTampering says what another program did to our interface, or to what stands on it.
func (w *watcher) linkTampering(typ uint16, port uint32, body []byte) (t ipvs.Tampering) {
	ours := int(w.ours.Load())
	switch {
	case ours == 0 || w.link.has(port):
	case typ == unix.RTM_DELLINK || typ == unix.RTM_NEWLINK:
		t.Base = w.lostLink(typ, body, ours)
	case typ == unix.RTM_DELADDR:
		s, err := parseStanding(body)
		t.Keys = err == nil && s.index == ours && !s.addr.IsLinkLocalUnicast() && !w.unbinding.take(s.addr)
	case typ == unix.RTM_DELROUTE:
		_, isOurs, err := parseRoute(body, ours)
		t.Keys = err == nil && isOurs
	}
	return t
}

// lostLink reports whether our interface was lost: it is gone, down or renamed.
func (w *watcher) lostLink(typ uint16, body []byte, ours int) bool {
	// A bridge tells of its ports in the same words, with a family.
	if len(body) < unix.SizeofIfInfomsg || body[0] != unix.AF_UNSPEC || int(binary.NativeEndian.Uint32(body[4:])) != ours {
		return false
	}
	is := typ == unix.RTM_NEWLINK && binary.NativeEndian.Uint32(body[8:])&unix.IFF_UP != 0
	if was := w.up.Swap(is); !is {
		return was
	}
	name := linkName
	err := eachAttr(body[unix.SizeofIfInfomsg:], func(typ uint16, v []byte) error {
		if typ == unix.IFLA_IFNAME {
			name = cString(v)
		}
		return nil
	})
	return err == nil && name != linkName
}

// hearTables takes notifications of nftables.
func (w *watcher) hearTables(data []byte) {
	var heard ipvs.Tampering
	err := eachNotice(data, func(typ uint16, port uint32, body []byte) {
		if w.nft.has(port) {
			return
		}
		if t := tableTampering(typ); t != (ipvs.Tampering{}) && isOurTable(body) {
			heard = heard.And(t)
		}
		heard = heard.And(ipvs.Tampering{Proxy: proxyWrites(typ, body)})
	})
	if err != nil {
		heard = anything
	}
	w.tampering.hear(heard)
}

// tableTampering says what may be wrong when such a thing happens to our table. What is only added, and is neither a
// rule nor an element, takes no effect.
func tableTampering(typ uint16) ipvs.Tampering {
	switch typ {
	case nftType(unix.NFT_MSG_DELTABLE), nftType(unix.NFT_MSG_DELCHAIN), nftType(unix.NFT_MSG_DELRULE), nftType(unix.NFT_MSG_NEWRULE):
		return ipvs.Tampering{Base: true}
	case nftType(unix.NFT_MSG_DELSET):
		return anything
	case nftType(unix.NFT_MSG_DELSETELEM), nftType(unix.NFT_MSG_NEWSETELEM):
		return ipvs.Tampering{Keys: true}
	}
	return ipvs.Tampering{}
}

// isOurTable reads whether a notification is about our table: it is named by the same attribute in all of them.
func isOurTable(body []byte) (is bool) {
	if len(body) < nfgenLen || body[0] != unix.NFPROTO_INET {
		return false
	}
	_ = eachAttr(body[nfgenLen:], func(typ uint16, v []byte) error {
		is = is || typ == unix.NFTA_TABLE_NAME && cString(v) == tableName
		return nil
	})
	return is
}

// proxyWrites says what another Service proxy wrote of its own; empty: it is none's, or it is only taken away, which who
// cleans up does as well.
func proxyWrites(typ uint16, body []byte) string {
	switch typ {
	case nftType(unix.NFT_MSG_NEWTABLE), nftType(unix.NFT_MSG_NEWCHAIN), nftType(unix.NFT_MSG_NEWRULE), nftType(unix.NFT_MSG_NEWSETELEM),
		nftType(unix.NFT_MSG_DELSETELEM):
	default:
		return ""
	}
	if len(body) < nfgenLen || body[0] != unix.NFPROTO_IPV4 && body[0] != unix.NFPROTO_IPV6 {
		return ""
	}
	table, chain := "", ""
	_ = eachAttr(body[nfgenLen:], func(t uint16, v []byte) error {
		switch {
		case t == unix.NFTA_TABLE_NAME: // the same number in all of them
			table = cString(v)
		case typ == nftType(unix.NFT_MSG_NEWCHAIN) && t == unix.NFTA_CHAIN_NAME, typ == nftType(unix.NFT_MSG_NEWRULE) && t == unix.NFTA_RULE_CHAIN:
			chain = cString(v)
		}
		return nil
	})
	in := place{family: body[0], table: table}.in()
	switch {
	case table == kubeproxy.Table:
		return "kube-proxy in nftables mode wrote to table " + in
	case kubeproxy.IsChain(chain) && slices.Contains(kubeproxy.Tables, table):
		return "kube-proxy in iptables or ipvs mode wrote chain " + in + " " + chain
	}
	return ""
}
