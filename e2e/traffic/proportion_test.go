package traffic

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// crowd is a cluster of plain Services with one port and two endpoints each. It is written as one long list in
// JSON, so that a change hands the agent all of the others again: what stayed the same must cost nothing.
type crowd struct {
	c                *lab.Cluster
	services, slices []string // the objects' text
	version          int      // of the list, so that no two texts are the same
}

func newCrowd(c *lab.Cluster, n int) *crowd {
	w := &crowd{c: c}
	for i := range n {
		w.add(i, remote(2*i), remote(2*i+1))
	}
	return w
}

func (w *crowd) add(i int, endpoints ...string) {
	w.services = append(w.services, fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"namespace":"default","name":"crowd-%d"},`+
		`"spec":{"type":"ClusterIP","clusterIP":"10.97.%d.%d","ports":[{"name":"http","port":80,"protocol":"TCP"}]}}`, i, i/250, 1+i%250))
	w.slices = append(w.slices, "")
	w.set(i, endpoints...)
}

// set gives a Service other endpoints.
func (w *crowd) set(i int, endpoints ...string) {
	w.slices[i] = fmt.Sprintf(`{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"namespace":"default","name":"crowd-%d-x",`+
		`"labels":{"kubernetes.io/service-name":"crowd-%d"}},"addressType":"IPv4","ports":[{"name":"http","port":8080,"protocol":"TCP"}],`+
		`"endpoints":[%s]}`, i, i, strings.Join(endpoints, ","))
}

// remote is an endpoint on node2, local one on node1.
func remote(i int) string { return endpointOn("node2", remoteAddr(i)) }
func local(i int) string  { return endpointOn("node1", fmt.Sprintf("10.244.1.%d", i)) }

func remoteAddr(i int) string { return fmt.Sprintf("10.244.%d.%d", 10+i/250, 1+i%250) }

func endpointOn(node, addr string) string {
	return fmt.Sprintf(`{"addresses":[%q],"nodeName":%q,"conditions":{"ready":true}}`, addr, node)
}

// write writes the list. The slices come first in it, so that a new Service is never seen without its endpoints.
func (w *crowd) write() {
	w.version++
	w.c.Write("crowd.json", fmt.Sprintf(`{"apiVersion":"v1","kind":"List","metadata":{"resourceVersion":"%d"},"items":[%s]}`,
		w.version, strings.Join(slices.Concat(w.slices, w.services), ",\n")))
}

// binding is what a virtual IP stands as on the interface: the tests run with either.
func binding() string {
	if strings.Contains(os.Getenv("LAB_AGENT_ARGS"), "--vip-binding=route") {
		return "ROUTE"
	}
	return "ADDR"
}

// minimal is what a change may write, made out by hand. It does not depend on how many Services there are.
var minimal = []struct {
	name   string
	change func(w *crowd)
	within time.Duration
	writes []string
}{
	// Writes that came later still would stand among those of the next change.
	{"the same again", func(w *crowd) {}, time.Second, nil},
	{"endpoint on another node added", func(w *crowd) {
		w.set(3, remote(6), remote(7), remote(30_000))
	}, soon, []string{"NEW_DEST"}},
	{"endpoint on this node added", func(w *crowd) {
		w.set(4, remote(8), remote(9), local(77))
	}, soon, []string{"NEWSETELEM hairpin4", "NEW_DEST"}},
	// Weight 0 at once; it has no connection, so it leaves when it is looked at next.
	{"endpoint on another node removed", func(w *crowd) {
		w.set(5, remote(11))
	}, 2 * soon, []string{"SET_DEST", "DEL_DEST"}},
	{"Service with one endpoint added", func(w *crowd) {
		w.add(len(w.services), remote(30_001))
	}, soon, []string{"NEWSETELEM owned4", "NEWSETELEM vips4", "NEW_SERVICE", "NEW_DEST", "NEW" + binding(), "NEWSETELEM open4"}},
	// Its slice stays, as that of a Service that was deleted does for a moment.
	{"Service with one endpoint removed", func(w *crowd) {
		w.services = w.services[:len(w.services)-1]
	}, soon, []string{"DELSETELEM open4", "DEL" + binding(), "DEL_SERVICE", "DELSETELEM owned4", "DELSETELEM vips4"}},
}

// The test of proportion: a change costs the kernel the same writes however many Services there are, and the
// same content costs none (I5). They are counted outside the agent and compared with what a person would have
// written. What goes past netlink, sysctls, is not counted.
func TestProportion(t *testing.T) {
	for _, size := range proportionSizes(t) {
		t.Run(fmt.Sprintf("%d Services", size), func(t *testing.T) { testProportion(t, size) })
	}
}

// proportionSizes are the numbers of Services to count with. LAB_PROPORTION names one more: 10,000 take an
// emulated machine minutes (make proportion).
func proportionSizes(t *testing.T) []int {
	sizes := []int{10, 1000}
	if more := os.Getenv("LAB_PROPORTION"); more != "" {
		n, err := strconv.Atoi(more)
		if err != nil {
			t.Fatalf("LAB_PROPORTION: %v", err)
		}
		sizes = append(sizes, n)
	}
	return sizes
}

func testProportion(t *testing.T, size int) {
	w := lab.New(t, lab.Config{Nodes: 1, Pods: []lab.PodSpec{}})
	cluster := newCrowd(w.Cluster(t), size)
	cluster.write()
	tap := tapWrites(t, w.Node(1))
	began := time.Now()
	agent := w.StartAgent(t, w.Node(1), cluster.c)
	reading := time.Duration(size) * 3 * time.Millisecond // of the list, at most
	lab.Eventually(t, time.Minute+2*reading, "the start", func() error {
		if !strings.Contains(agent.Log(), "all Services are programmed") {
			return fmt.Errorf("not said in the log")
		}
		return nil
	})
	tap.wantStart(size)
	t.Logf("start: %s", time.Since(began).Round(time.Millisecond))
	for _, m := range minimal {
		began := time.Now()
		m.change(cluster)
		cluster.write()
		got := tap.take(m.within+reading, len(m.writes))
		if !slices.Equal(got, m.writes) {
			t.Errorf("%s: wrote\n  %s\nwant\n  %s", m.name, strings.Join(got, "\n  "), strings.Join(m.writes, "\n  "))
		}
		lab.Figure(t, m.name+", writes", len(got))
		t.Logf("%s: %d writes, %s", m.name, len(got), time.Since(began).Round(time.Millisecond))
	}
}

// wantStart: the tap sees what it should, and a start writes each thing once.
func (p *tap) wantStart(size int) {
	p.t.Helper()
	counted := map[string]int{}
	for _, w := range p.take(soon, 7*size) {
		counted[w]++
	}
	want := map[string]int{"NEW_SERVICE": size, "NEW_DEST": 2 * size, "NEW" + binding(): size, "NEWSETELEM vips4": size, "NEWSETELEM open4": size,
		"NEWSETELEM owned4": size + 1} // the record that this node's first start is over is one more
	for what, n := range want {
		if counted[what] != n {
			p.t.Errorf("the start wrote %d times %s, want %d", counted[what], what, n)
		}
	}
	for _, what := range []string{"SET_SERVICE", "SET_DEST", "DEL_DEST", "DEL_SERVICE", "DEL" + binding()} {
		if counted[what] > 0 {
			p.t.Errorf("the start wrote %d times %s", counted[what], what)
		}
	}
}
