package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
)

// known are agents that answer what the test says.
type known map[string]func(args []string) (answer, error)

func (k known) On(_ context.Context, node string) ([]string, error) {
	if node != "" && k[node] == nil {
		return nil, errors.New("no pod of an agent runs on " + node)
	}
	if node != "" {
		return []string{node}, nil
	}
	return slices.Sorted(maps.Keys(k)), nil
}

func (k known) Run(_ context.Context, node string, args []string) (answer, error) { return k[node](args) }

// says answers with a list where JSON is asked for.
func says(exit int, found any) func([]string) (answer, error) {
	return func(args []string) (answer, error) {
		if !slices.Contains(args, "json") {
			return answer{stdout: []byte("as text: " + strings.Join(args, " ") + "\n"), exit: exit}, nil
		}
		text, err := json.Marshal(found)
		return answer{stdout: text, exit: exit}, err
	}
}

func row(service, frontend string, state inspect.State, conns uint64) inspect.Row {
	return inspect.Row{Service: service, Port: "http", Protocol: "TCP", Frontend: frontend, By: "ClusterIP", Backends: 3, Here: 1, State: state, Load: inspect.Load{Active: 1, Conns: conns}}
}

func list(programmed bool, rows ...inspect.Row) inspect.List {
	return inspect.List{Head: inspect.Head{Version: "v1", Programmed: programmed}, Rows: rows}
}

func called(t *testing.T, of agents, args ...string) (out, stderr string, status int) {
	t.Helper()
	cmd := newCommand(of)
	var o, e bytes.Buffer
	cmd.SetOut(&o)
	cmd.SetErr(&e)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	var ended exitStatus
	switch {
	case errors.As(err, &ended):
		status = ended.status
	case err != nil:
		e.WriteString(err.Error())
		status = couldNotLook
	}
	for line := range strings.Lines(o.String()) {
		if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > inspect.Width {
			t.Errorf("a line that is too long: %s", line)
		}
	}
	return o.String(), e.String(), status
}

// A list of all nodes has each frontend once, with sums, and says on which nodes it is not as on the others.
func TestB73AllNodes(t *testing.T) {
	web, edge := "10.96.0.80:80", "10.96.0.30:80"
	agents := known{
		"node1": says(0, list(true, row("default/web", web, inspect.Open, 5), row("shop/edge", edge, inspect.Open, 1))),
		"node2": says(1, list(false, row("default/web", web, inspect.Waiting, 0), row("shop/edge", edge, inspect.Open, 2))),
		"node3": says(0, list(true, row("default/web", web, inspect.Open, 7), row("default/web", "192.0.2.3:30080", inspect.Open, 9), row("shop/edge", edge, inspect.Open, 3))),
		"node4": func([]string) (answer, error) {
			return answer{stderr: []byte("ipvs-proxy: no permission\n"), exit: 2}, nil
		},
		"node5": func([]string) (answer, error) { return answer{}, errors.New("the pod is gone") },
	}
	out, stderr, status := called(t, agents, "show", "--all-nodes", "--parallel", "2")
	want := `3 nodes; not all programmed: node2

SERVICE      PORT      FRONTEND         BACKENDS  ACTIVE  CONNS  STATE
default/web  http/TCP  10.96.0.80:80           3       3     12  waiting on node2; open on 2
default/web  http/TCP  192.0.2.3:30080         3       1      9  open on node3
shop/edge    http/TCP  10.96.0.30:80           3       3      6  open
`
	if out != want || status != 2 {
		t.Errorf("status %d\n%s\nwant 2\n%s", status, out, want)
	}
	if want := "kubectl ipvs: node node4: no permission\nkubectl ipvs: node node5: the pod is gone\n"; stderr != want {
		t.Errorf("%q, want %q", stderr, want)
	}
}

// The busiest of all nodes stand with theirs.
func TestB73AllNodesTop(t *testing.T) {
	busy := func(rates ...uint64) (x inspect.Top) {
		for i, r := range rates {
			x.Rows = append(x.Rows, inspect.Busy{Row: row(fmt.Sprintf("default/s%d", i), "10.96.0.80:80", inspect.Open, 1), Throughput: inspect.Throughput{Connections: r}})
		}
		return x
	}
	out, _, status := called(t, known{"node1": says(0, busy(5, 1)), "node2": says(0, busy(9))}, "top", "--all-nodes")
	lines := strings.Split(out, "\n")
	if status != 0 || len(lines) < 6 || !strings.HasPrefix(lines[3], "node2  default/s0") || !strings.HasPrefix(lines[4], "node1  default/s0") || !strings.HasPrefix(lines[5], "node1  default/s1") {
		t.Errorf("status %d\n%s", status, out)
	}
}

