// Package native holds the lab's native way: a machine whose own kernel has IPVS, which is most users' machine. The
// lab's virtual machine is one, so the lab runs there once more, inside of itself.
package native

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// traffic are tests of every kind that do not take long: TCP, UDP and SCTP, stories and policies, healing, clean-up, the
// node's set-up.
var traffic = []string{"TestS1Kubia", "TestS9NodePort", "TestB10ClusterIP", "TestB11AddressesFollowed", "TestB12LoadBalancer", "TestB16OtherPortsRefused",
	"TestB17Hairpin", "TestB20WithoutDetector", "TestB26NodeOriginated", "TestB31UDPNodePortFromZero", "TestB40SysctlsSetRight", "TestSCTPFrontends",
	"TestHealsTable", "TestB55Cleanup"}

// The demo and tests of traffic run the native way to their end, and leave nothing on the machine.
func TestNativeWay(t *testing.T) {
	if os.Getenv("IPVS_PROXY_LAB") != "1" {
		t.Skip("needs a kernel with IPVS, as root: run it in the lab (IPVS_PROXY_LAB=1)")
	}
	t.Setenv("LAB", machine.Native)
	dir := os.Getenv("LAB_DIR")
	t.Setenv(machine.GuestVariable, filepath.Join(dir, "guest"))
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	if os.Remove("/run/netns") == nil { // so that it shows when the lab makes it
		defer func() {
			if err := os.MkdirAll("/run/netns", 0o755); err != nil {
				t.Error(err)
			}
		}()
	}
	before := traces(t)
	var demo, tests, log bytes.Buffer
	env := []string{"IPVS_PROXY_LAB=1", "LAB_AGENT=$LAB_DIR/ipvs-proxy"}
	report, err := machine.Run(t.Context(), machine.Job{
		Files: map[string]string{
			"ipvs-proxy": filepath.Join(dir, "ipvs-proxy"), "demo": filepath.Join(dir, "demo"), "examples": filepath.Join(dir, "examples"),
			"traffic/traffic.test": filepath.Join(dir, "e2e/traffic/traffic.test"),
		},
		Commands: []machine.Command{
			{Name: "demo", Args: []string{"demo"}, Env: env, Output: &demo},
			{Name: "traffic", Dir: "traffic", Env: env, Output: &tests,
				Args: []string{"traffic/traffic.test", "-test.v", "-test.run=^(" + strings.Join(traffic, "|") + ")$"}},
		},
		Timeout: 10 * time.Minute,
		Log:     &log,
	})
	t.Logf("the lab said:\n%s", &log)
	if err != nil || report.Mode != machine.Native {
		t.Fatalf("the native way: %+v, %v", report, err)
	}
	t.Run("demo", func(t *testing.T) {
		if r := report.Results[0]; r.Exit != 0 || !strings.Contains(demo.String(), "\nAll as it should be.\n") {
			t.Errorf("%+v:\n%s", r, &demo)
		} else {
			t.Logf("took %s", r.Took)
		}
	})
	t.Run("traffic", func(t *testing.T) {
		for _, name := range traffic {
			if !strings.Contains(tests.String(), "--- PASS: "+name+" (") {
				t.Errorf("%s did not pass", name)
			}
		}
		if r := report.Results[1]; r.Exit != 0 || t.Failed() {
			t.Errorf("%+v:\n%s", r, &tests)
		} else {
			t.Logf("took %s", r.Took)
		}
	})
	t.Run("nothing stays", func(t *testing.T) {
		after := traces(t)
		for _, line := range changes(before, after) {
			t.Error(line)
		}
		var loaded []string
		for _, m := range after["modules"] {
			if !slices.Contains(before["modules"], m) {
				loaded = append(loaded, m)
			}
		}
		if t.Logf("kernel modules loaded meanwhile: %q", loaded); len(loaded) > 0 && !strings.Contains(log.String(), "modules, which stay:") {
			t.Error("and the lab did not say so")
		}
	})
}
