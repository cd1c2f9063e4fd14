package sync

import (
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// What another program takes away as a whole, the table, the interface, all virtual servers, is written anew from what is
// known of the rest: reading all of the kernel first takes longer than the repair. The guard comes first, because the loss of
// the table is heard of at once; then what is urgent, then what is most used. Audits wait for the end of it.

// lostTable queues all that stood in our table, which is a new one.
func (s shared) lostTable() {
	s.mirror.LoseTable()
	s.mend()
	if s.stage.complete {
		s.queue.add(ipvs.Adopted, classBulk)
	}
}

// lostAddresses queues all that stood on our interface, which is a new one or was down, but for what stands there.
func (s shared) lostAddresses(stand map[netip.Addr]bool) {
	s.mirror.LoseAddresses(stand)
	s.mend()
}

// lostServers queues all virtual servers: there are none.
func (s shared) lostServers() {
	s.opt.Health.Lost(s.mirror.LoseServers())
	s.mend()
}

// mend queues every Key, those that are most used first.
func (s shared) mend() {
	s.stage.mending = s.now()
	known := map[ipvs.Key]bool{}
	for k := range s.desk.Keys() {
		known[k] = true
	}
	for k := range s.mirror.Keys() {
		known[k] = true
	}
	for f := range s.mirror.Facts() {
		if k := ipvs.AddrKey(f.Addr); !s.want(k).Needs(f.Kind) {
			known[k] = true
		}
	}
	keys := make([]ipvs.Key, 0, len(known))
	for k := range known {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, s.mirror.ByUse)
	now := s.now()
	for _, k := range keys {
		s.diary.because(k, cause{WhyTampered, now})
		s.again(k)
	}
}

// mended reports whether the last repair of a whole has come to its end. Where there is work without end, it has when it took
// as long as it is from one audit to the next.
func (s shared) mended() bool {
	if s.queue.due == [2]int{} || s.now().Sub(s.stage.mending) > s.opt.AuditPeriod {
		s.stage.mending = time.Time{}
	}
	return s.stage.mending.IsZero()
}

// saidLost says what another program took away as a whole.
func (s shared) saidLost(what string) {
	s.tell.log.Info("another program changed what is ours: putting it right", zap.String("gone", what))
}
