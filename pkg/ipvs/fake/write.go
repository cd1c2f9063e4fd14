package fake

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Do writes a Plan.
func (k *Kernel) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	return ipvs.Execute(ctx, plan, func(_ context.Context, steps []ipvs.Step) []ipvs.Outcome {
		out := make([]ipvs.Outcome, len(steps))
		for i, s := range steps {
			if err := k.write(s.Op); err != nil {
				out[i].Err = fmt.Errorf("%s: %w", s.Op, err)
			}
		}
		return out
	})
}

func (k *Kernel) write(op ipvs.Op) error {
	if k.Fail != nil {
		if err := k.Fail(op); err != nil {
			return err
		}
	}
	if err := k.apply(op); err != nil {
		return err
	}
	k.Log = append(k.Log, op)
	return nil
}

// apply carries out one operation or refuses it as the kernel does (kernel source: ip_vs_ctl.c).
func (k *Kernel) apply(op ipvs.Op) error {
	switch o := op.(type) {
	case ipvs.Element:
		return k.element(o)
	case ipvs.Bind:
		return k.bind(o.Addr, true)
	case ipvs.Unbind:
		return k.bind(o.Addr, false)
	case ipvs.AddServer:
		if _, ok := k.Servers[o.Key]; ok {
			return syscall.EEXIST
		}
		if err := k.setServer(o); err != nil {
			return err
		}
		k.counted++
		return nil
	case ipvs.SetServer:
		if _, ok := k.Servers[o.Key]; !ok {
			return syscall.ESRCH
		}
		return k.setServer(ipvs.AddServer(o))
	case ipvs.DelServer:
		if _, ok := k.Servers[o.Key]; !ok {
			return syscall.ESRCH
		}
		delete(k.Servers, o.Key)
		delete(k.Conns, o.Key)
		k.counted--
		return nil
	case ipvs.AddReal:
		return k.real(o.Key, o.Real.Addr, &o.Real, true)
	case ipvs.SetReal:
		return k.real(o.Key, o.Real.Addr, &o.Real, false)
	case ipvs.DelReal:
		return k.real(o.Key, o.Addr, nil, false)
	case ipvs.Forget:
		delete(k.Stale, o.Key)
		return nil
	}
	panic(fmt.Sprintf("no operation: %T", op))
}

func (k *Kernel) setServer(o ipvs.AddServer) error {
	if !slices.Contains(k.Schedulers, o.Scheduler) {
		return syscall.ENOENT
	}
	k.Servers[o.Key] = ipvs.Server{Scheduler: o.Scheduler, Flags: o.Flags, Timeout: o.Timeout, Reals: k.Servers[o.Key].Reals}
	return nil
}

// real adds, changes or, with r nil, removes a real server.
func (k *Kernel) real(key ipvs.Key, addr netip.AddrPort, r *ipvs.Real, add bool) error {
	s, ok := k.Servers[key]
	if !ok {
		return syscall.ESRCH
	}
	if r != nil && addr.Addr().Is4() != key.Addr.Is4() && r.Forward != ipvs.Tunnel || add && !unicast(addr.Addr()) {
		return syscall.EINVAL
	}
	at := slices.IndexFunc(s.Reals, func(r ipvs.Real) bool { return r.Addr == addr })
	s.Reals = slices.Clone(s.Reals)
	switch {
	case add && at >= 0:
		return syscall.EEXIST
	case add:
		s.Reals = ipvs.SortReals(append(s.Reals, *r))
	case at < 0:
		return syscall.ENOENT
	case r != nil:
		s.Reals[at] = *r
	default:
		s.Reals = slices.Delete(s.Reals, at, at+1)
		delete(k.Conns[key], addr)
	}
	k.Servers[key] = s
	return nil
}

// unicast is what the kernel takes for the address of a new real server (ip_vs_new_dest).
func unicast(a netip.Addr) bool {
	broadcast := a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return !a.IsUnspecified() && !a.IsMulticast() && !broadcast && !(a.Is6() && a.IsLinkLocalUnicast())
}

// Tamper adds or removes an element, as another program might.
func (k *Kernel) Tamper(o ipvs.Element) {
	if err := k.element(o); err != nil {
		panic(fmt.Sprintf("%s: %v", o, err))
	}
}

func (k *Kernel) element(o ipvs.Element) error {
	if !k.Table {
		return syscall.ENOENT
	}
	if o.Set == ipvs.SetRanges {
		return k.rangeElement(o)
	}
	there := k.Sets[o.Set][o.Key]
	if o.Remove {
		if !there {
			return syscall.ENOENT
		}
		delete(k.Sets[o.Set], o.Key)
		if o.Set == ipvs.SetRedirect {
			delete(k.Redirects, o.Key)
		}
		return nil
	}
	if o.Set == ipvs.SetRedirect {
		if there && k.Redirects[o.Key] != o.To {
			return syscall.EBUSY
		}
		k.Redirects[o.Key] = o.To
	}
	k.Sets[o.Set][o.Key] = true // adding what is there is no error
	return nil
}

// rangeElement: ranges of one frontend may not overlap (nft_pipapo_insert).
func (k *Kernel) rangeElement(o ipvs.Element) error {
	have := k.Ranges[o.Key]
	at, there := slices.BinarySearchFunc(have, o.From, ipvs.Range.Compare)
	switch {
	case o.Remove && !there:
		return syscall.ENOENT
	case o.Remove:
		have = slices.Delete(slices.Clone(have), at, at+1)
	case there:
		return nil
	case slices.ContainsFunc(have, func(r ipvs.Range) bool { return r.Contains(o.From.First) || r.Contains(o.From.Last) }):
		return syscall.ENOTEMPTY
	default:
		have = slices.Insert(slices.Clone(have), at, o.From)
	}
	if k.Ranges[o.Key] = have; len(have) == 0 {
		delete(k.Ranges, o.Key)
	}
	return nil
}

func (k *Kernel) bind(a netip.Addr, add bool) error {
	switch {
	case !k.Link:
		return syscall.ENODEV
	case add && k.Addrs[a] && !k.Misbound[a]:
		return syscall.EEXIST
	case !add && !k.Addrs[a] && !k.Misbound[a]:
		return syscall.EADDRNOTAVAIL
	case add:
		k.Addrs[a] = true
	default:
		delete(k.Addrs, a)
	}
	delete(k.Misbound, a)
	return nil
}
