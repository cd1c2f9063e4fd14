// Package config is kube-proxy's configuration file and flags, our own document beside it in the same file,
// their defaults and their validation. What the values do is not for this package.
package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	logsapi "k8s.io/component-base/logs/api/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

// The two kinds of documents.
var (
	proxyKind = metav1.TypeMeta{APIVersion: kubeproxy.SchemeGroupVersion.String(), Kind: "KubeProxyConfiguration"}
	ownKind   = metav1.TypeMeta{APIVersion: "ipvs-proxy.io/v1alpha1", Kind: "IPVSProxyConfiguration"}
)

// Config is all that the agent can be told.
type Config struct {
	// Proxy is kube-proxy's document.
	Proxy kubeproxy.KubeProxyConfiguration
	// Own has what kube-proxy has no key for.
	Own IPVSProxyConfiguration

	file  string                  // where it was read from; empty if from flags alone
	docs  map[metav1.TypeMeta]int // kind: which document of the file, counted from 1
	flags map[string]string       // key: the flag that gave its value
}

// IPVSProxyConfiguration is our own document.
type IPVSProxyConfiguration struct {
	metav1.TypeMeta `json:",inline"`

	// VIPBinding is how virtual IPs stand on kube-ipvs0: address or route; address by default.
	VIPBinding string `json:"vipBinding"`
	// ExternalIPCIDRs are the ranges from which spec.externalIPs are served; none by default.
	ExternalIPCIDRs []string `json:"externalIPCIDRs"`
	// ProtectedCIDRs are ranges that no Service may have as an external address.
	ProtectedCIDRs []string `json:"protectedCIDRs"`
	// ServiceProxyName serves the Services with this value of the label service.kubernetes.io/service-proxy-name;
	// where it is empty, those without the label.
	ServiceProxyName string `json:"serviceProxyName"`
	// Takeover is what becomes of what another proxy left on the node.
	Takeover Takeover `json:"takeover"`
	// DrainDeadline is how long an endpoint on its way out may keep its connections; 15 min by default.
	DrainDeadline *metav1.Duration `json:"drainDeadline"`
	// AuditPeriod is the least time between two looks at what others may have changed; 10 s by default.
	AuditPeriod *metav1.Duration `json:"auditPeriod"`
	// AuditCPU is the share of one processor that these looks may cost, above 0 and up to 1; 0.01 by default.
	AuditCPU *float64 `json:"auditCPU"`
	// StatusPage is who gets the status page on the port of metricsBindAddress: Loopback, who asks from the node itself at a
	// loopback address, as kubectl port-forward does; Always, whoever reaches the port; Never. Loopback by default.
	StatusPage string `json:"statusPage"`
	// ServiceMetrics says of which Services there are metrics.
	ServiceMetrics ServiceMetrics `json:"serviceMetrics"`
}

// ServiceMetrics says of which Services there are metrics: ipvsproxy_service_connections_total and the like.
type ServiceMetrics struct {
	// Mode is which Services: Off (none), Selected (those with the annotation ipvs-proxy.io/metrics: "true") or All; Selected
	// by default.
	Mode string `json:"mode"`
	// Limit is how many Services at most, 1 to 10000: in the order of namespace and name the first ones, the same on every
	// node; 500 by default.
	Limit *int32 `json:"limit"`
}

// Of which Services there are metrics.
const (
	ServiceMetricsOff      = "Off"
	ServiceMetricsSelected = "Selected"
	ServiceMetricsAll      = "All"
)

// Takeover is what becomes of what another proxy left on the node.
type Takeover struct {
	// Leftovers is what becomes of kube-proxy's rules, chains, sets and tables once all Services are programmed: Remove, or
	// Keep; Remove by default. With serviceProxyName they stay: another proxy serves beside this one.
	Leftovers string `json:"leftovers"`
}

// Who gets the status page.
const (
	StatusPageLoopback = "Loopback"
	StatusPageAlways   = "Always"
	StatusPageNever    = "Never"
)

// What becomes of leftovers.
const (
	LeftoversRemove = "Remove"
	LeftoversKeep   = "Keep"
)

// Default is what holds where nothing is configured.
func Default() *Config {
	c := &Config{}
	c.setDefaults()
	return c
}

