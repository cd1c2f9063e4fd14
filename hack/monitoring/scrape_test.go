package monitoring

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/util/teststorage"
)

var update = flag.Bool("update", false, "write the dashboard anew")

const dashboardFile = manifests + "dashboard.json"

// TestDashboard: what stands in manifests is what the code makes.
func TestDashboard(t *testing.T) {
	want, err := Dashboard()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(dashboardFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(dashboardFile); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what the code makes (%v): go test -C hack/monitoring -run TestDashboard -update .", dashboardFile, err)
	}
}

// dashboardExprs are the expressions of the dashboard, as Grafana sends them with everything chosen.
func dashboardExprs(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$__rate_interval", "10s", "$instance", ".*", "$namespace", ".*", "$service", ".*")
	exprs := map[string]string{}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			exprs["panel "+p.Title+" "+target.RefID] = variables.Replace(target.Expr)
		}
	}
	return exprs
}

// scraped is a Prometheus that has scraped a node for a while.
type scraped struct {
	t       *testing.T
	storage *teststorage.TestStorage
	engine  *promql.Engine
	at      time.Time
}

// scrapes has a Prometheus scrape an address, with the labels that the PodMonitor gives, until told.
func scrapes(t *testing.T, address string) *scraped {
	t.Helper()
	s := &scraped{t: t, storage: teststorage.New(t), engine: promqltest.NewTestEngine(t, false, 0, 1e6)}
	log := promslog.NewNopLogger()
	cfg, err := config.Load("scrape_configs:\n- {job_name: kube-proxy, scrape_interval: 500ms, scrape_timeout: 500ms}\n", log)
	if err != nil {
		t.Fatal(err)
	}
	manager, err := scrape.NewManager(&scrape.Options{DiscoveryReloadInterval: model.Duration(10 * time.Millisecond)}, log, nil, s.storage, nil, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	if err := manager.ApplyConfig(cfg); err != nil {
		t.Fatal(err)
	}
	targets := make(chan map[string][]*targetgroup.Group)
	done := make(chan error, 1)
	go func() { done <- manager.Run(targets) }()
	t.Cleanup(func() {
		manager.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	labels := model.LabelSet{"container": "ipvs-proxy", "instance": "node1", "pod": "ipvs-proxy-x", "namespace": "kube-system"}
	targets <- map[string][]*targetgroup.Group{"kube-proxy": {{Source: "node1", Labels: labels, Targets: []model.LabelSet{{model.AddressLabel: model.LabelValue(address)}}}}}
	return s
}

// ask gives how many series an expression has, in which a number that is none does not count.
func (s *scraped) ask(expr string) (series int, err error) {
	q, err := s.engine.NewInstantQuery(s.t.Context(), s.storage, nil, expr, s.at)
	if err != nil {
		return 0, err
	}
	defer q.Close()
	r := q.Exec(s.t.Context())
	if r.Err != nil {
		return 0, r.Err
	}
	switch v := r.Value.(type) {
	case promql.Vector:
		for _, sample := range v {
			if sample.F == sample.F {
				series++
			}
		}
	case promql.Matrix:
		series = len(v)
	}
	return series, nil
}

// until waits until an expression has a value.
func (s *scraped) until(expr string) {
	s.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		s.at = time.Now()
		n, err := s.ask(expr)
		if err != nil {
			s.t.Fatal(err)
		}
		if n > 0 {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("no value of %s after a minute", expr)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// selectors are what an expression reads.
func selectors(t *testing.T, expr string) (list []string) {
	t.Helper()
	e, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		if v, ok := n.(*parser.VectorSelector); ok {
			list = append(list, v.String())
		}
		return nil
	})
	return list
}

// TestScrape: a Prometheus scrapes a real agent: every expression of the dashboard has a value, every selector of an alert
// something to select, and none of them fires.
func TestScrape(t *testing.T) {
	a, address := startAgent(t)
	s := scrapes(t, address)
	a.fill()
	s.until(`up{job="kube-proxy", container="ipvs-proxy"} == 1`)
	s.until(`ipvsproxy_service_connections_total{service="web"} > 0`)
	a.refuse()
	for n := 3; n <= 5; n++ { // changes while it is looked at
		a.endpoints(n)
		s.until(fmt.Sprintf(`ipvsproxy_service_backends{service="web", state="ready"} == %d`, n))
	}
	s.until(`sum(rate(kubeproxy_network_programming_duration_seconds_count[10s])) > 0`)
	s.until(`sum(ipvsproxy_kernel_errors_total) > 0`)
	s.until(`rate(ipvsproxy_audit_duration_seconds_count[20s]) > 0`)
	s.dashboard(t)
	s.rules(t)
}

// empty are the expressions of the dashboard that have no value on a node that is well.
var empty = map[string]string{}

func (s *scraped) dashboard(t *testing.T) {
	t.Helper()
	exprs := dashboardExprs(t)
	if len(exprs) < 30 {
		t.Errorf("%d expressions on the dashboard: they are not found", len(exprs))
	}
	for name, expr := range exprs {
		n, err := s.ask(strings.ReplaceAll(expr, "[10s]", "[30s]"))
		if err != nil {
			t.Errorf("%s: %s: %v", name, expr, err)
		}
		if why := empty[name]; (n == 0) != (why != "") {
			t.Errorf("%s: %s has %d series, and is said to be empty because %q", name, expr, n, why)
		}
	}
}

func (s *scraped) rules(t *testing.T) {
	t.Helper()
	for _, g := range groups(t, ruleFile(t), &rules.ManagerOptions{}) {
		for _, r := range g.Rules() {
			alert, ok := r.(*rules.AlertingRule)
			if !ok {
				t.Errorf("%s is no alert", r.Name())
				continue
			}
			expr := alert.Query().String()
			for _, sel := range selectors(t, expr) {
				if n, err := s.ask(sel); err != nil || n == 0 {
					t.Errorf("%s: %s selects nothing (%v)", r.Name(), sel, err)
				}
			}
			n, err := s.ask(expr)
			if wants := r.Name() == "IPVSProxyProblems"; err != nil || (n > 0) != wants {
				t.Errorf("%s: %s has %d series, %v; there is a problem with an object, and nothing else", r.Name(), expr, n, err)
			}
		}
	}
}
