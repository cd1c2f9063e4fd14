package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// problem is a value that cannot be used. The key is its path in the document.
type problem struct {
	key, value, want string
}

func (p problem) Error() string { return fmt.Sprintf("%s: %s: want %s", p.key, p.value, p.want) }

// Invalid is the error about a value that cannot be used: it names the value's origin, which is a flag, or a key of one of
// the file's documents, the value, and what is wanted.
func (c *Config) Invalid(key string, value any, want string) error {
	flag := c.flags[key]
	if flag == "" && c.file == "" {
		flag = flagOf(key)
	}
	if flag != "" {
		return fmt.Errorf("--%s=%v: want %s", flag, value, want)
	}
	text := fmt.Sprintf("%q", fmt.Sprint(value))
	switch value.(type) {
	case int32, float64: // no text in a file, either
		text = fmt.Sprint(value)
	}
	kind := proxyKind
	if first, _, _ := strings.Cut(key, "."); below(reflect.TypeFor[IPVSProxyConfiguration](), first) != nil {
		kind = ownKind
	}
	return fmt.Errorf("%s: %w", place(c.file, c.docs[kind], kind), problem{key, text, want})
}

// place is how messages name a document of a file.
func place(file string, number int, kind metav1.TypeMeta) string {
	switch {
	case number == 0: // not in the file
		return file
	case kind != proxyKind && kind != ownKind:
		return fmt.Sprintf("%s: document %d", file, number)
	}
	return fmt.Sprintf("%s: document %d (%s)", file, number, kind.Kind)
}

// modes are those that kube-proxy has on Linux.
var modes = []string{"", "ipvs", "iptables", "nftables"}

// serviceMetricsModes are the values of serviceMetrics.mode.
var serviceMetricsModes = []string{ServiceMetricsOff, ServiceMetricsSelected, ServiceMetricsAll}

// Validate says which values cannot be used, each by Invalid. nodePortAddresses are for whoever uses them.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key string, value any, want string) { errs = append(errs, c.Invalid(key, value, want)) }
	c.checkNumbers(bad)
	c.checkAddresses(bad)
	c.checkPods(bad)
	c.checkGates(bad)
	if !slices.Contains(modes, string(c.Proxy.Mode)) {
		bad("mode", c.Proxy.Mode, "ipvs or nothing; iptables and nftables are accepted, too, and served as ipvs")
	}
	if !slices.Contains([]string{"text", "json"}, c.Proxy.Logging.Format) {
		bad("logging.format", c.Proxy.Logging.Format, "text or json")
	}
	if !slices.Contains([]string{"address", "route"}, c.Own.VIPBinding) {
		bad("vipBinding", c.Own.VIPBinding, "address or route")
	}
	if !slices.Contains([]string{LeftoversRemove, LeftoversKeep}, c.Own.Takeover.Leftovers) {
		bad("takeover.leftovers", c.Own.Takeover.Leftovers, "Remove or Keep")
	}
	if !slices.Contains([]string{StatusPageLoopback, StatusPageAlways, StatusPageNever}, c.Own.StatusPage) {
		bad("statusPage", c.Own.StatusPage, "Loopback, Always or Never")
	}
	if mode := c.Own.ServiceMetrics.Mode; !slices.Contains(serviceMetricsModes, mode) {
		want := "Off, Selected or All"
		if near := nearest(mode, serviceMetricsModes); near != "" {
			want += "; did you mean " + near + "?"
		}
		bad("serviceMetrics.mode", mode, want)
	}
	return errors.Join(errs...)
}

