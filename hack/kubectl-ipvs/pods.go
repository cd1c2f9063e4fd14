package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

// agents are those of a cluster.
type agents interface {
	// On gives the nodes that have one, sorted; of a single node that one.
	On(ctx context.Context, node string) (nodes []string, err error)
	// Run runs the agent's program on a node and says what it printed and how it ended. An error means that it did not run.
	Run(ctx context.Context, node string, args []string) (answer, error)
}

// answer is what a program printed and how it ended.
type answer struct {
	stdout, stderr []byte
	exit           int
}

// program is where the image has it.
const program = "/usr/local/bin/ipvs-proxy"

// selectors are the labels of the agents' pods, as ipvs-proxy's manifests have them: under its own name, and in kube-proxy's
// place.
var selectors = []string{"app.kubernetes.io/name=ipvs-proxy", "k8s-app=kube-proxy"}

// pods are the agents of a cluster by its API server.
type pods struct {
	config    *rest.Config
	client    kubernetes.Interface
	namespace string
	selectors []string
	byNode    map[string]*corev1.Pod
}

func newPods(config *rest.Config, namespace, selector string) (*pods, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("reach the cluster: %w", err)
	}
	p := &pods{config: config, client: client, namespace: namespace, selectors: selectors, byNode: map[string]*corev1.Pod{}}
	if selector != "" {
		p.selectors = []string{selector}
	}
	return p, nil
}

// On finds the agents' pods that run.
func (p *pods) On(ctx context.Context, node string) (nodes []string, err error) {
	for _, selector := range p.selectors {
		o := metav1.ListOptions{LabelSelector: selector}
		if node != "" {
			o.FieldSelector = "spec.nodeName=" + node
		}
		list, err := p.client.CoreV1().Pods(p.namespace).List(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("list the agents' pods in %s: %w", p.namespace, err)
		}
		for i := range list.Items {
			pod := &list.Items[i]
			if pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil && p.byNode[pod.Spec.NodeName] == nil {
				p.byNode[pod.Spec.NodeName] = pod
				nodes = append(nodes, pod.Spec.NodeName)
			}
		}
		if len(nodes) > 0 {
			slices.Sort(nodes)
			return nodes, nil
		}
	}
	where := "no node"
	if node != "" {
		where = "not on node " + node
	}
	return nil, fmt.Errorf("no pod of an agent runs in namespace %s, %s, with one of the labels %v: see --agent-namespace and --agent-selector", p.namespace, where, p.selectors)
}

// Run runs the program in the node's pod.
func (p *pods) Run(ctx context.Context, node string, args []string) (a answer, err error) {
	pod := p.byNode[node]
	container := pod.Spec.Containers[0].Name
	req := p.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: append([]string{program}, args...), Stdout: true, Stderr: true}, scheme.ParameterCodec)
	var stdout, stderr bytes.Buffer
	stream, err := executor(p.config, req)
	if err == nil {
		err = stream.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr})
	}
	a.stdout, a.stderr = stdout.Bytes(), stderr.Bytes()
	var ended exec.CodeExitError
	if errors.As(err, &ended) {
		a.exit, err = ended.Code, nil
	}
	if err != nil {
		return a, fmt.Errorf("run %s in pod %s/%s: %w", program, pod.Namespace, pod.Name, err)
	}
	return a, nil
}

// executor speaks WebSocket, and SPDY with an API server that does not, as kubectl does.
func executor(config *rest.Config, req *rest.Request) (remotecommand.Executor, error) {
	spdy, err := remotecommand.NewSPDYExecutor(config, "POST", req.URL())
	if err != nil {
		return nil, err
	}
	websocket, err := remotecommand.NewWebSocketExecutor(config, "GET", req.URL().String())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}
