package desk

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
)

// endpointOf is an endpoint in words: "zone=a,b node=n1 here", and "unready", "serving" (and unready), "lingering"
// (serving and terminating), "gone" (terminating and not serving).
func endpointOf(number int, words string) cluster.Endpoint {
	ep := cluster.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(number)}), Port: 80, Protocol: cluster.TCP, NodeName: "elsewhere", Ready: true, Serving: true}
	for _, w := range strings.Fields(words) {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "zone":
			ep.ZoneHints = strings.Split(value, ",")
		case "node":
			ep.NodeHints = strings.Split(value, ",")
		case "here":
			ep.NodeName = "this"
		case "unready":
			ep.Ready, ep.Serving = false, false
		case "serving":
			ep.Ready = false
		case "lingering":
			ep.Ready, ep.Terminating = false, true
		case "gone":
			ep.Ready, ep.Serving, ep.Terminating = false, false, true
		default:
			panic(words)
		}
	}
	return ep
}

// The policies of a case, and whether the port can be reached from outside.
const (
	internalLocal = 1 << iota
	externalLocal
	reachable
)

// TestScopes: the cases that Kubernetes 1.36 tests of its own choice (TestCategorizeEndpoints in pkg/proxy), by
// the numbers of the endpoints, and some of our own at the end. Nil: the scope is never used. (With the feature gate
// PreferSameTrafficDistribution, on for good since 1.35; the one case without it stands as it is with it.)
func TestScopes(t *testing.T) {
	zones := []string{"zone=a", "zone=b", "zone=c", "zone=a"}
	nodes := []string{"zone=a node=n1", "zone=b node=n2", "zone=c node=n3", "zone=a node=n4"}
	none, all := []int{}, []int{1, 2, 3, 4}
	for _, c := range []struct {
		name           string
		node, zone     string
		policies       int
		eps            []string
		cluster, local []int
		any            bool
	}{
		{"hints for every zone", "", "a", 0, zones, []int{1, 4}, nil, true},
		{"external Local has no topology", "", "a", externalLocal | reachable, []string{"zone=a here", "zone=b here", "zone=c", "zone=a"}, []int{1, 4}, []int{1, 2}, true},
		{"internal Local has no topology", "", "a", internalLocal | reachable, []string{"zone=a here", "zone=b here", "zone=c", "zone=a"}, []int{1, 4}, []int{1, 2}, true},
		{"node without labels", "", "", 0, zones[:1], []int{1}, nil, true},
		{"node with an empty zone", "", "", 0, zones[:1], []int{1}, nil, true},
		{"no endpoint for the zone", "", "b", 0, zones[:1], []int{1}, nil, true},
		{"one is not ready", "", "a", 0, []string{"zone=a", "zone=b", "zone=c", "zone=a unready"}, []int{1}, nil, true},
		{"those of the zone are not ready", "", "a", 0, []string{"zone=a unready", "zone=b", "zone=c", "zone=a unready"}, []int{2, 3}, nil, true},
		{"a hint is missing", "", "a", 0, []string{"zone=a", "zone=b", "", "zone=a"}, all, nil, true},
		{"several hints an endpoint", "", "c", 0, []string{"zone=a,b,c", "zone=b,c", "zone=b,d", "zone=c"}, []int{1, 2, 4}, nil, true},
		{"node hints count before zones", "n1", "a", 0, nodes, []int{1}, nil, true},
		{"node hints", "n1", "a", 0, nodes, []int{1}, nil, true},
		{"a node hint is missing", "n1", "a", 0, []string{nodes[0], "", nodes[2], nodes[3]}, all, nil, true},
		{"no endpoint for the node, but for its zone", "n0", "a", 0, nodes, []int{1, 4}, nil, true},
		{"topology and locality differ", "", "a", externalLocal | reachable, []string{"zone=a here", "zone=b here", "zone=a", "zone=b"}, []int{1, 3}, []int{1, 2}, true},
		{"internal Local without endpoints", "", "", internalLocal, nil, nil, none, false},
		{"internal Local, all remote", "", "", internalLocal, []string{"", ""}, nil, none, true},
		{"internal Local, all here", "", "", internalLocal, []string{"here", "here"}, nil, []int{1, 2}, true},
		{"internal Local, one here", "", "", internalLocal, []string{"here", ""}, nil, []int{1}, true},
		{"none ready", "", "", 0, []string{"unready", "unready"}, none, nil, false},
		{"one ready", "", "", 0, []string{"unready", ""}, []int{2}, nil, true},
		{"all terminate", "", "", 0, []string{"lingering here", "lingering"}, []int{1, 2}, nil, true},
		{"internal Local, external Cluster", "", "", internalLocal | reachable, []string{"here", ""}, []int{1, 2}, []int{1}, true},
		{"internal Cluster, external Local", "", "", externalLocal | reachable, []string{"here", ""}, []int{1, 2}, []int{1}, true},
		{"both Local", "", "", internalLocal | externalLocal | reachable, []string{"here", ""}, []int{1, 2}, []int{1}, true},
		{"both Local, all remote", "", "", internalLocal | externalLocal | reachable, []string{"", ""}, []int{1, 2}, none, true},
		{"both Local, all remote and terminating", "", "", internalLocal | externalLocal | reachable, []string{"lingering", "lingering"}, []int{1, 2}, none, true},
		{"ready elsewhere, terminating here", "", "", externalLocal | reachable, []string{"", "unready here", "lingering here", "lingering"}, []int{1}, []int{3}, true},
		{"external Local of what is not reachable", "", "", externalLocal, []string{"", "here"}, []int{1, 2}, nil, true},
		{"internal Local of what is not reachable", "", "", internalLocal, []string{"", "here"}, nil, []int{2}, true},
		{"no endpoint", "", "", 0, nil, none, nil, false},
		{"neither ready nor serving nor terminating", "", "a", 0, []string{"unready"}, none, nil, false},

		{"terminating here, none ready anywhere", "", "", externalLocal | reachable, []string{"lingering here", "lingering", "gone here"}, []int{1, 2}, []int{1}, true},
		{"ready here keeps those that terminate out", "", "", internalLocal, []string{"here", "lingering here"}, nil, []int{1}, true},
		{"terminating and not serving", "", "", 0, []string{"gone", "gone here"}, none, nil, false},
		{"serving and not terminating is not ready", "", "", 0, []string{"serving"}, none, nil, false},
		{"a hint that an unready one lacks", "", "a", 0, []string{"zone=a", "zone=b", "unready", "lingering"}, []int{1}, nil, true},
		{"those that terminate have no topology", "", "a", 0, []string{"zone=a lingering", "zone=b lingering"}, []int{1, 2}, nil, true},
		{"node hints without zone hints", "n2", "a", 0, []string{"node=n1", "node=n2"}, []int{2}, nil, true},
		{"node hints for others, no zone hints", "n3", "a", 0, []string{"node=n1", "node=n2"}, []int{1, 2}, nil, true},
		{"a hint without a name on a node without a zone", "", "", 0, []string{"zone=", "zone=a"}, []int{1, 2}, nil, true},
		{"zone hints beside one node hint", "n1", "b", 0, []string{"zone=a node=n1", "zone=b"}, []int{2}, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := c.node
			if name == "" {
				name = "this"
			}
			var eps []cluster.Endpoint
			for i, words := range c.eps {
				ep := endpointOf(i+1, words)
				if ep.NodeName == "this" {
					ep.NodeName = name
				}
				eps = append(eps, ep)
			}
			svc := &cluster.Service{InternalLocal: c.policies&internalLocal != 0, ExternalLocal: c.policies&externalLocal != 0}
			got := scopesOf(svc, c.policies&reachable != 0, eps, cluster.Node{Name: name, Zone: c.zone})
			wantEndpoints(t, "cluster", got.cluster, c.cluster)
			wantEndpoints(t, "local", got.local, c.local)
			if got.any != c.any {
				t.Errorf("any: %t", got.any)
			}
			// What does not depend on the zone is the same in another one.
			if moved := scopesOf(svc, c.policies&reachable != 0, eps, cluster.Node{Name: name, Zone: "another"}); !got.zonal {
				wantEndpoints(t, "in another zone", moved.cluster, c.cluster)
			}
		})
	}
}

func wantEndpoints(t *testing.T, what string, got []cluster.Endpoint, want []int) {
	t.Helper()
	var numbers []int
	for _, ep := range got {
		numbers = append(numbers, int(ep.Addr.As4()[3]))
	}
	if !slices.Equal(numbers, want) || (got == nil) != (want == nil) {
		t.Errorf("%s: %v, want %v", what, fmt.Sprint(numbers), want)
	}
}
