package fake

import (
	"context"
	"net/netip"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Look is a Kernel for who only looks at it: nothing of it writes.
type Look struct{ kernel *Kernel }

// Look gives the kernel to who only looks at it.
func (k *Kernel) Look() Look { return Look{k} }

// Base says what the Kernel's would write.
func (l Look) Base(context.Context) (r ipvs.BaseReport, err error) {
	if err := l.kernel.readable(); err != nil {
		return r, err
	}
	was := *l.kernel
	return was.base(), nil
}

// Local gives Node.
func (l Look) Local(ctx context.Context) (ipvs.Local, error) { return l.kernel.Local(ctx) }

// SetPods forgets the ranges.
func (Look) SetPods([]netip.Prefix) error { return nil }

// Shield does nothing.
func (Look) Shield(context.Context, bool) error { return nil }

// Scan reads everything.
func (l Look) Scan(ctx context.Context, f func(ipvs.Key, ipvs.Observed)) error {
	return l.kernel.Scan(ctx, f)
}

// HasScheduler says what is in Schedulers.
func (l Look) HasScheduler(ctx context.Context, name string) (bool, error) {
	return l.kernel.HasScheduler(ctx, name)
}
