package controlplane

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// The ports of an application that answers over both.
const plainPort, tlsPort = appPort, 8443

// proxied are the ways to one application through the API server.
type proxied struct {
	*stage
	c   *http.Client // as an administrator
	pod *lab.Pod
}

// TestUpstreamAPIProxy: the API server proxies to a pod and to Services of it, by port and by name of a port, over
// HTTP and over TLS, with every method. It asks the pods itself, so the nodes' agents do not help it; they must not
// be in its way either.
func TestUpstreamAPIProxy(t *testing.T) {
	s := newStage(t, 3)
	s.startEgress()
	s.startKubelet().run = serveEcho
	s.startAgents()
	p := &proxied{stage: s}
	var err error
	if p.c, err = rest.HTTPClientFor(s.config); err != nil {
		t.Fatal(err)
	}
	p.c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	var frontends []netip.AddrPort
	for name, family := range map[string]corev1.IPFamily{"echo": corev1.IPv4Protocol, "echo6": corev1.IPv6Protocol} {
		svc, single := web(name), corev1.IPFamilyPolicySingleStack
		svc.Spec.IPFamilyPolicy, svc.Spec.IPFamilies = &single, []corev1.IPFamily{family}
		svc.Spec.Selector = map[string]string{"app": "echo"}
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "https", Port: 443, TargetPort: intstr.FromInt32(tlsPort)})
		frontends = append(frontends, clusterIP(s.createService(svc), 80))
	}
	s.createPod("echo", map[string]string{"app": "echo"}, s.w.Node(2))
	p.pod = s.pods(s.namespace, "echo", 1)[0]
	t.Run("by port and by name", p.everyWay)
	t.Run("with a path", p.withPath)
	t.Run("without a path", p.withoutPath)
	for _, to := range frontends {
		s.wantServing(t, to, plainPort, p.pod)
		for _, c := range s.clients() {
			hits(t, c, to, p.pod)
		}
	}
}

// everyWay asks the pod and both Services by every name that one of their ports has.
func (p *proxied) everyWay(t *testing.T) {
	ways := []string{"pods/echo", "pods/echo:8080", "pods/http:echo:8080", "pods/https:echo:8443"}
	for _, svc := range []string{"echo", "echo6"} {
		for _, way := range []string{"%s:80", "%s:http", "http:%s:80", "http:%s:http", "https:%s:443", "https:%s:https"} {
			ways = append(ways, "services/"+fmt.Sprintf(way, svc))
		}
	}
	for _, way := range ways {
		path := "/"
		if strings.HasPrefix(way, "pods/https:") || strings.HasPrefix(way, "services/https:") {
			path = "/over-tls"
		}
		want := fmt.Sprintf("pod=echo %s %s tls=%t", http.MethodGet, path, path != "/")
		lab.Eventually(t, soon, "the API server proxies to "+way, func() error { // a Service's endpoints come in a moment
			return p.ask(http.MethodGet, way+"/proxy"+path, http.StatusOK, want)
		})
	}
}

var methods = []string{http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch, http.MethodPost, http.MethodPut}

func (p *proxied) withPath(t *testing.T) {
	for _, way := range []string{"pods/echo", "services/echo:http", "services/echo6:http"} {
		for _, method := range methods {
			path := "/some/path/with/" + method
			want := fmt.Sprintf("pod=echo %s %s tls=false", method, path)
			if err := p.ask(method, way+"/proxy"+path, http.StatusOK, want); err != nil {
				t.Error(err)
			}
		}
	}
}

// withoutPath: who reads is sent to the same address with a slash, all else gets to the pod.
func (p *proxied) withoutPath(t *testing.T) {
	for _, way := range []string{"pods/echo", "services/echo:http", "services/echo6:http"} {
		for _, method := range methods {
			status, want := http.StatusOK, fmt.Sprintf("pod=echo %s / tls=false", method)
			if method == http.MethodGet || method == http.MethodHead {
				status, want = http.StatusMovedPermanently, way+"/proxy/"
			}
			if err := p.ask(method, way+"/proxy", status, want); err != nil {
				t.Error(err)
			}
		}
	}
}

// ask sends a request to something of the test's namespace. The answer is in a header, for HEAD has no body.
func (p *proxied) ask(method, what string, status int, want string) error {
	at := fmt.Sprintf("%s/api/v1/namespaces/%s/%s", p.config.Host, p.namespace, what)
	req, err := http.NewRequestWithContext(p.ctx, method, at, nil)
	if err != nil {
		return err
	}
	resp, err := p.c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	got := resp.Header.Get("Echo")
	if status == http.StatusMovedPermanently {
		got = resp.Header.Get("Location")
	}
	if resp.StatusCode != status || !strings.HasSuffix(got, want) {
		return fmt.Errorf("%s %s: %s %q, want %d %q; %.200s", method, what, resp.Status, got, status, want, body)
	}
	return nil
}

