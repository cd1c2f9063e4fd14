// Package node readies a machine for the one agent that it has: Check says what is missing or in the way, Init
// supplies what can be supplied, Hold takes the agent's place.
package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

// Level is how much a finding matters.
type Level uint8

const (
	OK      Level = iota // as it should be
	Warning              // the agent can run; something does not work, or soon will not
	Problem              // the agent cannot run here, or traffic will fail
)

func (l Level) String() string { return [...]string{"ok", "warning", "problem"}[l] }

// Finding is one thing that Check looked at. Its text says what is so, what follows and what to do.
type Finding struct {
	Level Level
	Text  string
}

func (f Finding) String() string { return fmt.Sprintf("%-8s %s", f.Level, f.Text) }

func ok(format string, args ...any) Finding { return Finding{OK, fmt.Sprintf(format, args...)} }
func warning(format string, args ...any) Finding {
	return Finding{Warning, fmt.Sprintf(format, args...)}
}
func problem(format string, args ...any) Finding {
	return Finding{Problem, fmt.Sprintf(format, args...)}
}

// rr is the scheduler that serves where the configured one is missing.
const rr = "rr"

// Options are what the agent is to be started with.
type Options struct {
	Kernel    kernel.Config
	Scheduler string // of virtual servers; empty means rr
}

func (o Options) scheduler() string {
	if o.Scheduler == "" {
		return rr
	}
	return o.Scheduler
}

// Check looks at the machine and the network namespace of this process. It writes nothing; asking for a part of
// the kernel makes the kernel load a module that it has, as the agent's start does.
func Check(ctx context.Context, o Options) []Finding {
	found := []Finding{checkRelease(), checkRights()}
	found = append(found, checkNeeds(ctx, o)...)
	found = append(found, checkInterface()...)
	found = append(found, checkSettings(kernel.Settings(o.Kernel))...)
	found = append(found, checkBridges(ctx)...)
	found = append(found, checkNodePorts())
	found = append(found, checkForeign(ctx)...)
	found = append(found, Neighbours(ctx)...)
	return append(found, checkConntrack(), checkConnections(), checkIPv6())
}

// oldest is the first kernel whose IPVS and nftables do what the agent relies upon.
var oldest = [2]int{5, 10}

func checkRelease() Finding {
	release, err := KernelRelease()
	if err != nil {
		return warning("%v; it should be %d.%d or later", err, oldest[0], oldest[1])
	}
	return judgeRelease(release)
}

func judgeRelease(release string) Finding {
	var v [2]int
	if _, err := fmt.Sscanf(release, "%d.%d", &v[0], &v[1]); err != nil {
		return warning("kernel %q has no version that can be read; it should be %d.%d or later", release, oldest[0], oldest[1])
	}
	if slices.Compare(v[:], oldest[:]) < 0 {
		return problem("kernel %s is older than %d.%d, from which on IPVS and nftables do what the agent relies upon: use a newer one", release, oldest[0], oldest[1])
	}
	return ok("kernel %s", release)
}

func checkRights() Finding {
	if err := kernel.MayAdminister(); err != nil {
		return problem("%v", err)
	}
	return ok("CAP_NET_ADMIN")
}

// checkNeeds tries each part of the kernel that the agent builds upon.
func checkNeeds(ctx context.Context, o Options) (found []Finding) {
	needs, err := kernel.Needs(o.Kernel)
	if err != nil {
		return []Finding{problem("the nftables rules cannot be made: %v", err)}
	}
	scheduler := kernel.NeedScheduler(o.scheduler())
	needs = append(needs, scheduler)
	var there []string
	for _, n := range needs {
		err := n.Try(ctx)
		switch {
		case err == nil:
			there = append(there, n.Module)
		case errors.Is(err, kernel.ErrNotRoot):
			return []Finding{warning("modules were not tried: that needs CAP_NET_ADMIN")}
		case n.Module == scheduler.Module && o.scheduler() != rr:
			found = append(found, warning("%v; rr serves in its place", err))
		case errors.As(err, new(*kernel.MissingModuleError)):
			found = append(found, problem("%v", err))
		default:
			found = append(found, problem("module %s: %v", n.Module, err))
		}
		if err != nil && n.Module == "ip_vs" {
			return found // the rest would say the same again
		}
	}
	if len(there) > 0 {
		found = append(found, ok("modules, or built in: %s", strings.Join(there, ", ")))
	}
	return append(found, checkSchedulers(o.scheduler()))
}

