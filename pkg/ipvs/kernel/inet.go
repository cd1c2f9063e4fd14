package kernel

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// ErrNoInet: the kernel has nftables, and not the family of our table. Only a kernel built without IPv6 is so
// (NF_TABLES_INET in net/netfilter/Kconfig); IPv6 that is switched off takes nothing away.
var ErrNoInet = errors.New("this kernel is built without IPv6 (CONFIG_IPV6=n) and so without nftables' family inet, which the agent needs for IPv4, too: " +
	"use a kernel with IPv6; it may be switched off there (sysctl net.ipv6.conf.all.disable_ipv6=1)")

// notSupported: the kernel knows no such family, or no nftables at all.
func notSupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// tryFamily asks for a table of a family in a transaction without an end, which the kernel takes back.
func tryFamily(ctx context.Context, s *socket, family byte) error {
	b := batch{transaction: true}
	b.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, nfgen(0, unix.NFNL_SUBSYS_NFTABLES))
	b.begin(nftType(unix.NFT_MSG_NEWTABLE), unix.NLM_F_CREATE, nfgen(family, 0))
	b.attrString(unix.NFTA_TABLE_NAME, trialTable)
	b.acknowledge()
	replies, err := s.exchange(ctx, &b)
	for _, r := range replies {
		err = errors.Join(err, r.err)
	}
	return err
}

// lacksInet reports whether the kernel has tables of IPv4 and none for both families.
func lacksInet(ctx context.Context, s *socket) bool {
	return notSupported(tryFamily(ctx, s, unix.NFPROTO_INET)) && tryFamily(ctx, s, unix.NFPROTO_IPV4) == nil
}
