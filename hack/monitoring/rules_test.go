package monitoring

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"sigs.k8s.io/yaml"
)

const manifests = "../../manifests/monitoring/"

// ruleFile is the rules as Prometheus reads them, out of the object of its operator.
func ruleFile(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(manifests + "prometheusrule.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var object struct{ Spec map[string]any }
	if err := yaml.Unmarshal(text, &object); err != nil {
		t.Fatal(err)
	}
	plain, err := yaml.Marshal(object.Spec)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(name, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// unitTests are a file of the kind that promtool test rules reads.
type unitTests struct {
	EvaluationInterval string     `json:"evaluation_interval"`
	Tests              []unitTest `json:"tests"`
}

type unitTest struct {
	Name           string        `json:"name"`
	Interval       string        `json:"interval"`
	InputSeries    []inputSeries `json:"input_series"`
	AlertRuleTests []alertTest   `json:"alert_rule_test"`
}

type inputSeries struct {
	Series string `json:"series"`
	Values string `json:"values"`
}

type alertTest struct {
	EvalTime  string     `json:"eval_time"`
	Alertname string     `json:"alertname"`
	ExpAlerts []expAlert `json:"exp_alerts"`
}

type expAlert struct {
	ExpLabels      map[string]string `json:"exp_labels"`
	ExpAnnotations map[string]string `json:"exp_annotations"`
}

// TestRules: each alert fires when it is to, with what it says, and not before; and is silent when all is well.
func TestRules(t *testing.T) {
	text, err := os.ReadFile("testdata/rules_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file unitTests
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		t.Fatal(err)
	}
	rulesAt := ruleFile(t)
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, u := range file.Tests {
		t.Run(u.Name, func(t *testing.T) { u.run(t, rulesAt, duration(t, file.EvaluationInterval)) })
		for _, a := range u.AlertRuleTests {
			if len(a.ExpAlerts) > 0 {
				fires[a.Alertname] = true
			} else {
				quiet[a.Alertname] = true
			}
		}
	}
	for _, name := range alerts(t, rulesAt) {
		if !fires[name] || !quiet[name] {
			t.Errorf("%s: a test in which it fires: %t, one in which it does not: %t", name, fires[name], quiet[name])
		}
	}
}

func duration(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := model.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(d)
}

// groups loads the rules upon a storage.
func groups(t *testing.T, file string, opts *rules.ManagerOptions) []*rules.Group {
	t.Helper()
	opts.Context, opts.NotifyFunc = t.Context(), func(context.Context, string, ...*rules.Alert) {}
	opts.Parser = parser.NewParser(parser.Options{})
	loaded, errs := rules.NewManager(opts).LoadGroups(time.Minute, labels.EmptyLabels(), "", nil, false, file)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return slices.Collect(maps.Values(loaded))
}

func alerts(t *testing.T, file string) (names []string) {
	for _, g := range groups(t, file, &rules.ManagerOptions{}) {
		for _, r := range g.Rules() {
			names = append(names, r.Name())
		}
	}
	return names
}

func (u unitTest) run(t *testing.T, file string, every time.Duration) {
	var load strings.Builder
	fmt.Fprintf(&load, "load %s\n", u.Interval)
	for _, s := range u.InputSeries {
		fmt.Fprintf(&load, "  %s %s\n", s.Series, s.Values)
	}
	suite, err := promqltest.NewLazyLoader(load.String(), promqltest.LazyLoaderOpts{EnableAtModifier: true, EnableNegativeOffset: true})
	if err != nil {
		t.Fatal(err)
	}
	defer suite.Close()
	loaded := groups(t, file, &rules.ManagerOptions{QueryFunc: rules.EngineQueryFunc(suite.QueryEngine(), suite.Storage()), Appendable: suite.Storage()})
	now := time.Duration(-every)
	for _, a := range u.AlertRuleTests { // in the order of their times
		for at := duration(t, a.EvalTime); now+every <= at; {
			now += every
			suite.WithSamplesTill(time.Unix(0, 0).Add(now).UTC(), func(err error) {
				if err != nil {
					t.Fatal(err)
				}
				for _, g := range loaded {
					g.Eval(suite.Context(), time.Unix(0, 0).Add(now).UTC())
				}
			})
		}
		a.compare(t, loaded)
	}
}

// compare compares what fires now with what is to.
func (a alertTest) compare(t *testing.T, loaded []*rules.Group) {
	t.Helper()
	var got, want []string
	found := false
	for _, g := range loaded {
		for _, r := range g.Rules() {
			if err := r.LastError(); err != nil {
				t.Fatalf("%s: %v", r.Name(), err)
			}
			rule, ok := r.(*rules.AlertingRule)
			if !ok || r.Name() != a.Alertname {
				continue
			}
			found = true
			for _, alert := range rule.ActiveAlerts() {
				if alert.State == rules.StateFiring {
					l := alert.Labels.Map()
					delete(l, labels.AlertName)
					got = append(got, fmt.Sprint(l, " ", alert.Annotations.Get("summary")))
				}
			}
		}
	}
	if !found {
		t.Fatalf("no alert %s", a.Alertname)
	}
	for _, e := range a.ExpAlerts {
		want = append(want, fmt.Sprint(e.ExpLabels, " ", e.ExpAnnotations["summary"]))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s after %s:\n  %s\nwant\n  %s", a.Alertname, a.EvalTime, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}
