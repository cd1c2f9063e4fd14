package controlplane

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// proxyUser is who the agents are.
const proxyUser = "system:serviceaccount:kube-system:kube-proxy"

// outsider is the user agent of the calls that a test makes in the agents' name.
const outsider = "e2e-outside-of-the-role"

// calls is what the agents may ask for: this and nothing else. Each must have been asked at least once where the
// value says so; Events come only when there is something to tell.
var calls = map[string]bool{
	"watch services": true, "watch endpointslices.discovery.k8s.io": true, "watch nodes": true,
	// Where streaming lists do not work, or a watch must be begun anew.
	"list services": false, "list endpointslices.discovery.k8s.io": false, "list nodes": false, "get nodes": false,
	"create events.events.k8s.io": false, "patch events.events.k8s.io": false, "create events": false, "patch events": false,
}

// auditEvent is what we read of an entry of the audit log.
type auditEvent struct {
	Verb       string
	RequestURI string
	UserAgent  string
	User       struct{ Username string }
	ObjectRef  *struct{ Resource, APIGroup, Subresource, Name string }

	ResponseStatus struct{ Code int }
}

func (e auditEvent) call() string {
	if e.ObjectRef == nil {
		return e.Verb + " " + e.RequestURI
	}
	name := e.ObjectRef.Resource
	if e.ObjectRef.APIGroup != "" {
		name += "." + e.ObjectRef.APIGroup
	}
	if e.ObjectRef.Subresource != "" {
		name += "/" + e.ObjectRef.Subresource
	}
	return e.Verb + " " + name
}

// agentCalls counts what the agents asked for since the start of the test, and fails it for each call that is not on
// the list or was refused.
func (s *stage) agentCalls() map[string]int {
	s.t.Helper()
	log, err := s.trySwitch(http.MethodGet, "/audit", nil)
	if err != nil {
		s.t.Errorf("audit log: %v", err)
		return nil
	}
	made := map[string]int{}
	for line := range bytes.Lines(log[min(s.audited, len(log)):]) {
		var e auditEvent
		if err := json.Unmarshal(line, &e); err != nil {
			s.t.Errorf("audit log: %v: %s", err, line)
			return nil
		}
		if e.User.Username != proxyUser || e.UserAgent == outsider {
			continue
		}
		made[e.call()]++
		if _, ok := calls[e.call()]; !ok {
			s.t.Errorf("an agent asked for %s (%s)", e.call(), e.RequestURI)
		}
		if e.ResponseStatus.Code == http.StatusForbidden || e.ResponseStatus.Code == http.StatusUnauthorized {
			s.t.Errorf("an agent asked for %s and was answered %d", e.RequestURI, e.ResponseStatus.Code)
		}
		if e.ObjectRef != nil && e.ObjectRef.Resource == "nodes" && e.ObjectRef.Name == "" {
			s.t.Errorf("an agent asked for all nodes: %s", e.RequestURI)
		}
	}
	return made
}

// B53: the agents do with the role system:node-proxier, of which they use no more than they need: the API server's
// audit log has no call of theirs that is not on the list, and none that was refused. (Every other test looks, too,
// when it ends.) And that role really is a limit: what is outside of it fails.
func TestRBAC(t *testing.T) {
	s := newStage(t, 3)
	s.startKubia()
	made := s.agentCalls()
	t.Logf("calls of the agents: %v", made)
	for _, call := range slices.Sorted(maps.Keys(calls)) {
		if calls[call] && made[call] < len(s.w.Nodes) {
			t.Errorf("%d agents asked %d times for %q: the audit log does not tell all", len(s.w.Nodes), made[call], call)
		}
	}
	s.wantForbidden(t)
}

// wantForbidden makes calls that the role does not have, with an agent's own token.
func (s *stage) wantForbidden(t *testing.T) {
	t.Helper()
	config := rest.AnonymousClientConfig(s.config)
	config.BearerToken, config.UserAgent, config.Dial = s.token(metav1.NamespaceSystem, "kube-proxy"), outsider, s.config.Dial
	config.QPS = -1
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.CoreV1().Services("").List(s.ctx, metav1.ListOptions{}); err != nil {
		t.Fatalf("a call that the role has: %v", err)
	}
	for name, call := range map[string]func() error{
		"list pods":    func() error { _, err := api.CoreV1().Pods("").List(s.ctx, metav1.ListOptions{}); return err },
		"list secrets": func() error { _, err := api.CoreV1().Secrets("").List(s.ctx, metav1.ListOptions{}); return err },
		"get a configmap": func() error {
			_, err := api.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(s.ctx, "extension-apiserver-authentication", metav1.GetOptions{})
			return err
		},
		"delete a Service": func() error {
			return api.CoreV1().Services(s.namespace).Delete(s.ctx, "kubia", metav1.DeleteOptions{})
		},
		"delete a node": func() error { return api.CoreV1().Nodes().Delete(s.ctx, "node1", metav1.DeleteOptions{}) },
	} {
		if err := call(); !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v; want it forbidden", name, fmt.Sprint(err))
		}
	}
}
