package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/transport"
)

// Connection says how the API server is reached, as kube-proxy's
// clientConnection and --master say it.
type Connection struct {
	// Kubeconfig is a file. Where it and Master are empty, a pod's own means
	// count: its service account, and the environment for the address.
	Kubeconfig string
	// Master is the URL of the API server; it counts over the file's.
	Master string
	// ContentType is what is asked for and sent, AcceptContentTypes what is
	// asked for instead where it is given. Empty: JSON.
	ContentType, AcceptContentTypes string
	// QPS and Burst limit our requests; 0: 5 and 10, below 0: no limit.
	QPS   float32
	Burst int
	// UserAgent names the process to the API server.
	UserAgent string
}

// load makes client-go's configuration of it. Nothing is asked of the API
// server yet.
func (c Connection) load() (cfg *rest.Config, inCluster bool, err error) {
	if c.Kubeconfig == "" && c.Master == "" {
		inCluster = true
		cfg, err = rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			err = errors.New("no kubeconfig is given, and this is no pod of a cluster: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")
		} else if err != nil {
			err = fmt.Errorf("no kubeconfig is given, and the pod's own service account cannot be used: %w", err)
		}
	} else {
		cfg, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig},
			&clientcmd.ConfigOverrides{ClusterInfo: clientcmdapi.Cluster{Server: c.Master}}).ClientConfig()
		if err != nil {
			err = fmt.Errorf("kubeconfig %q: %w", c.Kubeconfig, err)
		}
	}
	if err != nil {
		return nil, false, err
	}
	cfg.ContentType, cfg.AcceptContentTypes = c.ContentType, c.AcceptContentTypes
	cfg.QPS, cfg.Burst, cfg.UserAgent = c.QPS, c.Burst, c.UserAgent
	cfg.WarningHandlerWithContext = rest.NoWarnings{}
	return cfg, inCluster, nil
}

// readTokenAgain has a token's file read each minute, as client-go would by
// itself, and after a request that was refused for its token.
func readTokenAgain(cfg *rest.Config) {
	if cfg.BearerTokenFile == "" {
		return
	}
	cfg.Wrap(transport.ResettableTokenSourceWrapTransport(transport.NewCachedFileTokenSource(cfg.BearerTokenFile)))
	cfg.BearerToken, cfg.BearerTokenFile = "", ""
}

// hostOf is the host of an API server's address, which is a URL or, as
// client-go allows it, only a part of one.
func hostOf(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		return u.Hostname()
	}
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// dialer connects to the API server and tells of the addresses behind its name.
// They are learned from connections that were made, so that nobody waits for a
// name server: what comes from the API server comes over one of these.
type dialer struct {
	net.Dialer
	found func([]netip.Addr)
}

// The time-outs: together with HTTP/2's pings (30 s until one is sent, 15 s for
// its answer; client-go's defaults) and the longest pause between attempts they
// bring a watch back within 60 s of the network. Without TLS there is no
// HTTP/2, and the kernel's probes find a dead connection after 50 s.
func newDialer(found func([]netip.Addr)) *dialer {
	return &dialer{found: found, Dialer: net.Dialer{
		Timeout:         10 * time.Second,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 20 * time.Second, Interval: 10 * time.Second, Count: 3},
	}}
}

func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if remote, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		d.found([]netip.Addr{remote.Addr().Unmap()})
	}
	host, _, _ := net.SplitHostPort(address)
	if _, err := netip.ParseAddr(host); err != nil {
		go d.lookup(host)
	}
	return conn, nil
}

// lookup finds the other addresses of a name. Failing, it costs no more than
// that they are not known.
func (d *dialer) lookup(host string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host); err == nil {
		for i, a := range addrs {
			addrs[i] = a.Unmap()
		}
		d.found(addrs)
	}
}

// servicesOwn reports whether a pod's environment leads to the API server
// through the ClusterIP of default/kubernetes. The kubelet sets both variables
// to it; whoever means another address sets only the first.
func servicesOwn() bool {
	tcp := os.Getenv("KUBERNETES_PORT_443_TCP_ADDR")
	return tcp == "" || tcp == os.Getenv("KUBERNETES_SERVICE_HOST")
}

// usable are the addresses that a Service could have, sorted, each once.
func usable(addrs []netip.Addr) []netip.Addr {
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool {
		return !a.IsValid() || a.IsLoopback() || a.IsUnspecified()
	})
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}
