package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// tableName is our one nftables table; nobody else writes into it, and we write nowhere else.
const tableName = "ipvs-proxy"

// nftDoor reads and writes our nftables table. The library makes and reads table, chains and sets; rules
// and elements are encoded here: rules because the library cannot say all of them, elements because each
// needs an answer of its own and all a deadline.
type nftDoor struct {
	sock  *socket
	b     batch
	table *nftables.Table
	cfg   Config
	rules []rule
	// uncounted: the kernel has no named counters, and rules have none.
	uncounted bool
	// commits counts our transactions.
	commits uint64
}

func newNFT(cfg Config) (*nftDoor, error) {
	rs, err := rules(cfg, false)
	if err != nil {
		return nil, err
	}
	return &nftDoor{
		sock:  newSocket(unix.NETLINK_NETFILTER),
		table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet},
		cfg:   cfg,
		rules: rs,
	}, nil
}

func (n *nftDoor) close() { n.sock.close() }

// conn is a connection of the library with a deadline: a hung socket must not hang the agent.
func (n *nftDoor) conn() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetDeadline(time.Now().Add(requestTimeout))
	}))
}

// keyType gives the type of a set's elements.
func keyType(s ipvs.Set, f fam) nftables.SetDatatype {
	switch s {
	case ipvs.SetVIPs:
		return f.datatype()
	case ipvs.SetHairpin:
		return nftables.MustConcatSetType(f.datatype(), f.datatype())
	case ipvs.SetRanges:
		return nftables.MustConcatSetType(f.datatype(), nftables.TypeInetProto, nftables.TypeInetService, f.datatype())
	default:
		return nftables.MustConcatSetType(f.datatype(), nftables.TypeInetProto, nftables.TypeInetService)
	}
}

func (f fam) datatype() nftables.SetDatatype {
	if f.size == 16 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

func (n *nftDoor) sets() (out []*nftables.Set) {
	for _, s := range ipvs.Sets {
		for _, f := range families {
			set := &nftables.Set{Table: n.table, Name: f.set(s), KeyType: keyType(s, f), Concatenation: s != ipvs.SetVIPs, Interval: s == ipvs.SetRanges}
			if s == ipvs.SetRedirect {
				set.IsMap, set.DataType = true, nftables.MustConcatSetType(f.datatype(), nftables.TypeInetService)
			}
			out = append(out, set)
		}
	}
	return append(out, n.shielded(), n.reservedSet())
}

// ensure makes table, sets, chains and rules what they should be and says what it had to write.
func (n *nftDoor) ensure(ctx context.Context) (wrote []string, created bool, err error) {
	c, err := n.conn()
	if err != nil {
		return nil, false, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, false, fmt.Errorf("list nftables tables: %w", err)
	}
	created = !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	missing := "table inet " + tableName
	if !created {
		if missing, err = n.missing(c); err != nil {
			return nil, false, err
		}
	}
	if missing != "" {
		if !n.cfg.ReadOnly {
			if err := n.build(c); err != nil {
				return nil, created, err
			}
		}
		wrote = append(wrote, "nft add "+missing)
	}
	if more, err := n.ensureCounters(ctx, created); err != nil {
		return wrote, created, err
	} else if missing == "" {
		wrote = append(wrote, more...)
	}
	right := false
	if !created || !n.cfg.ReadOnly { // there are rules to be read
		if right, err = n.rulesAreRight(ctx); err != nil {
			return wrote, created, err
		}
	}
	if !right && (created || !n.cfg.PodsFollow) {
		if !n.cfg.ReadOnly {
			if err := n.writeRules(ctx); err != nil {
				return wrote, created, err
			}
		}
		wrote = append(wrote, "nft replace the rules of table inet "+tableName)
	}
	return wrote, created, nil
}

// missing names the first set or chain that is not there or not as it should be.
func (n *nftDoor) missing(c *nftables.Conn) (string, error) {
	sets, err := c.GetSets(n.table)
	if err != nil {
		return "", fmt.Errorf("list sets of nftables table %s: %w", tableName, err)
	}
	for _, want := range n.sets() {
		if !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == want.Name }) {
			return "set " + want.Name, nil
		}
	}
	have, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("list nftables chains: %w", err)
	}
	for _, want := range chains(n.table) {
		if !slices.ContainsFunc(have, func(h *nftables.Chain) bool {
			return h.Table.Name == tableName && h.Name == want.Name
		}) {
			return "chain " + want.Name, nil
		}
	}
	return "", nil
}

// build adds what the table needs; what is there already stays.
func (n *nftDoor) build(c *nftables.Conn) error {
	c.AddTable(n.table)
	for _, s := range n.sets() {
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("encode nftables set %s: %w", s.Name, err)
		}
	}
	for _, ch := range chains(n.table) {
		c.AddChain(ch)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make nftables table inet %s: %w", tableName, err)
	}
	return nil
}

