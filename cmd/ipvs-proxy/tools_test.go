package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"sigs.k8s.io/yaml"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
)

// TestB50ToolsCommandLines: the commands with which a cluster's tools start kube-proxy, with this program in its place, have
// the warnings and the values of the golden files beside them. Underscores and arguments that are empty are kube-proxy's, too.
func TestB50ToolsCommandLines(t *testing.T) {
	t.Chdir("../../pkg/config") // the names of files in warnings and arguments are from there
	files, err := filepath.Glob("testdata/tools/*.args")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	usual, _ := writes(t)
	for _, file := range files {
		args := argsOf(t, file)
		golden, err := os.ReadFile(strings.TrimSuffix(file, ".args") + ".golden")
		if err != nil {
			t.Fatal(err)
		}
		want, _, _ := strings.Cut(string(golden), "node: ")
		for way, args := range map[string][]string{"as it is": args, "underscores": underscored(args), "an empty argument": append(slices.Clone(args), "")} {
			values, said := writes(t, args...)
			got := "warnings:\n" + strings.ReplaceAll(said, "warning: ", "  ") + "values:\n"
			for _, key := range slices.Sorted(maps.Keys(values)) {
				if values[key] != usual[key] {
					got += "  " + key + ": " + values[key] + "\n"
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, %s (-want +got):\n%s", file, way, diff)
			}
		}
	}
	cmd := newCommand()
	cmd.SetArgs([]string{"run", "--cluster-cidr=10.244.0.0/16", "check"})
	if err := cmd.ExecuteContext(t.Context()); err == nil || err.Error() != `"check": want flags alone` {
		t.Errorf("an argument: %v", err)
	}
}

// argsOf reads the command line of a tool.
func argsOf(t *testing.T, file string) (args []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			args = append(args, strings.Fields(line)...)
		}
	}
	return args
}

func underscored(args []string) (out []string) {
	for _, arg := range args {
		name, value, given := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		arg = "--" + strings.ReplaceAll(name, "-", "_")
		if given {
			arg += "=" + value
		}
		out = append(out, arg)
	}
	return out
}

// writes has the command write what its arguments come to: all values by key, and what it says meanwhile.
func writes(t *testing.T, args ...string) (values map[string]string, said string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out.conf")
	var errs strings.Builder
	cmd := newCommand()
	cmd.SetErr(&errs)
	cmd.SetArgs(arguments(append([]string{"/usr/local/bin/kube-proxy", "--write-config-to=" + out}, args...)))
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	values = map[string]string{}
	for doc := range strings.SplitSeq(string(text), "---\n") {
		var tree map[string]any
		if err := yaml.Unmarshal([]byte(doc), &tree); err != nil {
			t.Fatal(err)
		}
		delete(tree, "apiVersion")
		delete(tree, "kind")
		flatten("", tree, values)
	}
	return values, errs.String()
}

func flatten(front string, tree map[string]any, into map[string]string) {
	for key, v := range tree {
		switch v := v.(type) {
		case map[string]any:
			flatten(front+key+".", v, into)
		case string:
			into[front+key] = v
		default:
			text, err := json.Marshal(v)
			if err != nil {
				panic(fmt.Sprintf("%v is no JSON: %v", v, err)) // it comes from YAML
			}
			into[front+key] = string(text)
		}
	}
}

// kubespray's API server is an nginx of the node's, which its kubeconfig has.
func TestKubespraysServer(t *testing.T) {
	c := config.Default()
	c.Proxy.ClientConnection.Kubeconfig = "../../pkg/config/testdata/tools/kubespray.kubeconfig"
	from := &sourceFlags{kubeconfig: func() bool { return false }}
	src, err := from.open(c, cluster.NewModel(cluster.Options{NodeName: "node1"}), zap.NewNop())
	if err != nil || src.name != "https://127.0.0.1:6443" {
		t.Errorf("%s, %v", src.name, err)
	}
}
