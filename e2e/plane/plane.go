// Package plane runs a real control plane on this machine: etcd, kube-apiserver and kube-controller-manager, on
// loopback, in a directory of its own, with certificates of its own. Nodes reach it wherever the lab puts it; tests
// reach its switches over a port of their own, see control.go.
package plane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

// Options say what to run and where it seems to be.
type Options struct {
	Release  string            // version of Kubernetes that Programs are of
	Programs map[string]string // files of programs.Etcd, APIServer and ControllerManager
	Dir      string            // existing and empty; everything is in there
	Out      string            // directory for what tests hand out, made if need be; empty: they may not
	// Address is where the nodes reach the API server, on the port that it has here: the address that the
	// Service default/kubernetes gets as its endpoint.
	Address      netip.Addr
	ServiceCIDRs []netip.Prefix
}

// Plane is a running control plane.
type Plane struct {
	Port    uint16 // of the API server, on loopback here and on Options.Address there
	Control uint16 // of the switches, on loopback

	opts      Options
	ca        *authority
	mu        sync.Mutex // over processes
	etcd      *process
	api       *process
	manager   *process
	switches  *http.Server
	leaving   net.Listener  // where the API server asks for the way to pods
	left      chan net.Conn // its connections there
	readiness *http.Client
}

// Start starts everything and waits until the API server is ready. When it fails nothing is left.
func Start(ctx context.Context, o Options) (p *Plane, err error) {
	p = &Plane{opts: o}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start the control plane: %w", err), p.Stop())
			p = nil
		}
	}()
	if p.ca, err = newAuthority(o.Dir); err != nil {
		return p, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return p, err
	}
	p.Port = ports[0]
	etcd := fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	p.etcd = etcdProcess(o, etcd, fmt.Sprintf("http://127.0.0.1:%d", ports[2]))
	if err := p.etcd.start(); err != nil {
		return p, err
	}
	if p.api, p.manager, err = p.kubernetes(etcd); err != nil {
		return p, err
	}
	if err := p.StartAPI(ctx); err != nil {
		return p, err
	}
	if err := p.manager.start(); err != nil {
		return p, err
	}
	return p, p.serveSwitches()
}

func etcdProcess(o Options, client, peer string) *process {
	return newProcess(o.Dir, o.Programs[programs.Etcd],
		"--name=lab", "--data-dir="+filepath.Join(o.Dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=lab="+peer)
}

// kubernetes prepares the two programs of Kubernetes, with what they need to trust each other.
func (p *Plane) kubernetes(etcd string) (api, manager *process, err error) {
	o := p.opts
	ips := []net.IP{net.IPv4(127, 0, 0, 1), o.Address.AsSlice()}
	var cidrs []string
	for _, c := range o.ServiceCIDRs {
		ips = append(ips, c.Masked().Addr().Next().AsSlice()) // that of default/kubernetes
		cidrs = append(cidrs, c.String())
	}
	serving, err := p.ca.server("apiserver", []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}, ips)
	if err != nil {
		return nil, nil, err
	}
	private, public, err := p.ca.signingKey()
	if err != nil {
		return nil, nil, err
	}
	audit := filepath.Join(o.Dir, "audit-policy.yaml")
	if err := os.WriteFile(audit, []byte(auditPolicy), 0o600); err != nil {
		return nil, nil, err
	}
	egress, err := p.listenForEgress()
	if err != nil {
		return nil, nil, err
	}
	ca := filepath.Join(o.Dir, "ca.crt")
	api = newProcess(o.Dir, o.Programs[programs.APIServer],
		"--etcd-servers="+etcd, "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", p.Port),
		"--advertise-address="+o.Address.String(),
		"--tls-cert-file="+serving.certFile, "--tls-private-key-file="+serving.keyFile, "--client-ca-file="+ca,
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+public, "--service-account-signing-key-file="+private,
		"--service-cluster-ip-range="+strings.Join(cidrs, ","), "--authorization-mode=Node,RBAC",
		"--audit-policy-file="+audit, "--audit-log-path="+p.auditLog(), "--audit-log-maxsize=0",
		"--event-ttl=1h", "--profiling=false", "--egress-selector-config-file="+egress)
	if manager, err = p.controllers(private, ca); err != nil {
		return nil, nil, err
	}
	return api, manager, nil
}

