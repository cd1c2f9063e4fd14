package sync

import (
	"context"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// start reads all of the kernel, once the base stands and the cluster is known.
type start struct {
	shared
	reader  Reader
	base    *base
	heal    *heal
	forget  *forget
	site    *site
	proxies Proxies
	tries   uint8
}

func (*start) due(time.Time) time.Time { return time.Time{} } // it follows from what others do

// tend reads it, when it is not known.
func (s *start) tend(ctx context.Context) (more bool) {
	if s.stage.away || s.stage.started || !s.stage.based || !s.stage.synced || !s.site.known || s.dirty.len() > 0 {
		return false
	}
	s.heal.keys.asked = time.Time{} // everything is read now
	s.heal.counts(ctx)              // and counted before, so that nothing falls between
	if err := s.scan(ctx); err != nil {
		if ctx.Err() == nil {
			s.base.failed(s.tries)
			s.tries++
			s.tell.log.Error("reading the kernel failed, trying again", zap.Error(err))
		}
		return false
	}
	s.stage.replacing, s.stage.alone = s.others(ctx)
	s.stage.started, s.stage.announce, s.stage.began = true, true, s.now()
	s.tries = 0
	return false
}

// others reports whether rules of another proxy are there, and whether none of them take packets. Where that cannot be
// read there may be some.
func (s *start) others(ctx context.Context) (some, alone bool) {
	if s.proxies == nil { // the other one has Services of its own
		return false, true
	}
	left, stays, err := s.proxies.Left(ctx)
	return len(left) > 0 || len(stays) > 0 || err != nil, len(left) == 0 && err == nil
}

// scan reads all of the kernel, makes the mirror anew from it, and queues what differs from what is wanted.
// It writes nothing.
func (s *start) scan(ctx context.Context) error {
	found := map[ipvs.Key]ipvs.Observed{}
	if err := s.reader.Scan(ctx, func(k ipvs.Key, o ipvs.Observed) { found[k] = o }); err != nil {
		return err
	}
	s.desk.ResumeAll(func(k ipvs.Key) *ipvs.Frontend { return found[k].Have }, s.now())
	s.mirror.Begin(found, s.ours)
	for k, o := range found {
		if k.HasServer() && o.Have.Guard.Redirect.IsValid() {
			s.forget.redirects(k)
		}
	}
	s.queueDifferences()
	s.fare.anew(s.queue.pending)
	maps.DeleteFunc(s.diary.causes, func(k ipvs.Key, _ cause) bool { return !s.queue.pending(k) })
	if !s.mirror.Adopted() && s.stage.complete {
		s.queue.add(ipvs.Adopted, classBulk)
	}
	return nil
}

// ours decides whether a virtual server or its records may be changed: what the kernel says is owned, what
// is wanted, and at the very first start what stands on our interface.
func (s *start) ours(k ipvs.Key, have *ipvs.Frontend) bool {
	wish := s.want(k)
	if wish.Spared {
		return have.Guard.Owned || wish.Frontend != nil
	}
	own := have.Guard.Own()
	return !own.Equal(&ipvs.Guard{}) || wish.Frontend != nil || !s.mirror.Adopted() &&
		(s.mirror.Holds(ipvs.Fact{Kind: ipvs.FactBind, Addr: k.Addr}) || s.mirror.Holds(ipvs.Fact{Kind: ipvs.FactMisbound, Addr: k.Addr}) || s.desk.IsNodePort(k))
}

// queueDifferences queues every Key that may not be as it should be.
func (s *start) queueDifferences() {
	// Whether they differ is found out slice by slice: a Key that is right costs a comparison.
	for _, k := range slices.SortedFunc(s.desk.Keys(), s.mirror.ByUse) {
		wish := s.want(k)
		if wish.Frontend == nil {
			continue
		}
		s.queue.add(k, classOf(wish))
		if k.Proto == ipvs.UDP {
			s.forget.add(k) // what an earlier run may have left undone
		}
	}
	if !s.stage.complete {
		return
	}
	for _, k := range slices.SortedFunc(s.mirror.Keys(), ipvs.Key.Compare) {
		if s.want(k).Frontend == nil {
			s.queue.add(k, classBulk)
		}
	}
	for _, k := range sorted(s.needless()) {
		s.queue.add(k, classBulk)
	}
}
