// Package install writes what an administrator applies, from /manifests: one file a way of installing, the patch for
// kubeadm, and the Jobs.
package install

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// placeholder is the image's name in the manifests.
const placeholder = "ipvs-proxy"

// Image is what the nodes get.
type Image struct {
	Repository string // registry.example.com/ipvs-proxy
	Tag        string
	Digest     string // sha256:…; empty: whatever the tag names
}

func (i Image) String() string {
	s := i.Repository + ":" + i.Tag
	if i.Digest != "" {
		s += "@" + i.Digest
	}
	return s
}

// File is one of those that are written.
type File struct {
	Name    string
	Content []byte
}

// Ways of installing: directories below manifests.
const (
	Fresh   = "fresh"
	Replace = "replace-kube-proxy"
)

// monitoring is the directory of what scrapes the agents, alerts, and the dashboard.
const monitoring = "monitoring"

// heads say what a file is, and what is left to do before it is applied.
var heads = map[string]string{
	Fresh: `# ipvs-proxy %s for a cluster without kube-proxy. Before it is applied (kubectl apply -f), edit in the ConfigMap
#   clusterCIDR   the ranges of the pods
#   server        an address of the API server, or of a load balancer before it; not that of the Service kubernetes
# After a later change there: kubectl -n kube-system rollout restart daemonset ipvs-proxy
`,
	monitoring: `# What scrapes ipvs-proxy %s, alerts, and a dashboard, for clusters with the operator of Prometheus and Grafana's sidecar. It
# wants metricsBindAddress: 0.0.0.0:10249 in the agents' configuration, and a firewall that keeps others out.
`,
	Replace: `# ipvs-proxy %s in the place of kube-proxy, as kubeadm made it: its DaemonSet, with another image and fewer rights.
# Apply it by kubectl replace -f. Where that DaemonSet was changed, use the patch kubeproxydaemonset.yaml instead.
`,
}

// Files are all of them, made of the directory manifests.
func Files(manifests string, image Image) ([]File, error) {
	var all []File
	for _, way := range []string{Fresh, Replace} {
		text, err := render(manifests, way, image)
		if err != nil {
			return nil, fmt.Errorf("render %s: %w", way, err)
		}
		all = append(all, File{"install-" + way + ".yaml", fmt.Appendf(nil, heads[way]+"---\n%s", image.Tag, text)})
	}
	text, err := render(manifests, monitoring, image)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", monitoring, err)
	}
	all = append(all, File{monitoring + ".yaml", fmt.Appendf(nil, heads[monitoring]+"---\n%s", image.Tag, text)})
	for _, f := range texts {
		content, err := f.fill(manifests, image)
		if err != nil {
			return nil, err
		}
		all = append(all, File{f.to, content})
	}
	return all, nil
}

// render is what kubectl kustomize gives, with the image's name in place. The ConfigMap has no hash in its name, which
// would say something wrong once the file is edited.
func render(manifests, way string, image Image) ([]byte, error) {
	memory := filesys.MakeFsInMemory()
	err := fs.WalkDir(os.DirFS(manifests), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(manifests, name))
		if err == nil && name == way+"/kustomization.yaml" && way != monitoring { // which has no image
			content, err = adapt(content, image)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return memory.WriteFile("/"+name, content)
	})
	if err != nil {
		return nil, err
	}
	objects, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(memory, "/"+way)
	if err != nil {
		return nil, err
	}
	return objects.AsYaml()
}

// adapt changes a kustomization.
func adapt(text []byte, image Image) ([]byte, error) {
	var k types.Kustomization
	if err := yaml.UnmarshalStrict(text, &k); err != nil {
		return nil, err
	}
	if len(k.Images) != 1 || k.Images[0].Name != placeholder {
		return nil, fmt.Errorf("it has images %+v, want %s alone", k.Images, placeholder)
	}
	k.Images[0] = types.Image{Name: placeholder, NewName: image.Repository, NewTag: image.Tag, Digest: image.Digest}
	k.GeneratorOptions = &types.GeneratorOptions{DisableNameSuffixHash: true}
	return yaml.Marshal(k)
}

// text is a file that keeps its comments: words of it are exchanged.
type text struct {
	from, to string
	swaps    []swap
}

// swap is a word, and what stands in its place. There must be one at least.
type swap struct{ old, new string }

// ofKubeProxy are the names that a Job has where the ConfigMap and the service account are kubeadm's.
var ofKubeProxy = []swap{{"/var/lib/ipvs-proxy", "/var/lib/kube-proxy"}, {"          name: ipvs-proxy\n", "          name: kube-proxy\n"}}

// keepIPVS makes of the Job that cleans up the one for nodes where kube-proxy in mode ipvs serves again.
var keepIPVS = []swap{
	{"# Takes out of a node's kernel what an agent left there.", "# Leaves virtual servers and addresses to kube-proxy in mode ipvs, once that serves, and takes out of a node's kernel\n# what else an agent left there."},
	{"ipvs-proxy-cleanup", "ipvs-proxy-way-back"}, {"        - cleanup\n", "        - cleanup\n        - --keep-ipvs\n"},
}

var texts = []text{
	{"replace-kube-proxy/patch.yaml", "kubeproxydaemonset.yaml", nil},
	{"jobs/cleanup.yaml", "job-cleanup.yaml", nil},
	{"jobs/cleanup.yaml", "job-way-back.yaml", keepIPVS},
	{"jobs/check.yaml", "job-check-fresh.yaml", nil},
	{"jobs/check.yaml", "job-check-replace-kube-proxy.yaml", ofKubeProxy},
	{"jobs/diff.yaml", "job-diff-fresh.yaml", nil},
	{"jobs/diff.yaml", "job-diff-replace-kube-proxy.yaml", append([]swap{{"serviceAccountName: ipvs-proxy", "serviceAccountName: kube-proxy"}}, ofKubeProxy...)},
}

func (t text) fill(manifests string, image Image) ([]byte, error) {
	content, err := os.ReadFile(filepath.Join(manifests, t.from))
	if err != nil {
		return nil, err
	}
	for _, s := range append([]swap{{"image: " + placeholder + "\n", "image: " + image.String() + "\n"}}, t.swaps...) {
		if !bytes.Contains(content, []byte(s.old)) {
			return nil, fmt.Errorf("%s has no %q, in whose place %q is to stand", t.from, strings.TrimSpace(s.old), strings.TrimSpace(s.new))
		}
		content = bytes.ReplaceAll(content, []byte(s.old), []byte(s.new))
	}
	return content, nil
}