func (c *Config) checkNumbers(bad func(string, any, string)) {
	p := &c.Proxy
	const kept = "0, which leaves the kernel's value alone, or more"
	for _, v := range []struct {
		key   string
		value int32
		min   int32
		max   int32
		want  string
	}{
		{"conntrack.maxPerCore", *p.Conntrack.MaxPerCore, 0, 1<<31 - 1, kept},
		{"conntrack.min", *p.Conntrack.Min, 0, 1<<31 - 1, kept},
		{"iptables.masqueradeBit", *p.IPTables.MasqueradeBit, 0, 31, "0 to 31"},
		{"oomScoreAdj", *p.OOMScoreAdj, -1000, 1000, "-1000 to 1000"},
		{"serviceMetrics.limit", *c.Own.ServiceMetrics.Limit, 1, 10000, "1 to 10000; mode: Off switches them off"},
		{"clientConnection.burst", p.ClientConnection.Burst, 0, 1<<31 - 1, "0 or more"},
	} {
		if v.value < v.min || v.value > v.max {
			bad(v.key, v.value, v.want)
		}
	}
	for _, v := range []struct {
		key   string
		value time.Duration
		least time.Duration
		want  string
	}{
		{"conntrack.tcpEstablishedTimeout", p.Conntrack.TCPEstablishedTimeout.Duration, 0, kept},
		{"conntrack.tcpCloseWaitTimeout", p.Conntrack.TCPCloseWaitTimeout.Duration, 0, kept},
		{"conntrack.udpTimeout", p.Conntrack.UDPTimeout.Duration, 0, kept},
		{"conntrack.udpStreamTimeout", p.Conntrack.UDPStreamTimeout.Duration, 0, kept},
		{"ipvs.tcpTimeout", p.IPVS.TCPTimeout.Duration, 0, kept},
		{"ipvs.tcpFinTimeout", p.IPVS.TCPFinTimeout.Duration, 0, kept},
		{"ipvs.udpTimeout", p.IPVS.UDPTimeout.Duration, 0, kept},
		{"ipvs.syncPeriod", p.IPVS.SyncPeriod.Duration, 1, "more than 0"},
		{"ipvs.minSyncPeriod", p.IPVS.MinSyncPeriod.Duration, 0, "0 or more"},
		{"configSyncPeriod", p.ConfigSyncPeriod.Duration, 1, "more than 0"},
		{"drainDeadline", c.Own.DrainDeadline.Duration, 1, "more than 0"},
		{"auditPeriod", c.Own.AuditPeriod.Duration, 1, "more than 0"},
	} {
		if v.value < v.least {
			bad(v.key, v.value, v.want)
		}
	}
	// A flag, unlike a file, can say NaN, which no document can hold.
	if q := float64(p.ClientConnection.QPS); math.IsNaN(q) || math.IsInf(q, 0) {
		bad("clientConnection.qps", q, "a number")
	}
	if share := *c.Own.AuditCPU; !(share > 0 && share <= 1) {
		bad("auditCPU", share, "a share of one processor, above 0 and up to 1")
	}
}

func (c *Config) checkAddresses(bad func(string, any, string)) {
	if _, err := netip.ParseAddr(c.Proxy.BindAddress); err != nil {
		bad("bindAddress", c.Proxy.BindAddress, "an IP address")
	}
	for _, key := range []string{"healthzBindAddress", "metricsBindAddress"} {
		value := *c.bindAddress(key)
		if at, err := netip.ParseAddrPort(value); value != "" && (err != nil || at.Port() == 0) { // empty: no server
			bad(key, value, "an IP address and a port, like 0.0.0.0:10256")
		}
	}
	for _, l := range []struct {
		key  string
		list []string
	}{
		{"externalIPCIDRs", c.Own.ExternalIPCIDRs}, {"protectedCIDRs", c.Own.ProtectedCIDRs}, {"ipvs.excludeCIDRs", c.Proxy.IPVS.ExcludeCIDRs},
	} {
		for _, t := range l.list {
			if _, err := ParseRanges([]string{t}); err != nil {
				bad(l.key, t, "address ranges like 192.0.2.0/24")
			}
		}
	}
}

// checkPods looks at the keys that say how pods are told from other clients.
func (c *Config) checkPods(bad func(string, any, string)) {
	p := &c.Proxy
	switch p.DetectLocalMode {
	case "ClusterCIDR": // elsewhere nobody looks at the ranges, as with kube-proxy
		ranges, err := ParseRanges(splitCIDRs(p.ClusterCIDR))
		if err != nil || len(ranges) > 2 || len(ranges) == 2 && ranges[0].Addr().Is4() == ranges[1].Addr().Is4() {
			bad("clusterCIDR", p.ClusterCIDR, "an address range like 10.244.0.0/16, or one of each family with a comma between")
		}
	case "NodeCIDR":
	case "BridgeInterface":
		if p.DetectLocal.BridgeInterface == "" {
			bad("detectLocal.bridgeInterface", "", "the name of the pods' bridge, as detectLocalMode is BridgeInterface")
		}
	case "InterfaceNamePrefix":
		if p.DetectLocal.InterfaceNamePrefix == "" {
			bad("detectLocal.interfaceNamePrefix", "", "the beginning of the names of the pods' interfaces, as detectLocalMode is InterfaceNamePrefix")
		}
	default:
		bad("detectLocalMode", p.DetectLocalMode, "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix")
	}
}