// controllers prepares those that make endpoints and pods, and what these need.
func (p *Plane) controllers(tokenKey, ca string) (*process, error) {
	o := p.opts
	kubeconfig := filepath.Join(o.Dir, "controller-manager.kubeconfig")
	config, err := p.kubeconfigOf("system:kube-controller-manager", "", "127.0.0.1")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(kubeconfig, config, 0o600); err != nil {
		return nil, err
	}
	return newProcess(o.Dir, o.Programs[programs.ControllerManager],
		"--kubeconfig="+kubeconfig, "--use-service-account-credentials", "--leader-elect=false", "--secure-port=0",
		"--service-account-private-key-file="+tokenKey, "--root-ca-file="+ca,
		// There is no kubelet, so nobody must miss its heartbeat.
		"--controllers=endpoints-controller,endpointslice-controller,endpointslice-mirroring-controller,"+
			"replicaset-controller,deployment-controller,serviceaccount-controller,namespace-controller,"+
			"garbage-collector-controller,root-ca-certificate-publisher-controller",
		"--kube-api-qps=500", "--kube-api-burst=1000"), nil
}

func (p *Plane) auditLog() string { return filepath.Join(p.opts.Dir, "audit.log") }

// auditPolicy notes who asked for what and what became of it, but not the controllers, who ask a lot.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: [system:apiserver, system:kube-controller-manager, admin]
- level: Metadata
`

// startTime is how long the API server may take on a busy machine.
const startTime = 3 * time.Minute

// StartAPI starts the API server and waits until it is ready.
func (p *Plane) StartAPI(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.api.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		err := p.ready(ctx)
		if err == nil {
			return nil
		}
		for _, proc := range []*process{p.etcd, p.api} {
			if !proc.running() {
				return fmt.Errorf("%s ended (%w); its last words:\n%s", proc.name, proc.exit, proc.lastWords())
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server is not ready after %s: %w; its last words:\n%s", startTime, err, p.api.lastWords())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// StopAPI ends the API server with a signal.
func (p *Plane) StopAPI(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.api.stop(sig)
}

func (p *Plane) ready(ctx context.Context) error {
	if p.readiness == nil {
		pool := x509.NewCertPool()
		pool.AddCert(p.ca.cert)
		p.readiness = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true,
		}}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/readyz", p.Port), nil)
	if err != nil {
		return err
	}
	resp, err := p.readiness.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz answers %s", resp.Status)
	}
	return nil
}

// Stop ends everything.
func (p *Plane) Stop() error {
	var errs []error
	if p.switches != nil {
		errs = append(errs, p.switches.Close())
	}
	if p.leaving != nil {
		errs = append(errs, p.leaving.Close())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// Nobody needs their data, so nobody need tidy up.
	for _, proc := range []*process{p.manager, p.api, p.etcd} {
		if proc != nil {
			errs = append(errs, proc.stop(syscall.SIGKILL))
		}
	}
	return errors.Join(errs...)
}

// Admin is the kubeconfig of a cluster administrator at Options.Address.
func (p *Plane) Admin() ([]byte, error) {
	return p.kubeconfigOf("admin", "system:masters", p.opts.Address.String())
}

func (p *Plane) kubeconfigOf(user, group, host string) ([]byte, error) {
	id, err := p.ca.client(strings.ReplaceAll(user, ":", "-"), user, group)
	if err != nil {
		return nil, err
	}
	return kubeconfig(net.JoinHostPort(host, strconv.Itoa(int(p.Port))), p.ca.pem, id), nil
}

// freePorts finds ports of the loopback that nobody listens on. Somebody may before their use: then a program says
// so and the start fails.
func freePorts(n int) ([]uint16, error) {
	var ports []uint16
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		ports = append(ports, uint16(ln.Addr().(*net.TCPAddr).Port))
	}
	return ports, nil
}
