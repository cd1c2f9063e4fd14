package traffic

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// page is an answer of one of the agent's own ports.
type page struct {
	code   int
	header http.Header
	body   string
}

// get asks for a page, over a connection that the host makes.
func get(h *lab.Host, to netip.AddrPort, path string) (p page, err error) {
	var conn net.Conn
	err = h.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", to.String(), 5*time.Second)
		return err
	})
	if err != nil {
		return p, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return p, err
	}
	req, err := http.NewRequest(http.MethodGet, "http://"+to.String()+path, nil)
	if err != nil {
		return p, err
	}
	if err := req.Write(conn); err != nil {
		return p, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return p, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return page{resp.StatusCode, resp.Header, string(body)}, err
}

// wantCode waits until a page has a status code, and gives it.
func wantCode(t *testing.T, h *lab.Host, to netip.AddrPort, path string, code int) (p page) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s gets %d for %s%s", h.Name, code, to, path), func() (err error) {
		if p, err = get(h, to, path); err == nil && p.code != code {
			err = fmt.Errorf("%d: %s", p.code, p.body)
		}
		return err
	})
	return p
}

// editNode changes the document of a Node; nothing at all removes it.
func (s *stage) editNode(name string, edit func(string) string) {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.cluster.Dir, "nodes.yaml"))
	if err != nil {
		s.t.Fatal(err)
	}
	var docs []string
	for doc := range strings.SplitSeq(string(text), "---\n") {
		if strings.Contains(doc, "\n  name: "+name+"\n") {
			doc = edit(doc)
		}
		if doc != "" {
			docs = append(docs, doc)
		}
	}
	s.cluster.Write("nodes.yaml", strings.Join(docs, "---\n"))
}

// The port of healthzBindAddress answers the network: load balancers and the autoscaler go by it (B51).
func TestB51Health(t *testing.T) {
	s := newStage(t).start()
	svc := web(40)
	s.apply(svc, s.pods()...)
	s.ready(svc)
	n := s.w.Node(1)
	each(t, func(t *testing.T, family int) {
		p := wantCode(t, s.w.Client, netip.AddrPortFrom(n.Addr(family), 10256), "/healthz", 200)
		var body struct {
			LastUpdated, CurrentTime time.Time
			NodeEligible, Healthy    *bool
			Status                   map[string]struct {
				LastUpdated time.Time
				Healthy     bool
			}
		}
		if err := json.Unmarshal([]byte(p.body), &body); err != nil {
			t.Fatalf("%v: %s", err, p.body)
		}
		if !body.LastUpdated.Equal(body.CurrentTime) || body.NodeEligible == nil || !*body.NodeEligible || body.Healthy == nil || !*body.Healthy ||
			len(body.Status) != 2 || !body.Status["IPv4"].Healthy || !body.Status["IPv6"].Healthy || body.Status["IPv6"].LastUpdated.IsZero() {
			t.Errorf("/healthz: %s", p.body)
		}
		if p.header.Get("Content-Type") != "application/json" || p.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("/healthz: %v", p.header)
		}
	})
	healthz, livez := netip.AddrPortFrom(n.V4, 10256), "/livez"
	goes := func(what string) {
		t.Helper()
		if p := wantCode(t, s.w.Client, healthz, "/healthz", 503); !strings.Contains(p.body, `"nodeEligible":false,"healthy":true`) {
			t.Errorf("%s: %s", what, p.body)
		}
		if p := wantCode(t, s.w.Client, healthz, livez, 200); strings.Contains(p.body, "nodeEligible") {
			t.Errorf("%s: /livez speaks of the Node: %s", what, p.body)
		}
		wantCode(t, s.w.Client, netip.AddrPortFrom(s.w.Node(2).V4, 10256), "/healthz", 200)
		answers(t, s.w.Pod("pod-a").Host, at(svc, 4, 80)) // it serves as long as it is there
	}
	var was string
	s.editNode(n.Name, func(doc string) string {
		was = doc
		return strings.Replace(doc, "spec:\n", "spec:\n  taints:\n  - {key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}\n", 1)
	})
	goes("tainted by the autoscaler")
	s.editNode(n.Name, func(string) string { return was })
	wantCode(t, s.w.Client, healthz, "/healthz", 200)
	s.editNode(n.Name, func(doc string) string {
		return strings.Replace(doc, "metadata:\n", "metadata:\n  deletionTimestamp: 2026-01-01T00:00:00Z\n", 1)
	})
	goes("being deleted")
	s.editNode(n.Name, func(string) string { return was })
	wantCode(t, s.w.Client, healthz, "/healthz", 200)
	s.editNode(n.Name, func(string) string { return "" })
	goes("deleted")
	s.cluster.Write("node.yaml", was)
	wantCode(t, s.w.Client, healthz, "/healthz", 200)
}

