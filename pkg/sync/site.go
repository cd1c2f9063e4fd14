package sync

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// site follows what the node itself is, and tells the desk.
type site struct {
	shared
	node  Node
	signs Signs
	where Where
	base  *base
	known bool // the node's addresses were read once
	news  bool // they may have changed
	tries uint8
	next  time.Time
	read  time.Time      // when they last were
	pods  []netip.Prefix // that the kernel was last told of
	// renamed is an interface that was ours, as last said.
	renamed string
}

// localPeriod is the least time between two looks at the node's addresses: they come and go in bursts.
const localPeriod = 100 * time.Millisecond

// localAtLeast is how often they are read though nobody says that they changed. They are all of the node's, virtual IPs
// among them.
const localAtLeast = 30 * time.Minute

// old reports whether the node's addresses are to be read though nothing was heard. While an interface is there that was
// ours, that it goes is not heard in every form that addresses have.
func (s *site) old(now time.Time) bool { return s.renamed != "" || now.Sub(s.read) >= localAtLeast }

func (s *site) due(now time.Time) time.Time {
	switch {
	case !s.news:
		return s.desk.AwayEnds()
	case s.next.IsZero():
		return now
	}
	return sooner(s.next, s.desk.AwayEnds())
}

// tend reads what the node itself is, when something may have changed.
func (s *site) tend(ctx context.Context) (more bool) {
	select {
	case <-s.signs.LocalChanged():
		s.news = true
	default:
	}
	now := s.now()
	if ends := s.desk.AwayEnds(); !ends.IsZero() && !now.Before(ends) {
		s.move(s.desk.Site().Local)
	}
	if !s.news || now.Before(s.next) {
		return false
	}
	local, err := s.node.Local(ctx)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		s.next = now.Add(backoff(s.tries))
		s.tries++
		s.tell.log.Error("reading the node's addresses failed, trying again", zap.Error(err))
		return false
	}
	if local.NoIPv6 != (s.known && s.desk.Site().Local.NoIPv6) {
		s.tell.log.Info("IPv6 on this node", zap.Bool("switchedOff", local.NoIPv6))
		s.stage.started = false // with IPv6 the kernel took our IPv6 addresses away
	}
	if local.Renamed != s.renamed {
		s.sayRenamed(local.Renamed)
	}
	s.known, s.news, s.tries, s.next, s.read = true, false, 0, now.Add(localPeriod), now
	s.move(local)
	return false
}

// sayRenamed says that our interface has got another name, and that it is over. Its addresses are answered there as well,
// and stay when their Services have gone.
func (s *site) sayRenamed(name string) {
	if name == "" {
		s.tell.log.Info("the interface that was ours is gone", zap.String("interface", s.renamed))
	} else {
		s.tell.log.Warn("an interface that was ours has another name now: its addresses are no addresses of this node's; delete it", zap.String("interface", name), zap.String("do", "ip link delete "+name))
	}
	s.renamed = name
}

// move tells the desk where it is, and has the Services decided again that it matters to.
func (s *site) move(local ipvs.Local) {
	node := s.where.Node()
	// Without a Node object the last ranges stay: nobody's pods become strangers for a while.
	if pods := node.PodCIDRs; s.opt.NodePods && len(pods) > 0 && !slices.Equal(s.pods, pods) {
		s.pods = pods
		if err := s.node.SetPods(pods); err != nil {
			s.tell.log.Error("the Node's pod ranges cannot be used", zap.Stringers("podCIDRs", pods), zap.Error(err))
		}
		s.base.next = s.now()
	}
	again := s.desk.Move(node, local, s.where.APIServers(), s.now())
	s.opt.Health.SetCheckAddresses(s.desk.CheckAddresses())
	s.dirty.add(again, WhySite)
}
