// Package lab is the world in which traffic tests ask their questions: nodes,
// pods and an outside client, each a network namespace on one kernel.
//
//	wire (bridge br0)  172.28.128.0/24  fd28:128::/64
//	  ├── node1 eth0 .11 ── cni0 10.244.1.1 ── pod-a 10.244.1.10, pod-b .11
//	  ├── node2 eth0 .12 ── cni0 10.244.2.1 ── pod-c 10.244.2.10
//	  └── client eth0 .100, with routes for the ranges of virtual IPs via a node
//
// IPVS, nftables, conntrack and the sysctls under net/ belong to a namespace,
// so one kernel carries many nodes. Everything goes through netlink in this
// process and every socket of a pod is a socket of this process that was
// opened in the pod's namespace: starting a process is very slow in an
// emulated machine, and a namespace without a name or a process in it vanishes
// with the test, however the test ends.
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Ranges of the world. Host parts read alike in both families: node 1 is
// 172.28.128.11 and fd28:128::11.
var (
	WireCIDR4    = netip.MustParsePrefix("172.28.128.0/24")
	WireCIDR6    = netip.MustParsePrefix("fd28:128::/64")
	ServiceCIDR4 = netip.MustParsePrefix("10.96.0.0/12")
	ServiceCIDR6 = netip.MustParsePrefix("fd00:96::/112")
	ClusterCIDR4 = netip.MustParsePrefix("10.244.0.0/16")
	ClusterCIDR6 = netip.MustParsePrefix("fd10:244::/32")

	// Addresses that somebody outside hands out: a load balancer's, and those of externalIPs.
	LoadBalancerCIDR4 = netip.MustParsePrefix("203.0.113.0/24")
	LoadBalancerCIDR6 = netip.MustParsePrefix("fd20:113::/64")
	ExternalCIDR4     = netip.MustParsePrefix("198.51.100.0/24")
	ExternalCIDR6     = netip.MustParsePrefix("fd20:51::/64")
)

// virtualRanges are those to which the client has routes via a node.
var virtualRanges = []netip.Prefix{ServiceCIDR4, ServiceCIDR6, LoadBalancerCIDR4, LoadBalancerCIDR6, ExternalCIDR4, ExternalCIDR6}

const maxNodes = 8

// Config says what world to build. The zero value is the usual one: two nodes,
// pod-a and pod-b on node1, pod-c on node2.
type Config struct {
	// Nodes is the number of nodes, 1 to 8; 0 means 2.
	Nodes int
	// Pods that exist from the start; nil means the usual three (those whose
	// node exists), an empty list means none.
	Pods []PodSpec
	// NoBridgeNetfilter switches bridge-nf-call-iptables and -ip6tables off in
	// the nodes: the control for traffic between pods of one bridge.
	NoBridgeNetfilter bool
	// ClientVia is the node (1 = node1) through which the client reaches the
	// ranges of Services, load balancers and external addresses; 0 means 1, -1
	// means that it has no such routes. ClientViaNode changes it.
	ClientVia int
	// Overlay: the nodes reach each other's pods through VXLAN, as flannel has it, in place of routes on the wire.
	Overlay bool
}

func (c Config) withDefaults() (Config, error) {
	if c.Nodes == 0 {
		c.Nodes = 2
	}
	if c.Nodes < 1 || c.Nodes > maxNodes {
		return c, fmt.Errorf("a world has 1 to %d nodes, not %d", maxNodes, c.Nodes)
	}
	if c.ClientVia == 0 {
		c.ClientVia = 1
	}
	if c.ClientVia > c.Nodes || c.ClientVia < -1 {
		return c, fmt.Errorf("the client goes via node %d, but there are %d nodes", c.ClientVia, c.Nodes)
	}
	if c.Pods == nil {
		for _, p := range []PodSpec{{Name: "pod-a", Node: 1}, {Name: "pod-b", Node: 1}, {Name: "pod-c", Node: 2}} {
			if p.Node <= c.Nodes {
				c.Pods = append(c.Pods, p)
			}
		}
	}
	return c, nil
}

// World is a built world.
type World struct {
	Nodes  []*Node // Nodes[0] is node1
	Client *Host   // outside the cluster, on the wire
	Wire   *Host   // holds the bridge that is the wire

	cfg       Config
	mu        sync.Mutex
	pods      map[string]*Pod
	agents    []*Agent
	closeOnce sync.Once
	closeErr  error
}

