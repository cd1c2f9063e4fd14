// Package e2e holds what tests the whole: the lab, the traffic, and here the shape of the house.
package e2e

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ipvs-proxy/ipvs-proxy"

// room says what a package of the agent may import besides the standard library: prefixes of import paths.
// See docs/architecture.md.
var rooms = map[string][]string{
	"cmd/ipvs-proxy": {module + "/pkg/", "golang.org/x/sys/unix", "github.com/spf13/cobra", "github.com/spf13/pflag", "go.uber.org/zap", "sigs.k8s.io/yaml"},
	// kube-proxy's own types, how the API server's world decodes them, and flags.
	"pkg/config": {"k8s.io/kube-proxy/config/v1alpha1", "k8s.io/component-base/logs/api/v1", "k8s.io/component-base/cli/flag", "k8s.io/apimachinery/", "sigs.k8s.io/json",
		"sigs.k8s.io/yaml", "github.com/spf13/pflag"},
	// Nobody else speaks to the API server.
	"pkg/cluster": {"k8s.io/api/", "k8s.io/apimachinery/", "k8s.io/client-go/", "k8s.io/klog/v2", "k8s.io/utils/clock", "github.com/go-logr/logr",
		"sigs.k8s.io/yaml", "github.com/fsnotify/fsnotify"},
	"pkg/sync": {module + "/pkg/sync/desk", module + "/pkg/sync/mirror", module + "/pkg/cluster", module + "/pkg/healthz", module + "/pkg/ipvs", "go.uber.org/zap"},
	// Whoever asks: no kernel of its own, no socket.
	"pkg/inspect": {module + "/pkg/sync", module + "/pkg/sync/desk", module + "/pkg/preview", module + "/pkg/cluster", module + "/pkg/ipvs"},
	"pkg/preview": {module + "/pkg/sync", module + "/pkg/sync/desk", module + "/pkg/cluster", module + "/pkg/ipvs"},
	// What an operator's browser shows: nothing of the kernel, and no source.
	"pkg/page": {module + "/pkg/inspect", module + "/pkg/preview", module + "/pkg/sync", module + "/pkg/sync/desk", module + "/pkg/cluster", module + "/pkg/ipvs", "go.uber.org/zap"},
	// It keeps numbers of Services, and knows neither the loop nor the kernel that it has them from.
	"pkg/servicemetrics": {module + "/pkg/cluster", module + "/pkg/healthz", module + "/pkg/ipvs"},
	// No Service, and neither reading nor writing.
	"pkg/sync/mirror": {module + "/pkg/ipvs"},
	// No kernel, no clock, no socket, no logger.
	"pkg/sync/desk": {module + "/pkg/cluster", module + "/pkg/ipvs"},
	// Metrics and pages as all of Kubernetes has them.
	"pkg/healthz": {"k8s.io/component-base/metrics", "k8s.io/component-base/configz", "k8s.io/component-base/version", "k8s.io/apimachinery/", "github.com/prometheus/client_golang/prometheus",
		"github.com/prometheus/client_model/go", "go.uber.org/zap", "golang.org/x/sys/unix"},
	"pkg/ipvs":           {},
	"pkg/ipvs/kubeproxy": {},
	"pkg/ipvs/legacy":    {module + "/pkg/ipvs/kubeproxy", "golang.org/x/sys/unix"},
	"pkg/ipvs/kernel": {module + "/pkg/ipvs", module + "/pkg/ipvs/kubeproxy", module + "/pkg/ipvs/legacy", "github.com/vishvananda/netlink", "github.com/google/nftables",
		"github.com/mdlayher/netlink", "github.com/moby/ipvs", "golang.org/x/sys/unix"},
	"pkg/node":          {module + "/pkg/ipvs/kernel", "github.com/u-root/u-root/pkg/kmodule", "golang.org/x/sys/unix"},
	"pkg/ipvs/fake":     {module + "/pkg/ipvs"},
	"pkg/ipvs/contract": {module + "/pkg/ipvs", "github.com/google/go-cmp"},
}

// exact rooms: a prefix that names a room of ours stands for that room alone, not for those below it.
func allowed(imported string, may []string) bool {
	return slices.ContainsFunc(may, func(m string) bool {
		if strings.HasPrefix(m, module) && !strings.HasSuffix(m, "/") {
			return imported == m
		}
		return imported == strings.TrimSuffix(m, "/") || strings.HasPrefix(imported, strings.TrimSuffix(m, "/")+"/")
	})
}

func standard(imported string) bool { return !strings.Contains(strings.Split(imported, "/")[0], ".") }

// TestRooms: every package of the agent is a known room and imports only what its sentence allows.
func TestRooms(t *testing.T) {
	seen := map[string]bool{}
	for _, top := range []string{"cmd", "pkg"} {
		err := filepath.WalkDir(filepath.Join("..", top), func(file string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
				return err
			}
			room := filepath.ToSlash(strings.TrimPrefix(filepath.Dir(file), ".."+string(filepath.Separator)))
			may, known := rooms[room]
			if !known {
				t.Errorf("%s: no such room in the house; a new package needs a reason that fits one sentence", room)
				return nil
			}
			seen[room] = true
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			for _, i := range parsed.Imports {
				name := strings.Trim(i.Path.Value, `"`)
				switch {
				case name == "os/exec":
					t.Errorf("%s: the agent starts no subprocess", file)
				case !standard(name) && !allowed(name, may):
					t.Errorf("%s imports %s, which is not for %s", file, name, room)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for room := range rooms {
		if !seen[room] {
			t.Errorf("%s: a room without a file", room)
		}
	}
}

// TestThinkers: desk and mirror only think. They reach for nothing outside of them, not even for the time.
func TestThinkers(t *testing.T) {
	may := []string{"cmp", "fmt", "iter", "maps", "net/netip", "slices", "sort", "strings", "time"}
	for _, dir := range []string{"desk", "mirror"} {
		files, err := filepath.Glob(filepath.Join("..", "pkg", "sync", dir, "*.go"))
		if err != nil || len(files) < 4 {
			t.Fatalf("%s: %d files, %v", dir, len(files), err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, text, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range parsed.Imports {
				if name := strings.Trim(i.Path.Value, `"`); standard(name) && !slices.Contains(may, name) {
					t.Errorf("%s imports %s", file, name)
				}
			}
			for _, clock := range []string{"time.Now", "time.Since", "time.Until", "time.After", "time.NewTimer", "time.Sleep"} {
				if strings.Contains(string(text), clock) {
					t.Errorf("%s has a clock: %s", file, clock)
				}
			}
		}
	}
}

// TestTopLevel: the top of the tree is what the map says.
func TestTopLevel(t *testing.T) {
	known := []string{"cmd", "pkg", "e2e", "docs", "examples", "hack", "manifests",
		"go.mod", "go.sum", "Makefile", "README.md", "LICENSE"}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); !strings.HasPrefix(name, ".") && name != "bin" && name != "dist" && name != "out" && !slices.Contains(known, name) {
			t.Errorf("%s stands at the top of the tree and is not on the map", path.Base(name))
		}
	}
}
