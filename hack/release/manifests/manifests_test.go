// Package manifests tests what stands in /manifests: it renders each kustomization as kubectl does.
package manifests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
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
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme} {
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
		object, _, err := codecs.UniversalDeserializer().Decode(text, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v\n%s", r.CurId(), err, text)
		}
		objects = append(objects, object)
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

// The patch for the way back adds an init container to kubeadm's DaemonSet, with no more rights than the agent has,
// and changes nothing else.
func TestWayBack(t *testing.T) {
	before := kubeadm(t)
	after := kubectlPatch(t, before, "way-back.yaml")
	init := after.Spec.Template.Spec.InitContainers
	if len(init) != 1 || !slices.Equal(init[0].Command, []string{"/usr/local/bin/ipvs-proxy", "cleanup", "--keep-ipvs"}) || len(init[0].VolumeMounts) != 0 {
		t.Fatalf("init containers %+v", init)
	}
	agent := kubectlPatch(t, before, "patch.yaml").Spec.Template.Spec.Containers[0].SecurityContext
	agent.Privileged = nil // the default, which the patch must name to take kubeadm's back
	if got, want := asYAML(t, init[0].SecurityContext), asYAML(t, agent); got != want {
		t.Errorf("security context\n%s\nwant\n%s", got, want)
	}
	after.Spec.Template.Spec.InitContainers = nil
	if got, want := asYAML(t, after), asYAML(t, before); got != want {
		t.Errorf("the patch changed more: \n%s\nwant\n%s", got, want)
	}
}

// kubectlPatch applies a patch as the API server does.
func kubectlPatch(t *testing.T, ds *appsv1.DaemonSet, file string) *appsv1.DaemonSet {
	t.Helper()
	text, err := os.ReadFile(dir + "replace-kube-proxy/" + file)
	if err != nil {
		t.Fatal(err)
	}
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
		if v.HostPath != nil {
			host[v.Name] = v.HostPath.Path
		} else if v.ConfigMap == nil {
			t.Errorf("volume %s is neither the configuration nor the modules", v.Name)
		}
	}
	if len(host) != 1 || host["lib-modules"] != "/lib/modules" {
		t.Errorf("volumes from the host: %v", host)
	}
	for _, m := range c.VolumeMounts {
		if path := host[m.Name]; path != "" || !m.ReadOnly {
			t.Errorf("the container mounts %s, host path %q, read-only %t", m.MountPath, path, m.ReadOnly)
		}
	}
	for _, m := range i.VolumeMounts {
		if !m.ReadOnly {
			t.Errorf("the init container may write %s", m.MountPath)
		}
	}
	probed(t, c)
}

// probed: all probes ask livez, where the agent listens by default.
func probed(t *testing.T, c corev1.Container) {
	t.Helper()
	for name, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		if p == nil || p.HTTPGet == nil {
			t.Errorf("no %s probe", name)
			continue
		}
		if got := fmt.Sprintf("%s:%s%s", p.HTTPGet.Host, p.HTTPGet.Port.String(), p.HTTPGet.Path); got != "127.0.0.1:10256/livez" {
			t.Errorf("the %s probe asks %s", name, got)
		}
	}
}
