package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kubeProxy is where the lab puts kube-proxy, where it has been compiled.
func kubeProxy() (path string, there bool) {
	path = filepath.Join(os.Getenv("LAB_DIR"), "kube-proxy")
	_, err := os.Stat(path)
	return path, err == nil
}

// serve answers the questions that kube-proxy asks of an API server, once: nothing changes.
func (c things) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet { // an Event
		w.WriteHeader(http.StatusCreated)
		return
	}
	meta := metav1.ListMeta{ResourceVersion: "1"}
	var list any
	switch parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/"); {
	case r.URL.Query().Get("sendInitialEvents") != "": // it lists instead
		w.WriteHeader(http.StatusUnprocessableEntity)
		list = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity}
	case r.URL.Query().Get("watch") != "":
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return
	case parts[len(parts)-1] == "services":
		l := corev1.ServiceList{TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}, ListMeta: meta}
		for _, s := range c.services {
			l.Items = append(l.Items, *s)
		}
		list = l
	case parts[len(parts)-1] == "endpointslices":
		l := discoveryv1.EndpointSliceList{TypeMeta: metav1.TypeMeta{Kind: "EndpointSliceList", APIVersion: "discovery.k8s.io/v1"}, ListMeta: meta}
		for _, s := range c.slices {
			l.Items = append(l.Items, *s)
		}
		list = l
	case parts[len(parts)-1] == "nodes":
		list = corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}, ListMeta: meta, Items: []corev1.Node{*c.node}}
	case len(parts) > 1 && parts[len(parts)-2] == "nodes":
		n := *c.node
		n.TypeMeta = metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}
		list = n
	default:
		list = map[string]any{"kind": "ServiceCIDRList", "apiVersion": "networking.k8s.io/v1", "metadata": meta, "items": []any{}}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list) // who asked may be gone
}

// api serves the objects on this node, and gives a kubeconfig.
func (c things) api() (kubeconfig string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: http.HandlerFunc(c.serve), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }() // until the process ends
	f, err := os.CreateTemp("", "kubeconfig-")
	if err != nil {
		return "", err
	}
	_, err = fmt.Fprintf(f, `apiVersion: v1
kind: Config
clusters: [{name: bench, cluster: {server: "http://%s"}}]
contexts: [{name: bench, context: {cluster: bench, user: bench}}]
users: [{name: bench, user: {}}]
current-context: bench
`, l.Addr())
	return f.Name(), errors.Join(err, f.Close())
}

// runKubeProxy counts on a node of kube-proxy in one of its modes.
func runKubeProxy(o options, mode string) (counts taken, err error) {
	w, err := buildWorld()
	if err != nil {
		return nil, err
	}
	kubeconfig, err := w.things(o.services).api()
	if err != nil {
		return nil, err
	}
	defer os.Remove(kubeconfig)
	program, _ := kubeProxy()
	var ranges []string
	for _, p := range podRanges() {
		ranges = append(ranges, p.String())
	}
	cmd := exec.Command(program, "--proxy-mode="+mode, "--hostname-override="+nodeName(0), "--kubeconfig="+kubeconfig,
		"--conntrack-max-per-core=0", "--conntrack-min=0", "--cluster-cidr="+strings.Join(ranges, ","))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	// It ends with the thread that has started it, which must not be one of those that end with their namespace.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err != nil {
			text := said.String()
			err = fmt.Errorf("%w; kube-proxy said:\n%s", err, text[max(0, len(text)-4000):])
		}
	}()
	if err := w.served(o.services); err != nil {
		return nil, err
	}
	// It writes on for a while after the first Services answer, and then nothing.
	time.Sleep(time.Minute)
	return w.travel(true)
}

// served waits until the first Service and the last answer in all ways.
func (w *world) served(services int) (err error) {
	until := time.Now().Add(5 * time.Minute)
	for family := range w.listen {
		for _, t := range []traveller{{w.client, family, toClusterIP(w, family), w.listen[family]}, {w.outside, family, toNodePort(w, family), w.listen[family]},
			{w.client, family, netip.AddrPortFrom(clusterIPs(services - 1)[family], 80), w.listen[family]}} {
			for {
				err = t.from.in(func() error {
					client, server, _, err := t.open()
					if err == nil {
						abort(client, server)
					}
					return err
				})
				if err == nil {
					break
				}
				if time.Now().After(until) {
					return fmt.Errorf("the %s asks %s: %w", t.from.name, t.to, err)
				}
				time.Sleep(time.Second)
			}
		}
	}
	return nil
}
