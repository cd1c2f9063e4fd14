package kernel

import (
	"fmt"

	"github.com/google/nftables"
)

// Chain is a chain of somebody's nftables table; iptables-nft keeps its chains there, too.
type Chain struct {
	Family string // ip, ip6, inet, bridge, arp, netdev
	Table  string
	Name   string
	// Show is what a person types to see it.
	Show string
	// Forward: it sees what the node forwards, replies of Services' endpoints among them.
	Forward bool
	// Input: it sees what comes to the node before IPVS does, all packets to Services among them, those of pods as well.
	Input bool
	// Drop: what none of its rules decides is dropped.
	Drop bool
}

func (c Chain) String() string { return c.Family + " " + c.Table + " " + c.Name }

var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
	nftables.TableFamilyARP: "arp", nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyBridge: "bridge",
}

// ipvsInput is the priority at which IPVS takes what comes to the node, its first one (ip_vs_core.c, ip_vs_ops4).
const ipvsInput = 98

// ForeignTables lists the nftables tables of others, "family name", and the chains in them.
func ForeignTables() (tables []string, chains []Chain, err error) {
	c, err := new(nftDoor).conn()
	if err != nil {
		return nil, nil, fmt.Errorf("open nftables: %w", err)
	}
	ts, err := c.ListTables()
	if err != nil {
		return nil, nil, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range ts {
		if !ours(t) {
			tables = append(tables, familyNames[t.Family]+" "+t.Name)
		}
	}
	all, err := c.ListChains()
	if err != nil {
		return nil, nil, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, ch := range all {
		if ours(ch.Table) {
			continue
		}
		ip := ch.Table.Family == nftables.TableFamilyINet || ch.Table.Family == nftables.TableFamilyIPv4 || ch.Table.Family == nftables.TableFamilyIPv6
		found := Chain{
			Family: familyNames[ch.Table.Family], Table: ch.Table.Name, Name: ch.Name,
			Input:   ip && ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookInput && ch.Priority != nil && *ch.Priority < ipvsInput,
			Forward: ip && ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward,
			Drop:    ch.Hooknum != nil && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop,
		}
		found.Show = "nft list chain " + found.String()
		chains = append(chains, found)
	}
	return tables, chains, nil
}

// FlowTables lists the flow tables of others, "family table name": connections in them take a short way past the hooks.
func FlowTables() (names []string, err error) {
	c, err := new(nftDoor).conn()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		if ours(t) {
			continue
		}
		found, err := c.ListFlowtables(t)
		if err != nil {
			return nil, fmt.Errorf("list flow tables of nftables table %s: %w", t.Name, err)
		}
		for _, f := range found {
			names = append(names, familyNames[t.Family]+" "+t.Name+" "+f.Name)
		}
	}
	return names, nil
}

func ours(t *nftables.Table) bool {
	return t.Family == nftables.TableFamilyINet && t.Name == tableName
}
