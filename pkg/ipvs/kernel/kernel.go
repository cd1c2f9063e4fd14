// Package kernel is the door to a node's kernel: IPVS over generic netlink, addresses over rtnetlink, our
// nftables table, and the sysctls that traffic needs. It decides nothing. It starts no subprocess, and
// every request has a deadline.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/legacy"
)

// Config is what the constant part of the kernel's state depends on.
type Config struct {
	// ClusterCIDRs are the addresses of the cluster's pods. Sources outside them are masqueraded on their
	// way to a ClusterIP; without any way to know pods, only the node's own connections are. SetPods changes
	// them.
	ClusterCIDRs []netip.Prefix
	// PodsFollow: ClusterCIDRs come by SetPods. Until then rules that stand are left as they are: those of an
	// earlier run know the pods.
	PodsFollow bool
	// PodInterface is the interface through which this node's pods send, or the beginning of the names of
	// such interfaces where it ends in "*". With it, ClusterCIDRs do not count.
	PodInterface string
	// MasqueradeAll masquerades every client on its way to a ClusterIP.
	MasqueradeAll bool
	// ForeignMarks are the bits of a packet's mark by which another Service proxy has packets masqueraded
	// (iptables.masqueradeBit of KubeProxyConfiguration). Where a source is translated here they are taken off: the mark
	// goes on to the packet of a tunnel that carries this one, and that proxy would translate the tunnel's source.
	ForeignMarks uint32
	// Binding is how virtual IPs stand on the interface; empty means BindAddress.
	Binding Binding
	// StrictARP keeps the node from answering and asking for virtual IPs by ARP: a load balancer on the same
	// wire that announces some of them (MetalLB, kube-vip) needs it.
	StrictARP bool
	// Timeouts are those of IPVS; its zero value leaves all as it is.
	Timeouts Timeouts
	// Conntrack is how connection tracking is tuned; its zero value leaves all as it is.
	Conntrack Conntrack
	// ReadOnly: nothing is written. Base says what it would write, and Do must not be called.
	ReadOnly bool
}

// Kernel is the kernel of this network namespace. What its methods promise is said by their user,
// package sync. It is for one goroutine at a time.
type Kernel struct {
	ipvs      *ipvsDoor
	link      *linkDoor
	nft       *nftDoor
	conntrack *conntrackDoor
	detector  *detector
	watch     *watcher
	canary    *canary
	settings  []Setting
	timeouts  Timeouts
	readOnly  bool
	sets      *setDoor
	traces    legacy.Traces
	// ranged are Keys that may have source ranges though they are in no set that says so.
	ranged   map[ipvs.Key]bool
	reserved reservation
	whereabouts
}

// ErrNotRoot: the process may not change the network.
var ErrNotRoot = errors.New("no permission to change the node's network: run as root or with CAP_NET_ADMIN")

// MissingModuleError says which kernel module is missing and what to do.
type MissingModuleError struct {
	Module string
	Err    error
}

func (e *MissingModuleError) Error() string {
	return fmt.Sprintf("kernel module %s is missing and the kernel could not load it: load it on the node (modprobe %s, or a line in /etc/modules-load.d), or build it into the kernel: %v",
		e.Module, e.Module, e.Err)
}

func (e *MissingModuleError) Unwrap() error { return e.Err }

func missingModule(name string, err error) error { return &MissingModuleError{Module: name, Err: err} }

// Open opens the door. Opening makes the kernel load what it has as modules.
func Open(ctx context.Context, cfg Config) (*Kernel, error) {
	if err := MayAdminister(); err != nil {
		return nil, err
	}
	if name := strings.TrimSuffix(cfg.PodInterface, "*"); len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("name of the pods' interface %q is longer than %d characters", cfg.PodInterface, unix.IFNAMSIZ-1)
	}
	v, err := openIPVS(ctx, familyName)
	if err != nil {
		return nil, err
	}
	return open(ctx, cfg, v)
}

// OpenRemains opens the door for a clean-up. Where the kernel has no IPVS, as after its module was taken out, there are no
// virtual servers.
func OpenRemains(ctx context.Context) (*Kernel, error) { return openRemains(ctx, familyName) }

