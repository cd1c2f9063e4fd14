package main

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
)

// manifest reads the containers of a DaemonSet or a Job.
func manifest(t *testing.T, name string) (all []corev1.Container) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../manifests", name))
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.PodSpec
	if strings.Contains(string(text), "\nkind: Job\n") {
		var job batchv1.Job
		err = yaml.Unmarshal(text, &job)
		pod = job.Spec.Template.Spec
	} else {
		var ds appsv1.DaemonSet
		err = yaml.Unmarshal(text, &ds)
		pod = ds.Spec.Template.Spec
	}
	if err != nil || len(pod.Containers)+len(pod.InitContainers) == 0 {
		t.Fatalf("%s: %v, containers %+v", name, err, pod.Containers)
	}
	return append(pod.InitContainers, pod.Containers...)
}

// What the manifests run is a command that there is, with flags that it takes. A patch leaves kube-proxy's command.
func TestManifestsCommands(t *testing.T) {
	for _, name := range []string{"base/daemonset.yaml", "replace-kube-proxy/kube-proxy.yaml", "replace-kube-proxy/patch.yaml", "jobs/check.yaml",
		"jobs/cleanup.yaml", "jobs/diff.yaml"} {
		for _, c := range manifest(t, name) {
			if len(c.Command) == 0 && name == "replace-kube-proxy/patch.yaml" {
				continue
			}
			args := arguments(c.Command)
			cmd, rest, err := newCommand().Find(args)
			if err == nil {
				err = cmd.ParseFlags(rest)
			}
			if err != nil || !cmd.HasParent() || cmd.Flags().NArg() > 0 {
				t.Errorf("%s, container %s: %q: %v", name, c.Name, c.Command, err)
			}
		}
	}
}

// The ports' names stand for the agent's defaults, and the limit comes in the variable that the agent reads.
func TestManifestsPorts(t *testing.T) {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	c, _, err := config.RunFlags(flags).Load(flags)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"base/daemonset.yaml", "replace-kube-proxy/patch.yaml"} {
		all := manifest(t, name)
		agent := all[len(all)-1]
		ports := map[string]string{}
		for _, p := range agent.Ports {
			ports[p.Name] = strconv.Itoa(int(p.ContainerPort))
		}
		for port, address := range map[string]string{"healthz": c.Proxy.HealthzBindAddress, "metrics": c.Proxy.MetricsBindAddress} {
			if _, want, err := net.SplitHostPort(address); err != nil || ports[port] != want {
				t.Errorf("%s: port %s is %s, the agent's default is %s", name, port, ports[port], address)
			}
		}
		told := false
		for _, e := range agent.Env {
			told = told || e.Name == memoryVariable
		}
		if !told {
			t.Errorf("%s: no %s", name, memoryVariable)
		}
	}
}
