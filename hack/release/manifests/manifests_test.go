// Package manifests tests what stands in /manifests: it renders each kustomization as kubectl does.
package manifests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const dir = "../../../manifests/"

var codecs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme, addMonitoring} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict)
}()

// render gives the objects of a kustomization, each decoded strictly: a field that the API does not know is an error.
func render(t *testing.T, name string) (objects []runtime.Object) {
	t.Helper()
	rendered, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir+name)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rendered.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, decode(t, text))
	}
	return objects
}

// decode reads an object strictly: a field that the API does not know is an error.
func decode(t *testing.T, text []byte) runtime.Object {
	t.Helper()
	object, _, err := codecs.UniversalDeserializer().Decode(text, nil, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return object
}

// decodeAll reads the objects of a file.
func decodeAll(t *testing.T, text []byte) (objects []runtime.Object) {
	t.Helper()
	for _, document := range strings.Split("\n"+string(text), "\n---\n") {
		if filled, err := yaml.YAMLToJSON([]byte(document)); err != nil || string(filled) != "null" {
			objects = append(objects, decode(t, []byte(document)))
		}
	}
	return objects
}

// only is the one object of its type.
func only[T runtime.Object](t *testing.T, objects []runtime.Object) (found T) {
	t.Helper()
	n := 0
	for _, o := range objects {
		if o, ok := o.(T); ok {
			found = o
			n++
		}
	}
	if n != 1 {
		t.Fatalf("%d objects of type %T, want one", n, found)
	}
	return found
}

func TestFresh(t *testing.T) {
	objects := render(t, "fresh")
	if len(objects) != 4 {
		t.Errorf("%d objects, want the DaemonSet, its ConfigMap, its service account and that one's role", len(objects))
	}
	ds, config := only[*appsv1.DaemonSet](t, objects), only[*corev1.ConfigMap](t, objects)
	account, binding := only[*corev1.ServiceAccount](t, objects), only[*rbacv1.ClusterRoleBinding](t, objects)
	secure(t, ds)
	for _, o := range []string{ds.Namespace, config.Namespace, account.Namespace, binding.Subjects[0].Namespace} {
		if o != "kube-system" {
			t.Errorf("an object in namespace %q", o)
		}
	}
	pod := ds.Spec.Template
	if s := binding.Subjects; len(s) != 1 || s[0].Kind != "ServiceAccount" || s[0].Name != account.Name || pod.Spec.ServiceAccountName != account.Name {
		t.Errorf("the role is for %+v, the pods are %s", s, pod.Spec.ServiceAccountName)
	}
	if want := (rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:node-proxier"}); binding.RoleRef != want {
		t.Errorf("the role is %+v", binding.RoleRef)
	}
	for key, value := range ds.Spec.Selector.MatchLabels {
		if pod.Labels[key] != value {
			t.Errorf("the selector wants %s=%s, the pods have %v", key, value, pod.Labels)
		}
	}
	if v := pod.Spec.Volumes[0]; v.ConfigMap == nil || v.ConfigMap.Name != config.Name {
		t.Errorf("the pods mount %+v, the ConfigMap is %s", v, config.Name)
	}
	if ds.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.String() != "10%" || pod.Spec.PriorityClassName != "system-node-critical" ||
		!slices.Equal(pod.Spec.Tolerations, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}) {
		t.Errorf("update %+v, priority %q, tolerations %v", ds.Spec.UpdateStrategy, pod.Spec.PriorityClassName, pod.Spec.Tolerations)
	}
	mounted := pod.Spec.Containers[0].VolumeMounts[0].MountPath
	for _, want := range []string{"kubeconfig: " + mounted + "/kubeconfig.conf\n", "kind: KubeProxyConfiguration\n", "kind: IPVSProxyConfiguration\n"} {
		if !strings.Contains(config.Data["config.conf"], want) {
			t.Errorf("config.conf does not say %q:\n%s", want, config.Data["config.conf"])
		}
	}
	if command := pod.Spec.Containers[0].Command; !slices.Contains(command, "--config="+mounted+"/config.conf") {
		t.Errorf("the command is %q", command)
	}
	if !strings.Contains(config.Data["kubeconfig.conf"], "    server: https://api.example.com:6443\n") {
		t.Error("kubeconfig.conf names no API server")
	}
}