func openRemains(ctx context.Context, familyName string) (*Kernel, error) {
	if err := MayAdminister(); err != nil {
		return nil, err
	}
	v, err := openIPVS(ctx, familyName)
	if errors.As(err, new(*MissingModuleError)) {
		v, err = &ipvsDoor{sock: newSocket(unix.NETLINK_GENERIC), canary: canary{optSocket: closedOptSocket}, absent: true}, nil
	}
	if err != nil {
		return nil, err
	}
	return open(ctx, Config{}, v)
}

func open(ctx context.Context, cfg Config, v *ipvsDoor) (_ *Kernel, err error) {
	k := &Kernel{ipvs: v, canary: &v.canary, conntrack: newConntrack(), detector: newDetector(), settings: Settings(cfg), timeouts: cfg.Timeouts,
		sets: newSetDoor(), traces: legacy.Traces{}, readOnly: cfg.ReadOnly}
	if k.link, err = openLink(cfg.Binding); err == nil {
		k.link.readOnly = cfg.ReadOnly
		k.nft, err = newNFT(cfg)
	}
	if err == nil && lacksInet(ctx, k.nft.sock) {
		err = ErrNoInet
	}
	if err == nil {
		err = k.nft.count(ctx)
	}
	if err == nil {
		err = k.listen()
	}
	if err == nil && !v.absent {
		err = k.canary.open("count virtual servers")
	}
	if err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// listen begins to hear of what others change, and tells it apart from what our own sockets will do.
func (k *Kernel) listen() (err error) {
	if k.watch, err = watch(k.link.binding); err != nil {
		return err
	}
	k.link.sock.note(&k.watch.link)
	k.link.unbinding, k.link.found = &k.watch.unbinding, k.watch.found
	if k.nft != nil {
		k.nft.sock.note(&k.watch.nft)
	}
	return nil
}

// Close closes the sockets. What is in the kernel stays.
func (k *Kernel) Close() {
	k.ipvs.close()
	k.conntrack.close()
	k.detector.reset()
	k.sets.sock.close()
	if k.link != nil {
		k.link.close()
	}
	if k.nft != nil {
		k.nft.close()
	}
	if k.watch != nil {
		k.watch.close()
	}
}

// MayAdminister is nil where this process may change the network of its namespace, and ErrNotRoot where not. It
// asks for the capability itself: who has it need not be root.
func MayAdminister() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read this process's capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("%w (user id %d)", ErrNotRoot, os.Geteuid())
	}
	return nil
}

// Base sees to interface, nftables table and sysctls. With ReadOnly it decides the same, and leaves out the writes.
func (k *Kernel) Base(ctx context.Context) (r ipvs.BaseReport, err error) {
	r.Wrote, r.Warnings = ensureSettings(sysctlRoot, k.settings, k.readOnly)
	bridges, err := BridgeTrouble(ctx)
	if err != nil {
		bridges = []error{err}
	}
	for i, b := range bridges {
		r.Warnings = append(r.Warnings, ipvs.About{Name: fmt.Sprintf("bridges %d", i), Err: b})
	}
	set, err := k.ipvs.ensureTimeouts(ctx, k.timeouts, k.readOnly)
	r.Wrote = append(r.Wrote, set...)
	if err != nil {
		r.Warnings = append(r.Warnings, err)
	}
	wrote, created, err := k.link.ensure(ctx)
	r.Wrote, r.LinkCreated = append(r.Wrote, wrote...), created
	if err == nil && created {
		r.Standing, err = k.link.bindings(ctx)
	}
	if err != nil {
		return r, err
	}
	r.Moved = k.moved(ctx)
	if k.watch.deaf != nil {
		r.Warnings = append(r.Warnings, fmt.Errorf("changes by other programs are found by looking for them alone: %w", k.watch.deaf))
	}
	k.reserved.recorded = nil // it is read anew: another program may have changed it, or the table is new
	wrote, created, err = k.nft.ensure(ctx)
	r.Wrote, r.TableCreated = append(r.Wrote, wrote...), created
	if notSupported(err) {
		err = missingModule("nf_tables", err)
	}
	return r, err
}
