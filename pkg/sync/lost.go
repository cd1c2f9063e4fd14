package sync

import (
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// What another program takes away as a whole, the table, the interface, all virtual servers, is written anew from what is
// known of the rest: reading all of the kernel first takes longer than the repair. The guard comes first, because the loss of
// the table is heard of at once; then what is urgent, then what is most used. Audits wait for the end of it.

// lostServers takes that there is no virtual server.
func (s shared) lostServers() { s.opt.Health.Lost(s.mirror.LoseServers()) }

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
	maps.Copy(known, s.needless())
	for _, k := range slices.SortedFunc(maps.Keys(known), s.mirror.ByUse) {
		s.diary.because(k, cause{WhyTampered, s.stage.mending})
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