// What the patch makes of kubeadm's DaemonSet keeps its command, its configuration and all that the patch does not
// name, and has our image and rights. kubectl patch and kustomize come to the same.
func TestReplaceKubeProxy(t *testing.T) {
	objects := render(t, "replace-kube-proxy")
	if len(objects) != 1 {
		t.Errorf("%d objects, want the DaemonSet alone: the rest is kubeadm's", len(objects))
	}
	ds := only[*appsv1.DaemonSet](t, objects)
	before := kubeadm(t)
	secure(t, ds)
	was, is := before.Spec.Template.Spec, ds.Spec.Template.Spec
	if !slices.Equal(is.Containers[0].Command, was.Containers[0].Command) || is.Containers[0].Name != was.Containers[0].Name ||
		is.ServiceAccountName != was.ServiceAccountName || is.PriorityClassName != was.PriorityClassName || !slices.Equal(is.Tolerations, was.Tolerations) {
		t.Errorf("the patch changed more than it should: %+v", is)
	}
	if v := is.Volumes[slices.IndexFunc(is.Volumes, func(v corev1.Volume) bool { return v.Name == "kube-proxy" })]; v.ConfigMap == nil || v.ConfigMap.Name != "kube-proxy" {
		t.Errorf("the configuration is no longer kubeadm's: %+v", v)
	}
	if name, old := imageName(is.Containers[0].Image), imageName(was.Containers[0].Image); name != "registry.example.com/ipvs-proxy" || old == name {
		t.Errorf("the image is %s, was %s", name, old)
	}

	patched := kubectlPatch(t, before, "patch.yaml")
	for _, c := range [][]corev1.Container{patched.Spec.Template.Spec.Containers, patched.Spec.Template.Spec.InitContainers} {
		c[0].Image = is.Containers[0].Image // as its user does before
	}
	if got, want := asYAML(t, patched.Spec), asYAML(t, ds.Spec); got != want {
		t.Errorf("kubectl patch gives\n%s\nkustomize\n%s", got, want)
	}
}

func imageName(image string) string { return image[:strings.LastIndexByte(image, ':')] }