// checkSchedulers says what becomes of a Service that asks for another scheduler than the configured one. Nobody may
// want one of those, so the kernel is not asked for them: it would load each.
func checkSchedulers(configured string) Finding {
	there := []string{}
	for name := range loadedModules() {
		if s, is := strings.CutPrefix(name, "ip_vs_"); is && s != configured && slices.Contains(kernel.Schedulers, s) {
			there = append(there, s)
		}
	}
	slices.Sort(there)
	loaded := "none is loaded as a module now"
	if len(there) > 0 {
		loaded = "loaded now: " + strings.Join(there, " ")
	}
	return ok("schedulers beside %s were not asked for (%s): the kernel loads ip_vs_NAME when the first Service asks for it; where it cannot, rr serves until it is there (modprobe ip_vs_NAME) and the agent starts again",
		configured, loaded)
}

const ipvsSysctls = "net/ipv4/vs/"

func checkSettings(list []kernel.Setting) (found []Finding) {
	for _, s := range list {
		have, right, err := s.Read()
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(s.Name, ipvsSysctls) {
			if _, err := os.Stat("/proc/sys/" + ipvsSysctls); err != nil {
				continue // they come with ip_vs, of which checkNeeds speaks
			}
		}
		if err == nil && right {
			continue
		}
		level := Problem
		if s.Tuning {
			level = Warning
		}
		text := fmt.Sprintf("sysctl %s is %s, should be %s", s.Name, have, s.Should())
		switch writable := s.Writable(); {
		case err != nil:
			text = fmt.Sprintf("%v; where it is wrong, %s", err, s.Else)
		case writable == nil:
			level = Warning
			text += ": init and run set it; until then " + s.Else
		case errors.Is(writable, unix.EROFS):
			// Runtimes mount /proc/sys so for every container that is not privileged: it says nothing of the node.
			level = Warning
			text += fmt.Sprintf(": it is read-only here, as in every container that is not privileged; the install files' init, which is, sets it, or on the node: sysctl -w %s=%s; until then %s", s.Name, s.Want, s.Else)
		default:
			text += fmt.Sprintf(", and may not be written from here (%v): sysctl -w %s=%s on the node; as it is, %s", writable, s.Name, s.Want, s.Else)
		}
		found = append(found, Finding{level, text})
	}
	if len(found) == 0 {
		return []Finding{ok("sysctls")}
	}
	return found
}

// checkInterface looks whether something else has the name of the interface on which virtual IPs stand.
func checkInterface() []Finding {
	if err := kernel.InterfaceTrouble(); err != nil {
		return []Finding{problem("%v", err)}
	}
	return nil
}

// checkBridges looks at the bridges with pods, and where there is none yet at what one would need: the first pod brings it,
// when nobody looks any more.
func checkBridges(ctx context.Context) (found []Finding) {
	trouble, err := kernel.BridgeTrouble(ctx)
	if err != nil {
		return []Finding{warning("bridges could not be looked at: %v", err)}
	}
	for _, t := range trouble {
		found = append(found, problem("%v", t))
	}
	if len(found) == 0 {
		return []Finding{judgeBridgeNetfilter(kernel.BridgeNetfilter())}
	}
	return found
}

func judgeBridgeNetfilter(err error) Finding {
	switch {
	case errors.Is(err, kernel.ErrNoBridgeNetfilter):
		return warning("%v; init loads it where this node has it; pods that stand on no bridge do without", err)
	case err != nil:
		return warning("%v; pods that stand on no bridge do without", err)
	}
	return ok("br_netfilter: bridges hand their packets to IPVS")
}

// The node ports that an API server gives unless it is told otherwise (--service-node-port-range).
const firstNodePort, lastNodePort = 30000, 32767

// checkNodePorts looks whether a process of the node may be given a node port as its own.
func checkNodePorts() Finding {
	return judgeNodePorts(kernel.ExposedPorts(firstNodePort, lastNodePort))
}

func judgeNodePorts(exposed string, writable, err error) Finding {
	switch {
	case err != nil:
		return warning("whether node ports are given to processes that connect out cannot be seen: %v", err)
	case exposed == "":
		return ok("no node port of the usual range, %d-%d, is given to a process that connects out", firstNodePort, lastNodePort)
	case writable == nil:
		return ok("node ports: run keeps those that are served from processes that connect out, by net.ipv4.ip_local_reserved_ports")
	}
	return warning("the kernel may give the ports %s to processes that connect out (net.ipv4.ip_local_port_range), and net.ipv4.ip_local_reserved_ports may not be written from here (%v): who is given a served node port gets no answer; on the node: sysctl -w net.ipv4.ip_local_reserved_ports=%d-%d, or what the API server's --service-node-port-range says, and a line in /etc/sysctl.d for good",
		exposed, writable, firstNodePort, lastNodePort)
}

func checkIPv6() Finding {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	if err != nil || strings.TrimSpace(string(b)) != "0" {
		return warning("IPv6 is switched off on this node: Services have their IPv4 addresses only; in an IPv4 cluster that is all right, else set net.ipv6.conf.all.disable_ipv6=0 or remove ipv6.disable=1 from the kernel's command line")
	}
	return ok("IPv6 is on")
}