// The port of metricsBindAddress has all pages, and is for the node alone unless it is opened (B51).
func TestB51MetricsPort(t *testing.T) {
	s := newStage(t)
	closed, open := s.w.Node(1), s.w.Node(2)
	first := s.w.StartAgent(t, closed, s.cluster, "--cluster-cidr", "10.244.0.0/16,fd10:244::/32")
	programmed(t, first)
	programmed(t, s.w.StartAgent(t, open, s.cluster, "--metrics-bind-address", "0.0.0.0:10249", "--profiling"))

	local := netip.AddrPortFrom(loopback, 10249)
	for path, want := range map[string]string{
		"/healthz": "ok", "/proxyMode": "ipvs", "/configz": `{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration",`,
		"/flagz": "\nkube-proxy flagz\n", "/statusz": "\nkube-proxy statusz\n", "/metrics": "# HELP ",
	} {
		if p := wantCode(t, closed.Host, local, path, 200); !strings.HasPrefix(p.body, want) {
			t.Errorf("%s: %.300s", path, p.body)
		}
	}
	if p := wantCode(t, closed.Host, local, "/configz", 200); !strings.Contains(p.body, `"clusterCIDR":"10.244.0.0/16,fd10:244::/32"`) {
		t.Errorf("/configz: %s", p.body)
	}
	if p := wantCode(t, closed.Host, local, "/flagz", 200); !strings.Contains(p.body, "\nhostname-override="+closed.Name+"\n") {
		t.Errorf("/flagz: %s", p.body)
	}
	wantCode(t, closed.Host, local, "/debug/pprof/", 404)
	if r := s.w.Client.Connect(netip.AddrPortFrom(closed.V4, 10249)); r.Verdict != lab.Refused {
		t.Errorf("from outside: %s", r)
	}
	wantCode(t, s.w.Client, netip.AddrPortFrom(open.V4, 10249), "/debug/pprof/goroutine?debug=1", 200)

	// Where the port is taken, the agent serves all the same and takes it when it is free, unless it is to fail.
	_ = first.Stop()
	var other net.Listener
	if err := closed.Do(func() (err error) { other, err = net.Listen("tcp4", local.String()); return err }); err != nil {
		t.Fatal(err)
	}
	hard := s.w.StartAgent(t, closed, s.cluster, "--bind-address-hard-fail")
	if err := hard.Wait(soon); err == nil || !strings.Contains(hard.Log(), "metrics server on 127.0.0.1:10249: listen tcp") {
		t.Errorf("port taken, to fail: %v\n%s", err, hard.Log())
	}
	soft := s.w.StartAgent(t, closed, s.cluster)
	programmed(t, soft)
	lab.Eventually(t, soon, "the log names the port that is taken", func() error {
		if !strings.Contains(soft.Log(), "server cannot listen, trying again") {
			return errors.New(soft.Log())
		}
		return nil
	})
	wantCode(t, s.w.Client, netip.AddrPortFrom(closed.V4, 10256), "/livez", 200)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	wantCode(t, closed.Host, local, "/proxyMode", 200)
}

// metric reads a metric of a node; 0 where there is none. labels are as they are written, in their order.
func metric(t *testing.T, n *lab.Node, name string) float64 {
	t.Helper()
	p, err := get(n.Host, netip.AddrPortFrom(loopback, 10249), "/metrics")
	if err != nil || p.code != 200 {
		t.Fatalf("metrics of %s: %d, %v", n.Name, p.code, err)
	}
	for line := range strings.SplitSeq(p.body, "\n") {
		if value, of := strings.CutPrefix(line, name+" "); of {
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			return f
		}
	}
	return 0
}

// wantMetric waits until a metric of a node is as it should be.
func wantMetric(t *testing.T, n *lab.Node, name string, ok func(float64) bool) {
	t.Helper()
	lab.Eventually(t, soon, name+" on "+n.Name, func() error {
		if v := metric(t, n, name); !ok(v) {
			return fmt.Errorf("it is %v", v)
		}
		return nil
	})
}

// What dashboards show moves with what the agent does to the kernel (B52).
func TestB52Metrics(t *testing.T) {
	s := newStage(t).start()
	n := s.w.Node(1)
	programmed(t, s.agents[0])
	some := func(v float64) bool { return v > 0 }
	before := metric(t, n, `kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"}`)
	svc := web(41)
	v4, v6 := s.w.SlicesFor(svc, s.pods()...)
	const ago = 200 * time.Millisecond // less than the agent's age: what is older than that does not count
	dated := func() map[string]string {
		return map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": time.Now().Add(-ago).UTC().Format(time.RFC3339Nano)}
	}
	s.cluster.Apply(svc, v4, v6)
	s.ready(svc)
	wantMetric(t, n, `kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"}`, func(v float64) bool { return v > before })
	wantMetric(t, n, `kubeproxy_sync_proxy_rules_service_changes_total`, some)
	wantMetric(t, n, `kubeproxy_sync_proxy_rules_endpoint_changes_total`, some)
	wantMetric(t, n, `kubeproxy_sync_proxy_rules_service_changes_pending`, func(v float64) bool { return v == 0 })
	wantMetric(t, n, `ipvsproxy_frontends{ip_family="IPv6"}`, func(v float64) bool { return v == 1 })
	wantMetric(t, n, `ipvsproxy_kernel_writes_total{operation="add_virtual_server"}`, func(v float64) bool { return v == 2 })
	if v := metric(t, n, `kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}`); time.Since(time.UnixMilli(int64(v*1000))) > time.Minute {
		t.Errorf("last programmed at %v", v)
	}

	count, sum := `kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"}`, `kubeproxy_network_programming_duration_seconds_sum{ip_family="IPv4"}`
	if v := metric(t, n, count); v != 0 {
		t.Errorf("%v changes without a date were timed", v)
	}
	v4.Endpoints, v4.Annotations = v4.Endpoints[1:], dated()
	s.cluster.Apply(v4)
	wantMetric(t, n, count, func(v float64) bool { return v == 1 })
	if v := metric(t, n, sum); v < ago.Seconds() || v > ago.Seconds()+soon.Seconds() {
		t.Errorf("a change of %s ago was timed as %v s", ago, v)
	}
	p := wantCode(t, n.Host, netip.AddrPortFrom(loopback, 10249), "/metrics", 200)
	for _, line := range []string{"# TYPE process_resident_memory_bytes gauge", "# TYPE go_goroutines gauge",
		`git_version="v1.37.`, `kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv4"} 0`} {
		if !strings.Contains(p.body, line) {
			t.Errorf("/metrics lacks %s", line)
		}
	}
}