// rulesAreRight compares the rules by the hashes in their comments. The library cannot read all of them.
func (n *nftDoor) rulesAreRight(ctx context.Context) (bool, error) {
	have := map[string][]string{} // comments by chain
	// Any commit, also of another's table, interrupts a dump.
	err := again(func() error {
		clear(have)
		n.b.reset()
		n.b.begin(nftType(unix.NFT_MSG_GETRULE), unix.NLM_F_DUMP, nfgen(unix.NFPROTO_INET, 0))
		n.b.attrString(unix.NFTA_RULE_TABLE, tableName)
		return n.sock.dump(ctx, &n.b, func(msg []byte) error {
			table, chain, comment, err := parseRule(msg)
			if table == tableName {
				have[chain] = append(have[chain], comment)
			}
			return err
		})
	})
	if err != nil {
		return false, fmt.Errorf("list rules of nftables table %s: %w", tableName, err)
	}
	want := map[string][]string{}
	for _, r := range n.rules {
		want[r.chain] = append(want[r.chain], r.comment)
	}
	return maps.EqualFunc(have, want, slices.Equal[[]string]), nil
}

// parseRule reads where a rule is and its comment.
func parseRule(msg []byte) (table, chain, comment string, err error) {
	err = eachAttr(skip(msg, nfgenLen), func(typ uint16, v []byte) error {
		switch typ {
		case unix.NFTA_RULE_TABLE:
			table = cString(v)
		case unix.NFTA_RULE_CHAIN:
			chain = cString(v)
		case unix.NFTA_RULE_USERDATA:
			comment = commentOf(v)
		}
		return nil
	})
	return table, chain, comment, err
}

// commentOf reads a rule's comment from its user data: type, length, value. The library's reader panics where
// the length is wrong.
func commentOf(data []byte) string {
	for len(data) >= 2 && len(data) >= 2+int(data[1]) {
		value := data[2 : 2+int(data[1])]
		if userdata.Type(data[0]) == userdata.TypeComment {
			return cString(value)
		}
		data = data[2+len(value):]
	}
	return ""
}

// nft message types carry the subsystem in the upper byte.
func nftType(msg int) uint16 { return uint16(unix.NFNL_SUBSYS_NFTABLES<<8 | msg) }

// nfgenLen is the length of struct nfgenmsg.
const nfgenLen = 4

// nfgen is the header of a netfilter netlink message, struct nfgenmsg.
func nfgen(family byte, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, 0}, resource)
}

// transaction sends messages as one transaction: all or nothing. The replies are those of the messages
// that fill put in.
func (n *nftDoor) transaction(ctx context.Context, fill func(b *batch)) ([]reply, error) {
	n.commits++
	n.b.reset()
	n.b.transaction = true
	defer func() { n.b.transaction = false }()
	n.b.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, nfgen(0, unix.NFNL_SUBSYS_NFTABLES))
	fill(&n.b)
	// The acknowledgement is asked of the last message inside: kernels before 2024 never answer it on the
	// end of a batch.
	n.b.acknowledge()
	acknowledged := n.b.count
	n.b.begin(unix.NFNL_MSG_BATCH_END, 0, nfgen(0, unix.NFNL_SUBSYS_NFTABLES))
	n.b.last = acknowledged
	defer func() { n.b.last = 0 }()
	replies, err := n.sock.exchange(ctx, &n.b)
	if err != nil {
		return nil, fmt.Errorf("nftables transaction: %w", err)
	}
	inside := replies[1 : len(replies)-1]
	var failed error
	for _, r := range replies {
		if r.err != nil && (failed == nil || !r.unknown) {
			failed = r.err
		}
	}
	return inside, failed
}

// writeRules replaces all rules in one transaction.
func (n *nftDoor) writeRules(ctx context.Context) error {
	replies, err := n.transaction(ctx, func(b *batch) {
		for _, ch := range chains(n.table) {
			b.begin(nftType(unix.NFT_MSG_DELRULE), 0, nfgen(unix.NFPROTO_INET, 0))
			b.attrString(unix.NFTA_RULE_TABLE, tableName)
			b.attrString(unix.NFTA_RULE_CHAIN, ch.Name)
		}
		for _, r := range n.rules {
			putRule(b, tableName, r)
		}
	})
	if err == nil {
		return nil
	}
	for i, r := range skipReplies(replies, len(chains(n.table))) {
		if r.err != nil && !r.unknown {
			return fmt.Errorf("nftables rule %q of chain %s: %w", n.rules[i].why, n.rules[i].chain, r.err)
		}
	}
	return fmt.Errorf("write the nftables rules: %w", err)
}

// putRule appends the request to add a rule at the end of its chain.
func putRule(b *batch, table string, r rule) {
	b.begin(nftType(unix.NFT_MSG_NEWRULE), unix.NLM_F_CREATE|unix.NLM_F_APPEND, nfgen(unix.NFPROTO_INET, 0))
	b.attrString(unix.NFTA_RULE_TABLE, table)
	b.attrString(unix.NFTA_RULE_CHAIN, r.chain)
	b.nest(unix.NFTA_RULE_EXPRESSIONS, func() {
		for _, e := range r.encoded {
			b.attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, e)
		}
	})
	b.attr(unix.NFTA_RULE_USERDATA, r.userData())
}

func skipReplies(rs []reply, n int) []reply { return rs[min(n, len(rs)):] }
