package manifests

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/hack/release/install"
)

var image = install.Image{Repository: "registry.example.com/ipvs-proxy", Tag: "v0.1.0"}

// written are the files that a release installs from.
func written(t *testing.T, image install.Image) map[string][]byte {
	t.Helper()
	list, err := install.Files(dir, image)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, f := range list {
		files[f.Name] = f.Content
	}
	return files
}

// A file that is installed has the objects of the kustomization. Only the ConfigMap is called otherwise.
func TestInstall(t *testing.T) {
	for way, file := range map[string]string{install.Fresh: "install-fresh.yaml", install.Replace: "install-replace-kube-proxy.yaml", "monitoring": "monitoring.yaml"} {
		got, want := decodeAll(t, written(t, image)[file]), render(t, way)
		if way == install.Fresh {
			config := only[*corev1.ConfigMap](t, want)
			hashed := config.Name
			config.Name = "ipvs-proxy"
			ds := only[*appsv1.DaemonSet](t, want)
			if v := &ds.Spec.Template.Spec.Volumes[0]; v.ConfigMap.Name != hashed {
				t.Errorf("the DaemonSet mounts %s, the ConfigMap is %s", v.ConfigMap.Name, hashed)
			} else {
				v.ConfigMap.Name = config.Name
			}
		}
		if got, want := asYAML(t, got), asYAML(t, want); got != want {
			t.Errorf("%s: the file has\n%s\nthe kustomization\n%s", way, got, want)
		}
	}
}

// kubeadm takes a patch from a file whose name begins with its target, applies it as a strategic merge, and wants the
// result to be a DaemonSet (cmd/kubeadm/app/util/patches). It comes to the same as what is installed.
func TestKubeadmPatch(t *testing.T) {
	image := image
	image.Digest = "sha256:" + strings.Repeat("1", 64)
	files := written(t, image)
	if !regexp.MustCompile(`^(kubeproxydaemonset)([^.+\n]*)?(\+)?(json|merge|strategic)?\.(json|yaml)$`).MatchString("kubeproxydaemonset.yaml") || files["kubeproxydaemonset.yaml"] == nil {
		t.Fatal("there is no file that kubeadm would take")
	}
	patched := patchDaemonSet(t, kubeadm(t), files["kubeproxydaemonset.yaml"])
	secure(t, patched)
	for _, c := range append(patched.Spec.Template.Spec.InitContainers, patched.Spec.Template.Spec.Containers...) {
		if c.Image != image.String() {
			t.Errorf("container %s has the image %s", c.Name, c.Image)
		}
	}
	installed := only[*appsv1.DaemonSet](t, decodeAll(t, files["install-replace-kube-proxy.yaml"]))
	if got, want := asYAML(t, patched.Spec), asYAML(t, installed.Spec); got != want {
		t.Errorf("the patch makes\n%s\ninstalled is\n%s", got, want)
	}
	twice := patchDaemonSet(t, patched, files["kubeproxydaemonset.yaml"])
	if got, want := asYAML(t, twice), asYAML(t, patched); got != want {
		t.Errorf("applied twice it makes\n%s\nonce\n%s", got, want)
	}
}

// runs are the Jobs: what runs, with which configuration, as whom.
var runs = []struct{ file, command, config, account string }{
	{"job-check-fresh.yaml", "check --config=/var/lib/ipvs-proxy/config.conf", "ipvs-proxy", ""},
	{"job-check-replace-kube-proxy.yaml", "check --config=/var/lib/kube-proxy/config.conf", "kube-proxy", ""},
	{"job-diff-fresh.yaml", "diff --config=/var/lib/ipvs-proxy/config.conf --hostname-override=$(NODE_NAME)", "ipvs-proxy", "ipvs-proxy"},
	{"job-diff-replace-kube-proxy.yaml", "diff --config=/var/lib/kube-proxy/config.conf --hostname-override=$(NODE_NAME)", "kube-proxy", "kube-proxy"},
	{"job-cleanup.yaml", "cleanup", "", ""},
	{"job-way-back.yaml", "cleanup --keep-ipvs", "", ""},
}

