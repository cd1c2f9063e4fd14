package programs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each release is what its module requires, of Kubernetes and of all the modules that Kubernetes replaces by
// directories.
func TestReleases(t *testing.T) {
	for _, release := range Releases {
		p, err := find(release, APIServer)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(p.module, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), "\tk8s.io/kubernetes v"+release+" // indirect\n") {
			t.Errorf("%s/go.mod does not require Kubernetes v%s", p.module, release)
		}
		staging := " v" + strings.Replace(release, "1.", "0.", 1) + "\n"
		replaced := 0
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, " => ") {
				replaced++
				if !strings.HasSuffix(line, staging) {
					t.Errorf("%s/go.mod: %q, want%s", p.module, strings.TrimSpace(line), staging)
				}
			}
		}
		if replaced < 30 {
			t.Errorf("%s/go.mod replaces %d modules: it cannot be whole", p.module, replaced)
		}
	}
	if err := CheckRelease(Default); err != nil {
		t.Error(err)
	}
	if err := CheckRelease("1.30.0"); err == nil {
		t.Error("1.30.0 can be built")
	}
	if _, err := find(Releases[0], "kubectx"); err == nil {
		t.Error("kubectx can be built")
	}
	if _, err := find(Releases[1], Kubelet); err == nil {
		t.Errorf("a kubelet of %s can be built, whose module does not have it", Releases[1])
	}
}

// Each program of each release can be asked for, where nothing was compiled yet.
func TestCached(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	for _, release := range Releases {
		for _, name := range []string{Etcd, CoreDNS, Portmap, APIServer, ControllerManager, KubeProxy} {
			if file, err := Cached(t.Context(), "../..", release, name); file != "" || err != nil {
				t.Errorf("%s %s: %q, %v", name, release, file, err)
			}
		}
	}
	for _, name := range []string{Scheduler, Kubelet, Kubeadm, Kubectl, Flannel} {
		if file, err := Cached(t.Context(), "../..", Default, name); file != "" || err != nil {
			t.Errorf("%s: %q, %v", name, file, err)
		}
	}
	if _, err := Cached(t.Context(), "../..", Default, "kubectx"); err == nil {
		t.Error("kubectx is one of them")
	}
}
