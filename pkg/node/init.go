package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

// Init supplies what the agent needs of this machine: it loads the modules that are missing and sets the
// sysctls. It says for each thing what it did. An error names the parts of the kernel without which the agent
// cannot run; what it can run without is said as a warning. ModulesRoot is the directory in which lib/modules
// is, "/" on a node.
func Init(ctx context.Context, o Options, modulesRoot string, say func(string)) error {
	l, err := newLoader(modulesRoot)
	if err != nil {
		return err
	}
	if err := kernel.MayAdminister(); err != nil {
		return err
	}
	needs, err := kernel.Needs(o.Kernel)
	if err != nil {
		return err
	}
	s := supplier{loader: l, say: say, failed: map[string]bool{}}
	for _, n := range needs {
		s.supply(ctx, n)
	}
	s.supplyScheduler(ctx, o.scheduler())
	s.supplyBridges(ctx)
	wrote, warnings := kernel.EnsureSettings(kernel.Settings(o.Kernel))
	for _, w := range wrote {
		say(w)
	}
	for _, w := range warnings {
		say("warning: " + w.Error())
	}
	if len(wrote)+len(warnings) == 0 {
		say("sysctls: right")
	}
	return errors.Join(s.errs...)
}

// supplier loads modules that are missing.
type supplier struct {
	loader loader
	say    func(string)
	failed map[string]bool // modules that could not be had, so that each is said once
	errs   []error
}

// supplyScheduler sees to the configured scheduler, and to no other: the kernel loads what Services ask for later. The
// agent can run without the configured one: rr serves in its place, and so has to be there.
func (s *supplier) supplyScheduler(ctx context.Context, name string) {
	before := len(s.errs)
	s.supply(ctx, kernel.NeedScheduler(name))
	if name == rr || len(s.errs) == before {
		return
	}
	for _, err := range s.errs[before:] {
		s.say(fmt.Sprintf("warning: %v; rr serves in its place", err))
	}
	s.errs = s.errs[:before]
	s.supply(ctx, kernel.NeedScheduler(rr))
}

// supply sees to one part of the kernel: first the kernel may load its module by itself, then we do.
func (s *supplier) supply(ctx context.Context, n kernel.Need) {
	before := s.loader.there()
	err := n.Try(ctx)
	if by := added(before, s.loader.there()); err == nil && len(by) > 0 {
		s.say(fmt.Sprintf("%s: the kernel loaded %s", n.Module, strings.Join(by, ", ")))
		return
	}
	var files []string
	for err != nil {
		// What is missing need not be the part's own module, but one below it.
		var missing *kernel.MissingModuleError
		if !errors.As(err, &missing) {
			s.errs = append(s.errs, fmt.Errorf("module %s: %w", n.Module, err))
			return
		}
		if s.failed[missing.Module] {
			return
		}
		more, loadErr := s.loader.load(missing.Module)
		if loadErr == nil && len(more) == 0 {
			loadErr = errors.New("it is loaded, and yet does not answer")
		}
		if loadErr != nil {
			s.failed[missing.Module] = true
			s.errs = append(s.errs, fmt.Errorf("%w; nor could init: %w", err, loadErr))
			return
		}
		files = append(files, more...)
		err = n.Try(ctx)
	}
	if len(files) > 0 {
		s.say(fmt.Sprintf("%s: loaded %s", n.Module, strings.Join(files, ", ")))
		return
	}
	s.say(n.Module + ": there")
}

// supplyBridges loads br_netfilter wherever it can be had: the bridge comes with the first pod, and the agent has not the
// right to load the module then. Pods that stand on no bridge lose nothing by it. A switch that somebody put to 0 stays.
func (s *supplier) supplyBridges(ctx context.Context) {
	if errors.Is(kernel.BridgeNetfilter(), kernel.ErrNoBridgeNetfilter) {
		files, err := s.loader.load("br_netfilter")
		if err != nil {
			s.say("warning: br_netfilter could not be loaded: " + err.Error() + "; pods that stand on no bridge do without")
		} else {
			s.say("br_netfilter: loaded " + strings.Join(files, ", "))
		}
	} else {
		s.say("br_netfilter: there")
	}
	trouble, err := kernel.BridgeTrouble(ctx)
	if err != nil {
		s.say("warning: bridges could not be looked at: " + err.Error())
	}
	for _, t := range trouble {
		s.say("warning: " + t.Error())
	}
}

// added lists what is in after and not in before.
func added(before, after map[string]bool) (names []string) {
	for name := range after {
		if !before[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