// What is no list is printed once for all nodes that say the same, and of one node as it came.
func TestB73GroupsNodes(t *testing.T) {
	of := func(text string, exit int) func([]string) (answer, error) {
		return func([]string) (answer, error) { return answer{stdout: []byte(text), exit: exit}, nil }
	}
	agents := known{"node1": of("web on node1\n", 0), "node2": of("web on node2\n", 0), "node3": of("another\n", 1)}
	out, _, status := called(t, agents, "explain", "default/web", "--all-nodes")
	if want := "== node1, node2\nweb on this node\n\n== node3\nanother\n\n"; out != want || status != 1 {
		t.Errorf("status %d\n%s", status, out)
	}
	if out, _, status := called(t, agents, "show", "--node", "node3", "--", "--state", "!open"); out != "another\n" || status != 1 {
		t.Errorf("of one node: status %d\n%s", status, out)
	}
	for _, args := range [][]string{{"show"}, {"show", "--node", "node1", "--all-nodes"}, {"show", "--node", "node9"}, {"show", "--all-nodes", "--parallel", "0"}, {"what"}} {
		if out, stderr, status := called(t, agents, args...); status != 2 || stderr == "" || out != "" {
			t.Errorf("%v: status %d\n%s%s", args, status, out, stderr)
		}
	}
}

// apiServer has a pod on node1 and runs what is asked for, as an API server does: over WebSocket, in the protocol
// v5.channel.k8s.io.
func apiServer(t *testing.T, exit int) *rest.Config {
	mux := http.NewServeMux()
	mux.HandleFunc("/api/v1/namespaces/kube-system/pods", func(w http.ResponseWriter, r *http.Request) {
		list := corev1.PodList{}
		if r.URL.Query().Get("labelSelector") == selectors[1] {
			pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-proxy-x"},
				Spec: corev1.PodSpec{NodeName: "node1", Containers: []corev1.Container{{Name: "kube-proxy"}}}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
			ends := pod
			ends.Name, ends.Spec.NodeName, ends.Status.Phase = "kube-proxy-y", "node2", corev1.PodFailed
			list.Items = []corev1.Pod{pod, ends}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list)
	})
	mux.HandleFunc("/api/v1/namespaces/kube-system/pods/kube-proxy-x/exec", func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
		c, err := up.Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		status := metav1.Status{Status: metav1.StatusSuccess}
		if exit != 0 {
			status = metav1.Status{Status: metav1.StatusFailure, Reason: "NonZeroExitCode", Message: "command terminated",
				Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "ExitCode", Message: fmt.Sprint(exit)}}}}
		}
		text, _ := json.Marshal(status)
		said := r.URL.Query().Get("container") + ": " + strings.Join(r.URL.Query()["command"], " ")
		for channel, b := range [][]byte{1: []byte(said + "\n"), 2: []byte("warning\n"), 3: text} {
			if channel > 0 {
				_ = c.WriteMessage(websocket.BinaryMessage, append([]byte{byte(channel)}, b...))
			}
		}
		_ = c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return &rest.Config{Host: server.URL}
}

// The program is run in the pod of the node, with its output and its exit status.
func TestB73Exec(t *testing.T) {
	for _, exit := range []int{0, 1, 2} {
		p, err := newPods(apiServer(t, exit), "kube-system", "")
		if err != nil {
			t.Fatal(err)
		}
		out, stderr, status := called(t, p, "show", "default/web", "--node", "node1")
		if want := "kube-proxy: " + program + " show default/web\n"; out != want || stderr != "warning\n" || status != exit {
			t.Errorf("exit %d: status %d, %q and %q, want %q", exit, status, out, stderr, want)
		}
	}
	p, err := newPods(apiServer(t, 0), "kube-system", "app=nothing")
	if err != nil {
		t.Fatal(err)
	}
	if _, stderr, status := called(t, p, "show", "--all-nodes"); status != 2 || !strings.Contains(stderr, "no pod of an agent runs in namespace kube-system") {
		t.Errorf("without pods: status %d, %s", status, stderr)
	}
}
