package controlplane

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// recorded are the files of a recording and where their content comes from.
var recorded = map[string]string{
	"metrics.txt":   "127.0.0.1:10249/metrics",
	"proxymode.txt": "127.0.0.1:10249/proxyMode",
	"configz.txt":   "127.0.0.1:10249/configz",
	"flagz.txt":     "127.0.0.1:10249/flagz",
	"statusz.txt":   "127.0.0.1:10249/statusz",
	"healthz.txt":   "127.0.0.1:10256/healthz",
	"livez.txt":     "127.0.0.1:10256/livez",
	// The other one: 10249 has a health, too.
	"healthz-metrics-port.txt": "127.0.0.1:10249/healthz",
	"notfound.txt":             "127.0.0.1:10249/no-such-page",
}

// TestRecordKubeProxy is no test: it runs the real kube-proxy in ipvs mode and hands out what it serves.
func TestRecordKubeProxy(t *testing.T) {
	s := newStage(t, 1)
	n := s.w.Node(1)
	s.proxyAccount()
	proxy := s.startKubeProxy(n, "--feature-gates=ComponentFlagz=true,ComponentStatusz=true")
	svc := s.createService(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "kubia"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "kubia"},
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)},
				{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80, TargetPort: intstr.FromInt32(8080)},
			}},
	})
	local := corev1.ServiceInternalTrafficPolicyLocal
	s.createService(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "nowhere-near"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "far"},
			InternalTrafficPolicy: &local, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	})
	s.startKubelet()
	s.createPod("kubia-1", map[string]string{"app": "kubia"}, n)
	to := clusterIP(svc, 80)
	lab.Eventually(t, 2*time.Minute, "kube-proxy has a real server behind "+to.String(), func() error {
		if !proxy.Running() {
			t.Fatalf("kube-proxy ended:\n%s", proxy.Log())
		}
		servers, err := n.VirtualServers()
		if err != nil {
			return err
		}
		for _, v := range servers {
			if v.Addr == to && len(v.Reals) == 1 {
				return nil
			}
		}
		return fmt.Errorf("%d virtual servers", len(servers))
	})
	// Both probes have been asked, so that their counters are there.
	for _, path := range []string{"/healthz", "/livez"} {
		if _, err := get(n.Host, "127.0.0.1:10256"+path); err != nil {
			t.Fatal(err)
		}
	}
	// Only changes from after its start count for kube-proxy's latency.
	s.createPod("kubia-2", map[string]string{"app": "kubia"}, n)
	// A metric that has labels is there once something was observed.
	lab.Eventually(t, 2*time.Minute, "kube-proxy has gone through its work", func() error {
		text, err := get(n.Host, recorded["metrics.txt"])
		if err != nil {
			return err
		}
		for _, m := range []string{"sync_proxy_rules_duration_seconds", "sync_proxy_rules_last_timestamp_seconds", "network_programming_duration_seconds",
			"sync_proxy_rules_no_local_endpoints_total", "conntrack_reconciler_sync_duration_seconds"} {
			if !bytes.Contains(text, []byte("# TYPE kubeproxy_"+m+" ")) {
				return fmt.Errorf("no %s yet", m)
			}
		}
		return nil
	})
	for _, name := range slices.Sorted(maps.Keys(recorded)) {
		text, err := get(n.Host, recorded[name])
		if err != nil {
			t.Fatal(err)
		}
		s.switchPlane(http.MethodPut, "/out/"+name, bytes.NewReader(normalise(text)))
	}
}

// startKubeProxy runs the real one on a node, with the credentials that it has everywhere.
func (s *stage) startKubeProxy(n *lab.Node, args ...string) *lab.Agent {
	s.t.Helper()
	program := filepath.Join(os.Getenv("LAB_DIR"), "kube-proxy")
	flags := lab.KubeProxyFlags("ipvs", n, s.kubeconfig(metav1.NamespaceSystem, "kube-proxy", s.server()))
	return s.w.StartProgram(s.t, n.Host, slices.Concat([]string{program}, flags, args)...)
}

// clientIn asks over HTTP from a namespace.
func clientIn(h *lab.Host) *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = h.Do(func() error {
				c, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return c, err
		}}}
}

// get is an answer as it is on the wire: status, headers in order of their names, an empty line, the body.
func get(h *lab.Host, url string) ([]byte, error) {
	resp, err := clientIn(h).Get("http://" + url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s\n", resp.Proto, resp.Status)
	for _, k := range slices.Sorted(maps.Keys(resp.Header)) {
		fmt.Fprintf(&b, "%s: %s\n", k, strings.Join(resp.Header[k], ", "))
	}
	b.WriteByte('\n')
	b.Write(body)
	return b.Bytes(), nil
}

// What differs from run to run without a meaning.
var volatile = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?[+-]\d{4})?(Z| UTC)?( m=\+[\d.]+)?`), "2026-01-01T00:00:00Z"},
	{regexp.MustCompile(`(?m)^Started: .*$`), "Started:  Thu Jan 01 00:00:00 UTC 2026"},
	{regexp.MustCompile(`(?m)^Up: .*$`), "Up:  0 hr 00 min 07 sec"},
	{regexp.MustCompile(`(?m)^Date: .*$`), "Date: Thu, 01 Jan 2026 00:00:00 GMT"},
	{regexp.MustCompile(`\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT`), "Thu, 01 Jan 2026 00:00:00 GMT"},
	{regexp.MustCompile(`172\.28\.128\.1:\d+`), "172.28.128.1:6443"},
	{regexp.MustCompile(`/tmp/\w+/\d+/`), "/var/lib/kube-proxy/"},
}

func normalise(text []byte) []byte {
	for _, v := range volatile {
		text = v.pattern.ReplaceAll(text, []byte(v.with))
	}
	return text
}
