package e2e

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// linked are the modules of which there is code in the agent, by what brings them. What else go.mod names is for tests.
var linked = map[string][]string{
	"this one": {module},
	"the kernel": {"github.com/vishvananda/netlink", "github.com/vishvananda/netns", "github.com/google/nftables",
		"github.com/mdlayher/netlink", "github.com/mdlayher/socket", "golang.org/x/net", "golang.org/x/sync", "golang.org/x/sys"},
	"kernel modules, which may be compressed": {"github.com/u-root/u-root", "github.com/klauspost/compress",
		"github.com/klauspost/pgzip", "github.com/ulikunitz/xz"},
	"Kubernetes": {"k8s.io/api", "k8s.io/apimachinery", "k8s.io/client-go", "k8s.io/component-base", "k8s.io/kube-proxy",
		"k8s.io/klog/v2", "k8s.io/kube-openapi", "k8s.io/utils", "sigs.k8s.io/json", "sigs.k8s.io/randfill",
		"sigs.k8s.io/structured-merge-diff/v6", "sigs.k8s.io/yaml", "go.yaml.in/yaml/v2", "gopkg.in/inf.v0",
		"github.com/go-logr/logr", "github.com/blang/semver/v4", "github.com/davecgh/go-spew", "github.com/pmezard/go-difflib",
		"github.com/fxamacker/cbor/v2", "github.com/x448/float16", "github.com/json-iterator/go",
		"github.com/modern-go/concurrent", "github.com/modern-go/reflect2", "github.com/munnerz/goautoneg",
		"go.opentelemetry.io/otel", "go.opentelemetry.io/otel/trace", "golang.org/x/oauth2", "golang.org/x/term",
		"golang.org/x/text", "golang.org/x/time", "google.golang.org/protobuf"},
	"metrics": {"github.com/prometheus/client_golang", "github.com/prometheus/client_model", "github.com/prometheus/common",
		"github.com/prometheus/procfs", "github.com/beorn7/perks", "github.com/cespare/xxhash/v2"},
	"command line, files and log": {"github.com/spf13/cobra", "github.com/spf13/pflag", "github.com/fsnotify/fsnotify",
		"go.uber.org/zap", "go.uber.org/multierr"},
}

// TestLinked: a module more in the agent is a decision, and one that tests need is not in it by accident.
func TestLinked(t *testing.T) {
	cmd := exec.Command(machine.GoTool(), "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/ipvs-proxy")
	cmd.Dir, cmd.Env = "..", append(cmd.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("list what the agent is made of: %v", err)
	}
	got := strings.Fields(string(out))
	slices.Sort(got)
	got = slices.Compact(got)
	var known []string
	for _, list := range linked {
		known = append(known, list...)
	}
	for _, m := range got {
		if !slices.Contains(known, m) {
			t.Errorf("the agent has code of %s, which is not on the list", m)
		}
	}
	for _, m := range known {
		if !slices.Contains(got, m) {
			t.Errorf("the agent has no code of %s, which is on the list", m)
		}
	}
}