// Build makes the world; Close removes it. Nothing stays behind when it fails.
func Build(cfg Config) (w *World, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	w = &World{cfg: cfg, pods: map[string]*Pod{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("building the lab: %w", err), w.Close())
			w = nil
		}
	}()
	if err := w.buildWire(); err != nil {
		return w, err
	}
	for i := 1; i <= cfg.Nodes; i++ {
		if err := w.buildNode(i); err != nil {
			return w, err
		}
	}
	if err := w.routeNodes(); err != nil {
		return w, err
	}
	if err := w.buildClient(); err != nil {
		return w, err
	}
	for _, spec := range cfg.Pods {
		if _, err := w.addPod(spec); err != nil {
			return w, err
		}
	}
	return w, w.settled()
}

// Node gives a node by its number: Node(1) is node1.
func (w *World) Node(i int) *Node { return w.Nodes[i-1] }

// Pod gives a pod by its name; nil when there is none.
func (w *World) Pod(name string) *Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pods[name]
}

// hosts lists every namespace of the world.
func (w *World) hosts() []*Host {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*Host
	for _, p := range w.pods {
		all = append(all, p.Host)
	}
	for _, n := range w.Nodes {
		all = append(all, n.Host)
	}
	for _, h := range []*Host{w.Client, w.Wire} {
		if h != nil {
			all = append(all, h)
		}
	}
	return all
}

// Close kills the agents, closes every server and lets go of every namespace,
// with which the kernel removes what is in it. It may be called twice.
func (w *World) Close() error {
	w.closeOnce.Do(func() {
		w.mu.Lock()
		agents := w.agents
		w.mu.Unlock()
		var errs []error
		for _, a := range agents {
			errs = append(errs, a.Kill())
		}
		// All at once: a load ends with the questions under way, and these with
		// the servers that hold their answers back.
		var wg sync.WaitGroup
		for _, h := range w.hosts() {
			wg.Go(h.closeSockets)
		}
		wg.Wait()
		for _, h := range w.hosts() {
			errs = append(errs, h.close())
		}
		w.closeErr = errors.Join(errs...)
	})
	return w.closeErr
}

// State prints every node, for a failed test.
func (w *World) State() string {
	var b strings.Builder
	for _, n := range w.Nodes {
		b.WriteString(n.State())
	}
	return b.String()
}

// New builds a world for a test that needs a kernel with IPVS. It skips unless
// IPVS_PROXY_LAB=1 says that this is such a kernel; with it, whatever is
// missing fails the test.
func New(t testing.TB, cfg ...Config) *World {
	t.Helper()
	if !required() {
		t.Skip("needs a kernel with IPVS, as root: run it in the lab (IPVS_PROXY_LAB=1)")
	}
	if _, err := os.Stat("/proc/net/ip_vs"); err != nil {
		t.Fatalf("IPVS_PROXY_LAB=1, but this kernel has no IPVS (module ip_vs not loaded?): %v", err)
	}
	return newWorld(t, cfg)
}

// NewWithoutIPVS builds a world for a test that needs namespaces but no IPVS:
// it runs wherever the user is root, and skips elsewhere.
func NewWithoutIPVS(t testing.TB, cfg ...Config) *World {
	t.Helper()
	needPrivileges(t)
	return newWorld(t, cfg)
}

// needPrivileges skips where a world cannot be built. In the lab it does not:
// there the attempt fails, and says why.
func needPrivileges(t testing.TB) {
	t.Helper()
	if err := privileged(); err != nil && !required() {
		t.Skipf("needs root and network namespaces: %v", err)
	}
}

func newWorld(t testing.TB, cfg []Config) *World {
	t.Helper()
	if len(cfg) > 1 {
		t.Fatalf("one lab.Config at most, not %d", len(cfg))
	}
	var c Config
	if len(cfg) == 1 {
		c = cfg[0]
	}
	w, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("the state of every node at the end of the failed test:\n" + w.State())
		}
		if err := w.Close(); err != nil {
			t.Errorf("closing the lab: %v", err)
		}
	})
	return w
}

func required() bool { return os.Getenv("IPVS_PROXY_LAB") == "1" }

// privileged tries what a world needs first: a namespace whose sysctls can be
// written. Being root is not enough in a container.
var privileged = sync.OnceValue(func() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("user id %d: %w", os.Geteuid(), unix.EPERM)
	}
	h, err := newHost("probe")
	if err != nil {
		return err
	}
	return errors.Join(h.sysctl("net/ipv4/ip_forward", "1"), h.close())
})