// setDefaults gives values to what has none, kube-proxy's where it has the key.
func (c *Config) setDefaults() {
	p := &c.Proxy
	p.TypeMeta, c.Own.TypeMeta = proxyKind, ownKind
	def(&p.BindAddress, "0.0.0.0")
	all, loopback := "0.0.0.0", "127.0.0.1"
	if strings.Contains(p.BindAddress, ":") {
		all, loopback = "[::]", "[::1]"
	}
	def(&p.HealthzBindAddress, all+":10256")
	p.HealthzBindAddress = withPort(p.HealthzBindAddress, "10256")
	def(&p.MetricsBindAddress, loopback+":10249")
	p.MetricsBindAddress = withPort(p.MetricsBindAddress, "10249")
	def(&p.ClientConnection.ContentType, "application/vnd.kubernetes.protobuf")
	def(&p.ClientConnection.QPS, 5)
	def(&p.ClientConnection.Burst, 10)
	defNew(&p.OOMScoreAdj, -999)
	def(&p.ConfigSyncPeriod.Duration, 15*time.Minute)
	def(&p.DetectLocalMode, "ClusterCIDR")

	def(&p.IPVS.Scheduler, "rr")
	def(&p.IPVS.SyncPeriod.Duration, 30*time.Second)
	for _, other := range []struct {
		bit       **int32
		sync, min *metav1.Duration
	}{
		{&p.IPTables.MasqueradeBit, &p.IPTables.SyncPeriod, &p.IPTables.MinSyncPeriod},
		{&p.NFTables.MasqueradeBit, &p.NFTables.SyncPeriod, &p.NFTables.MinSyncPeriod},
	} {
		defNew(other.bit, 14)
		def(&other.sync.Duration, 30*time.Second)
		def(&other.min.Duration, time.Second)
	}
	defNew(&p.IPTables.LocalhostNodePorts, true)

	defNew(&p.Conntrack.MaxPerCore, 32<<10)
	defNew(&p.Conntrack.Min, 128<<10)
	defNew(&p.Conntrack.TCPEstablishedTimeout, metav1.Duration{Duration: 24 * time.Hour})
	defNew(&p.Conntrack.TCPCloseWaitTimeout, metav1.Duration{Duration: time.Hour})
	logsapi.SetRecommendedLoggingConfiguration(&p.Logging)

	def(&c.Own.VIPBinding, "address")
	def(&c.Own.Takeover.Leftovers, LeftoversRemove)
	def(&c.Own.StatusPage, StatusPageLoopback)
	defNew(&c.Own.DrainDeadline, metav1.Duration{Duration: 15 * time.Minute})
	defNew(&c.Own.AuditPeriod, metav1.Duration{Duration: 10 * time.Second})
	defNew(&c.Own.AuditCPU, 0.01)
	def(&c.Own.ServiceMetrics.Mode, ServiceMetricsSelected)
	defNew(&c.Own.ServiceMetrics.Limit, 500)
}

// withPort gives an address its port where it has none. What is no address stays for Validate.
func withPort(addr, port string) string {
	if ip, err := netip.ParseAddr(strings.Trim(addr, "[]")); err == nil {
		return net.JoinHostPort(ip.String(), port)
	}
	return addr
}

func def[T comparable](to *T, value T) {
	var zero T
	if *to == zero {
		*to = value
	}
}

func defNew[T any](to **T, value T) {
	if *to == nil {
		*to = &value
	}
}

// NodeName is the name of this machine's Node: hostnameOverride, or else the host name. As with kube-proxy, a
// machine called Node1 is the Node node1. The error is os.Hostname's.
func (c *Config) NodeName() (string, error) {
	name := c.Proxy.HostnameOverride
	if strings.TrimSpace(name) == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return "", err
		}
	}
	return strings.ToLower(strings.TrimSpace(name)), nil
}

// ClusterCIDRs are the ranges of the cluster's pods; none where detectLocalMode does not go by them. Call it on
// what Validate accepts.
func (c *Config) ClusterCIDRs() []netip.Prefix {
	if c.Proxy.DetectLocalMode != "ClusterCIDR" {
		return nil
	}
	out, _ := ParseRanges(splitCIDRs(c.Proxy.ClusterCIDR))
	return out
}

// PodRanges are the ranges of the cluster's pods, whatever detectLocalMode goes by. Where it does not go by them nobody
// has looked at what they hold, and what is no range is none.
func (c *Config) PodRanges() (out []netip.Prefix) {
	for _, text := range splitCIDRs(c.Proxy.ClusterCIDR) {
		if p, err := ParseRanges([]string{text}); err == nil {
			out = append(out, p...)
		}
	}
	return out
}

// PodInterface is the interface through which this node's pods send, with a "*" at its end if it is the
// beginning of several names, and empty where detectLocalMode does not go by interfaces.
func (c *Config) PodInterface() string {
	switch c.Proxy.DetectLocalMode {
	case "BridgeInterface":
		return c.Proxy.DetectLocal.BridgeInterface
	case "InterfaceNamePrefix":
		return c.Proxy.DetectLocal.InterfaceNamePrefix + "*"
	}
	return ""
}

// ForeignMarks are the bits of a packet's mark by which kube-proxy has packets masqueraded in this node's configuration,
// whatever its mode.
func (c *Config) ForeignMarks() uint32 {
	return markOf(c.Proxy.IPTables.MasqueradeBit) | markOf(c.Proxy.NFTables.MasqueradeBit)
}

// markOf is 0 for a bit that there is not: nobody looks at that of another mode.
func markOf(bit *int32) uint32 {
	if bit == nil || *bit < 0 || *bit > 31 {
		return 0
	}
	return 1 << *bit
}

// ParseRanges reads address ranges and drops the host's bits. It fails on the first that is none. IPv4 written as IPv6
// (::ffff:192.0.2.0/120) is none: no packet has such an address, so the range would match nothing, and what it was to protect
// would not be. In objects of the API it is refused as well.
func ParseRanges(list []string) (out []netip.Prefix, err error) {
	for _, t := range list {
		p, err := netip.ParsePrefix(strings.TrimSpace(t))
		if err != nil {
			return nil, err
		}
		if p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s is an IPv4 range written as IPv6", t)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// splitCIDRs takes clusterCIDR apart: none, one, or several with commas between.
func splitCIDRs(text string) []string {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	return strings.Split(text, ",")
}