// serveEcho is an application that says in a header what it was asked, over HTTP and over TLS with a certificate that
// nobody has signed: the API server wants no other. Its plain port also answers as every application of the lab does.
func serveEcho(t testing.TB, _ *corev1.Pod, p *lab.Pod) (func(), error) {
	cert, err := ownCertificate()
	if err != nil {
		return nil, err
	}
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Echo", fmt.Sprintf("pod=%s %s %s tls=%t", p.Name, r.Method, r.URL.Path, r.TLS != nil))
		from, _ := netip.ParseAddrPort(r.RemoteAddr)
		fmt.Fprintf(w, "pod=%s source=%s\n", p.Name, from.Addr().Unmap())
	})
	// Two servers: one that serves without TLS first offers HTTP/2 over TLS, and then does not speak it.
	plain, secure := &http.Server{Handler: echo}, &http.Server{Handler: echo, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	end := func() { plain.Close(); secure.Close() }
	t.Cleanup(end)
	for port, serve := range map[int]func(net.Listener) error{
		plainPort: plain.Serve, tlsPort: func(ln net.Listener) error { return secure.ServeTLS(ln, "", "") },
	} {
		var ln net.Listener
		err := p.Do(func() (err error) {
			ln, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
			return err
		})
		if err != nil {
			return nil, err
		}
		go func() { _ = serve(ln) }()
	}
	return end, nil
}

// ownCertificate is signed by itself.
func ownCertificate() (c tls.Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// startEgress gives the API server a way to the pods: it asks for one by CONNECT, and gets it from the wire.
func (s *stage) startEgress() {
	s.t.Helper()
	g := &gate{port: s.plane.Control, conns: map[net.Conn]struct{}{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for s.ctx.Err() == nil {
			c, err := wire.DialHost(s.ctx, g.port)
			if err != nil {
				if s.ctx.Err() == nil {
					s.t.Errorf("way from the API server to pods: %v", err)
				}
				return
			}
			g.add(c)
			req, err := nextConnect(c)
			if err != nil {
				c.Close()
				if s.ctx.Err() == nil {
					s.t.Errorf("way from the API server to pods: %v", err)
				}
				return
			}
			wg.Go(func() { s.connect(g, c, req.Host) })
		}
	})
	s.t.Cleanup(func() { // the context of a test ends before
		g.drop()
		wg.Wait()
	})
}

// nextConnect waits until the API server asks for a connection.
func nextConnect(c net.Conn) (*http.Request, error) {
	if _, err := io.WriteString(c, "GET /egress HTTP/1.1\r\nHost: plane\r\n\r\n"); err != nil {
		return nil, err
	}
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err == nil && req.Method != http.MethodConnect {
		err = fmt.Errorf("the API server asks for %s %s", req.Method, req.RequestURI)
	}
	return req, err
}

// connect passes a connection on to an address that the wire knows the way to.
func (s *stage) connect(g *gate, c net.Conn, to string) {
	var pod net.Conn
	err := s.w.Wire.Do(func() (err error) {
		d := net.Dialer{Timeout: 10 * time.Second}
		pod, err = d.Dial("tcp", to)
		return err
	})
	if err != nil {
		fmt.Fprintf(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		c.Close()
		return
	}
	g.add(pod)
	if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		c.Close()
		pod.Close()
		return
	}
	wire.Splice(c, pod)
}

// TestUpstreamKubernetesDefault: the Service default/kubernetes is there, its EndpointSlice points to the API server,
// and pods, nodes and the client outside read the API server through its ClusterIP, with TLS.
func TestUpstreamKubernetesDefault(t *testing.T) {
	s := newStage(t, 3)
	svc, err := s.api.CoreV1().Services(metav1.NamespaceDefault).Get(s.ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	to := clusterIP(svc, 443)
	for _, c := range s.clients() {
		if r := c.Connect(to, lab.Timeout(time.Second)); r.Verdict == lab.Answered {
			t.Errorf("%s gets through to %s while nobody serves it", c.name, to)
		}
	}
	s.startAgents()
	s.wantServers(t, svc)
	says := fmt.Sprintf(`"gitVersion": "v%s"`, s.plane.Release)
	for _, c := range s.clients() {
		if v, err := s.version(c, to); err != nil || !strings.Contains(v, says) {
			t.Errorf("%s asks %s for the API server's version: %v, %.300s", c.name, to, err, v)
		}
	}
	s.wantServers(t, svc) // still these
}

// wantServers: the slices of default/kubernetes name the API server's address and nothing else, and so does every
// node's virtual server.
func (s *stage) wantServers(t testing.TB, svc *corev1.Service) {
	t.Helper()
	to := clusterIP(svc, 443)
	slices, err := s.slicesOf(svc)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, slice := range slices {
		for _, p := range slice.Ports {
			for _, e := range slice.Endpoints {
				got = append(got, fmt.Sprintf("%s %s %s:%d", *p.Name, *p.Protocol, e.Addresses[0], *p.Port))
			}
		}
	}
	if want := "https TCP " + s.server().String(); len(got) != 1 || got[0] != want {
		t.Errorf("the EndpointSlices of default/kubernetes say %q, want %q", got, want)
	}
	for _, n := range s.w.Nodes {
		lab.Eventually(t, soon, fmt.Sprintf("%s serves %s", n.Name, to), func() error {
			got, err := reals(n, to)
			if err == nil && (len(got) != 1 || got[0] != s.server().String()) {
				err = fmt.Errorf("by %v, want %s", got, s.server())
			}
			return err
		})
	}
}

// version asks the API server for its version through an address, whose name must be in its certificate.
func (s *stage) version(c client, at netip.AddrPort) (string, error) {
	h := clientIn(c.Host)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.config.CAData)
	h.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool}
	resp, err := h.Get("https://" + at.String() + "/version")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}