// Each Job has the agent's rights at most, ends by itself, and runs on the node that it names whatever taints it has.
func TestJobs(t *testing.T) {
	files := written(t, image)
	agent := only[*appsv1.DaemonSet](t, render(t, "fresh")).Spec.Template.Spec.Containers[0].SecurityContext
	agent.Privileged = nil
	for _, run := range runs {
		job, isJob := decode(t, files[run.file]).(*batchv1.Job)
		if !isJob {
			t.Fatalf("%s is no Job", run.file)
		}
		pod := job.Spec.Template.Spec
		c := pod.Containers[0]
		if len(pod.Containers) != 1 || len(pod.InitContainers) != 0 || !pod.HostNetwork || pod.HostPID || pod.NodeName != "NODE" || pod.RestartPolicy != corev1.RestartPolicyNever ||
			*job.Spec.BackoffLimit != 0 || job.Spec.ActiveDeadlineSeconds == nil || job.Spec.TTLSecondsAfterFinished == nil || !slices.Equal(pod.Tolerations, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}) {
			t.Errorf("%s: %+v", run.file, job.Spec)
		}
		if got := strings.Join(c.Command, " "); got != "/usr/local/bin/ipvs-proxy "+run.command || c.Image != image.String() {
			t.Errorf("%s runs %s of %s", run.file, got, c.Image)
		}
		if got, want := asYAML(t, c.SecurityContext), asYAML(t, agent); got != want {
			t.Errorf("%s: security context\n%s\nwant\n%s", run.file, got, want)
		}
		if automount := pod.AutomountServiceAccountToken; pod.ServiceAccountName != run.account || (run.account == "") != (automount != nil && !*automount) {
			t.Errorf("%s: service account %q, token %v", run.file, pod.ServiceAccountName, automount)
		}
		config := ""
		for _, v := range pod.Volumes {
			config = v.ConfigMap.Name
		}
		if config != run.config || (config != "") != (len(c.VolumeMounts) == 1 && strings.Contains(run.command, "--config="+c.VolumeMounts[0].MountPath+"/config.conf")) {
			t.Errorf("%s: ConfigMap %q, mounts %+v", run.file, config, c.VolumeMounts)
		}
		// A DaemonSet takes in pods that it selects.
		if name := job.Spec.Template.Labels["app.kubernetes.io/name"]; name == "ipvs-proxy" || job.Labels["app.kubernetes.io/name"] != name || !strings.HasPrefix(job.GenerateName, name+"-") {
			t.Errorf("%s: labels %v of the pods, %v of the Job %s", run.file, job.Spec.Template.Labels, job.Labels, job.GenerateName)
		}
	}
}

// The documented command makes one Job a node, whatever the node is called. kubectl is a script that knows three nodes.
func TestJobsOnEveryNode(t *testing.T) {
	page, err := os.ReadFile("../../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile("(?s)```sh\n(for node in .*?)```").FindSubmatch(page)
	if command == nil {
		t.Fatal("docs/install.md has no such command")
	}
	tmp := t.TempDir()
	nodes := []string{"cp1", "NODE-2", "ip-192-168-100-200.ap-southeast-1.compute.internal"}
	kubectl := fmt.Sprintf("#!/bin/sh\ncase $1 in get) for n in %s; do echo node/$n; done ;; create) cat >%s/made.$$ ;; *) exit 1 ;; esac\n", strings.Join(nodes, " "), tmp)
	files := written(t, image)
	for name, content := range map[string][]byte{"kubectl": []byte(kubectl), "job.yaml": files["job-check-fresh.yaml"]} {
		if err := os.WriteFile(filepath.Join(tmp, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	text := string(bytes.ReplaceAll(command[1], []byte("job-check-replace-kube-proxy.yaml"), []byte("job.yaml")))
	if !strings.Contains(text, " job.yaml ") {
		t.Fatalf("it makes another Job:\n%s", text)
	}
	cmd := exec.Command("sh", "-eu", "-c", text)
	cmd.Dir, cmd.Env = tmp, append(os.Environ(), "PATH="+tmp+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	made, err := filepath.Glob(filepath.Join(tmp, "made.*"))
	if err != nil {
		t.Fatal(err)
	}
	var on []string
	for _, file := range made {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		job := decode(t, content).(*batchv1.Job)
		on = append(on, job.Spec.Template.Spec.NodeName)
		if want := "ipvs-proxy-check-" + job.Spec.Template.Spec.NodeName + "-"; job.GenerateName != want {
			t.Errorf("the Job is called %s, want %s", job.GenerateName, want)
		}
	}
	slices.Sort(on)
	slices.Sort(nodes)
	if !slices.Equal(on, nodes) {
		t.Errorf("Jobs on %q, want %q", on, nodes)
	}
}