// kubeadm is the DaemonSet that kubeadm makes.
func kubeadm(t *testing.T) *appsv1.DaemonSet {
	t.Helper()
	text, err := os.ReadFile(dir + "replace-kube-proxy/kube-proxy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	object, _, err := codecs.UniversalDeserializer().Decode(text, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return object.(*appsv1.DaemonSet)
}

// kubectlPatch applies a patch as the API server does.
func kubectlPatch(t *testing.T, ds *appsv1.DaemonSet, file string) *appsv1.DaemonSet {
	t.Helper()
	text, err := os.ReadFile(dir + "replace-kube-proxy/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return patchDaemonSet(t, ds, text)
}

func patchDaemonSet(t *testing.T, ds *appsv1.DaemonSet, text []byte) *appsv1.DaemonSet {
	t.Helper()
	patch, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	original, err := json.Marshal(ds)
	if err != nil {
		t.Fatal(err)
	}
	patched, err := strategicpatch.StrategicMergePatch(original, patch, appsv1.DaemonSet{})
	if err != nil {
		t.Fatal(err)
	}
	out := &appsv1.DaemonSet{}
	decoder := json.NewDecoder(bytes.NewReader(patched))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(out); err != nil {
		t.Fatal(err)
	}
	return out
}

func asYAML(t *testing.T, v any) string {
	t.Helper()
	text, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// secure: the container that stays has CAP_NET_ADMIN and nothing else of the node; only the one that ends has more.
func secure(t *testing.T, ds *appsv1.DaemonSet) {
	t.Helper()
	pod := ds.Spec.Template.Spec
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 1 || !pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Fatalf("%d containers, %d init containers, host network %t, PIDs %t, IPC %t", len(pod.Containers), len(pod.InitContainers), pod.HostNetwork, pod.HostPID, pod.HostIPC)
	}
	c, i := pod.Containers[0], pod.InitContainers[0]
	no, yes := false, true
	want := &corev1.SecurityContext{Privileged: &no, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	if got, want := asYAML(t, c.SecurityContext), asYAML(t, want); got != want {
		t.Errorf("container %s: security context\n%s\nwant\n%s", c.Name, got, want)
	}
	want = &corev1.SecurityContext{Privileged: &yes, ReadOnlyRootFilesystem: &yes}
	if got, want := asYAML(t, i.SecurityContext), asYAML(t, want); got != want {
		t.Errorf("init container: security context\n%s\nwant\n%s", got, want)
	}
	if i.Image != c.Image || i.RestartPolicy != nil || !slices.Equal(i.Command[:2], []string{"/usr/local/bin/ipvs-proxy", "init"}) {
		t.Errorf("the init container runs %q of %s, restart policy %v; the other's image is %s", i.Command, i.Image, i.RestartPolicy, c.Image)
	}
	host := map[string]string{}
	for _, v := range pod.Volumes {
		switch {
		case v.HostPath != nil:
			host[v.Name] = v.HostPath.Path
		case v.ConfigMap == nil && v.Name != "service-account":
			t.Errorf("volume %s is neither the configuration nor the modules nor the service account", v.Name)
		}
	}
	wantHost := map[string]string{"lib-modules": "/lib/modules"}
	if ds.Name == "kube-proxy" { // what that left in iptables-legacy is taken out under its lock
		wantHost["xtables-lock"] = "/run/xtables.lock"
	}
	if !maps.Equal(host, wantHost) {
		t.Errorf("volumes from the host: %v, want %v", host, wantHost)
	}
	for _, m := range c.VolumeMounts {
		if path := host[m.Name]; (path != "" || !m.ReadOnly) && (path != wantHost["xtables-lock"] || m.MountPath != path) {
			t.Errorf("the container mounts %s, host path %q, read-only %t", m.MountPath, path, m.ReadOnly)
		}
	}
	for _, m := range i.VolumeMounts {
		if !m.ReadOnly {
			t.Errorf("the init container may write %s", m.MountPath)
		}
	}
	probed(t, c)
	token(t, pod)
	limited(t, c)
}

// tokenPath is where client-go looks for a token, and the kubeconfigs say it is.
const tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount"

// token: the agent has the service account's token, and the container with more rights has not.
func token(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("the token is mounted in all containers")
	}
	at := func(c corev1.Container) string {
		i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "service-account" })
		if i < 0 {
			return ""
		}
		return c.VolumeMounts[i].MountPath
	}
	if agent, init := at(pod.Containers[0]), at(pod.InitContainers[0]); agent != tokenPath || init != "" {
		t.Errorf("the token is at %q in the agent's container, at %q in init", agent, init)
	}
	files := map[string]bool{}
	for _, v := range pod.Volumes {
		if v.Name == "service-account" && v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.ServiceAccountToken != nil {
					files[s.ServiceAccountToken.Path] = true
				}
				if s.ConfigMap != nil && s.ConfigMap.Name == "kube-root-ca.crt" {
					files[s.ConfigMap.Items[0].Path] = true
				}
			}
		}
	}
	if !files["token"] || !files["ca.crt"] || len(files) != 2 {
		t.Errorf("the service account's files are %v", files)
	}
}

// limited: the agent is told how much memory its container may have, so that there is such a limit.
func limited(t *testing.T, c corev1.Container) {
	t.Helper()
	if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() || !c.Resources.Limits.Cpu().IsZero() {
		t.Errorf("resources %+v: want requests, a limit of memory, and none of the processor", c.Resources)
	}
	i := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "IPVS_PROXY_MEMORY_LIMIT" })
	if i < 0 || c.Env[i].ValueFrom == nil || c.Env[i].ValueFrom.ResourceFieldRef == nil {
		t.Fatal("the agent is not told of its limit")
	}
	if r := c.Env[i].ValueFrom.ResourceFieldRef; r.Resource != "limits.memory" || r.ContainerName != "" || !r.Divisor.IsZero() {
		t.Errorf("the agent is told %+v, want bytes of its own limits.memory", r)
	}
}

// probed: the ports have the names that probes and a PodMonitor use, and the agent's default numbers; all probes ask livez.
func probed(t *testing.T, c corev1.Container) {
	t.Helper()
	ports := map[string]int32{}
	for _, p := range c.Ports {
		ports[p.Name] = p.ContainerPort
	}
	if len(ports) != 2 || ports["healthz"] != 10256 || ports["metrics"] != 10249 {
		t.Errorf("ports %v", ports)
	}
	for name, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		if p == nil || p.HTTPGet == nil {
			t.Errorf("no %s probe", name)
			continue
		}
		if got := fmt.Sprintf("%s:%s%s", p.HTTPGet.Host, p.HTTPGet.Port.String(), p.HTTPGet.Path); got != "127.0.0.1:healthz/livez" {
			t.Errorf("the %s probe asks %s", name, got)
		}
	}
}
