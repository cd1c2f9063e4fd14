package lab

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// ServeAPI is RunAPI for a test, with which it ends.
func (c *Cluster) ServeAPI(t testing.TB, h *Host, at netip.AddrPort) (kubeconfig string) {
	t.Helper()
	kubeconfig, stop, err := c.RunAPI(h, at, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return kubeconfig
}

// RunAPI serves the cluster's objects at an address of a host as an API server does, as far as kube-proxy asks: lists, and
// watches that end when something has changed, so that it lists again. It returns a kubeconfig, which it writes into dir.
func (c *Cluster) RunAPI(h *Host, at netip.AddrPort, dir string) (kubeconfig string, stop func(), err error) {
	kubeconfig = filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "http://%s"}}]
contexts: [{name: lab, context: {cluster: lab, user: lab}}]
users: [{name: lab, user: {}}]
current-context: lab
`, at)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		return "", nil, err
	}
	ln, err := h.listen(0, at.Addr(), at.Port())
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: http.HandlerFunc(c.serveAPI), ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(ln) }()
	return kubeconfig, func() { _ = s.Close() }, nil
}

// KubeProxyFlags are those with which kube-proxy serves a node of the lab in one of its modes.
func KubeProxyFlags(mode string, n *Node, kubeconfig string) []string {
	return []string{"--proxy-mode=" + mode, "--hostname-override=" + n.Name, "--kubeconfig=" + kubeconfig,
		// The table's size is the machine's, and a namespace may not change it.
		"--conntrack-max-per-core=0", "--conntrack-min=0", fmt.Sprintf("--cluster-cidr=%s,%s", ClusterCIDR4, ClusterCIDR6)}
}

// served are the lists that it has, by the end of their path.
var served = map[string]string{"services": "Service", "endpointslices": "EndpointSlice", "nodes": "Node", "servicecidrs": "ServiceCIDR"}

func (c *Cluster) serveAPI(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	put := func(v any) { _ = json.NewEncoder(w).Encode(v) } // who asked may be gone
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	resource, name := parts[len(parts)-1], ""
	if len(parts) > 2 && parts[len(parts)-2] == "nodes" {
		resource, name = "nodes", parts[len(parts)-1]
	}
	if field := r.URL.Query().Get("fieldSelector"); resource == "nodes" {
		if of, is := strings.CutPrefix(field, "metadata.name="); is {
			name = of
		}
	}
	items, version := c.items(served[resource], name)
	switch {
	case r.Method != http.MethodGet:
		w.WriteHeader(http.StatusCreated)
		put(map[string]any{"kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": map[string]any{"name": "x", "namespace": "default"}})
	case name != "" && parts[len(parts)-1] == name && len(items) == 1:
		put(items[0])
	case r.URL.Query().Get("sendInitialEvents") != "": // it lists instead
		w.WriteHeader(http.StatusUnprocessableEntity)
		put(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": http.StatusUnprocessableEntity})
	case r.URL.Query().Get("watch") != "":
		c.untilChanged(w, r, version)
		put(map[string]any{"type": "ERROR", "object": map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": http.StatusGone}})
	default:
		kind := served[resource]
		api := strings.Join(parts[1:len(parts)-1], "/")
		put(map[string]any{"kind": kind + "List", "apiVersion": api, "metadata": map[string]any{"resourceVersion": fmt.Sprint(version)}, "items": items})
	}
}

// untilChanged holds a watch until the objects are others than those of a version.
func (c *Cluster) untilChanged(w http.ResponseWriter, r *http.Request, version uint32) {
	if f, is := w.(http.Flusher); is {
		w.WriteHeader(http.StatusOK)
		f.Flush()
	}
	was := r.URL.Query().Get("resourceVersion")
	for was == fmt.Sprint(version) {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
		_, version = c.items("", "")
	}
}

// items are the objects of a kind, and a number that stands for all that the cluster has.
func (c *Cluster) items(kind, name string) (items []map[string]any, version uint32) {
	items = []map[string]any{}
	sum := fnv.New32a()
	files, _ := filepath.Glob(filepath.Join(c.Dir, "*.yaml"))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it went just now
		}
		_, _ = sum.Write(b)
		for _, doc := range strings.Split(string(b), "---\n") {
			var o map[string]any
			if yaml.Unmarshal([]byte(doc), &o) != nil || o["kind"] != kind {
				continue
			}
			meta, _ := o["metadata"].(map[string]any)
			if meta == nil || name != "" && meta["name"] != name {
				continue
			}
			meta["resourceVersion"], meta["uid"] = "1", fmt.Sprint(meta["namespace"], "-", meta["name"])
			items = append(items, o)
		}
	}
	return items, sum.Sum32()
}
