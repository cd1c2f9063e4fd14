package cluster

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// serviceText is a document with a Service, sliceText one with a slice.
func serviceText(name, clusterIP string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: %s, creationTimestamp: null}
spec: {clusterIP: %s, ports: [{port: 80, targetPort: web}]}
`, name, clusterIP)
}

func sliceText(name, service string, addrs ...string) string {
	s := fmt.Sprintf(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s, namespace: default, labels: {kubernetes.io/service-name: %s}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
`, name, service)
	for _, a := range addrs {
		s += fmt.Sprintf("- addresses: [%s]\n", a)
	}
	return s
}

func TestParseFile(t *testing.T) {
	const jsonService = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"%s"},"spec":{"clusterIP":"10.96.0.1"}}`
	for _, test := range []struct {
		name     string
		file     string // "x.yaml" when empty
		text     string
		objects  string // keys, joined by "; "
		good     int
		troubles []string
	}{
		{name: "empty"},
		{name: "comments only", text: "# nothing\n---\n# here\n"},
		{name: "one", text: serviceText("a", "10.96.0.1"), objects: "Service default/a", good: 1},
		{
			name:    "many, with all that YAML allows between",
			text:    "\ufeff%YAML 1.1\n--- # first\n" + serviceText("a", "x") + "...\n---\n---\n~\n---\n" + sliceText("s", "a") + "--- " + "{apiVersion: v1, kind: Node, metadata: {name: nn}}\n",
			objects: "Service default/a; EndpointSlice default/s; Node nn", good: 3,
		},
		{
			name:    "DOS line ends",
			text:    strings.ReplaceAll(serviceText("a", "x")+"---\n"+serviceText("b", "x"), "\n", "\r\n"),
			objects: "Service default/a; Service default/b", good: 2,
		},
		{
			name:    "lists",
			text:    "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a, namespace: ns}}\n- apiVersion: v1\n  kind: List\n  items: [{apiVersion: v1, kind: Node, metadata: {name: nn, namespace: ns}}]\n---\napiVersion: v1\nkind: ServiceList\nitems: [{metadata: {name: b}}]\n---\napiVersion: v1\nkind: NodeList\nitems: [{metadata: {name: m}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems: [{metadata: {name: s}}]\n---\napiVersion: v1\nkind: List\nitems: null\n",
			objects: "Service ns/a; Node nn; Service default/b; Node m; EndpointSlice default/s", good: 5,
		},
		{name: "JSON", file: "x.json", text: "\n" + fmt.Sprintf(jsonService, "a") + "\n", objects: "Service default/a", good: 1},
		{
			name: "JSON values in a row", text: fmt.Sprintf(jsonService, "a") + "\n" + fmt.Sprintf(jsonService, "b") + "\n{",
			objects: "Service default/a; Service default/b", good: 2,
			troubles: []string{"x.yaml: document 3 (line 2): unexpected EOF"},
		},
		{
			name: "JSON cut off", file: "x.json", text: fmt.Sprintf(jsonService, "a")[:60],
			troubles: []string{"x.json: document 1 (line 1): unexpected EOF"},
		},
		{name: "flow YAML", text: "{apiVersion: v1, kind: Service, metadata: {name: a}}", objects: "Service default/a", good: 1},
		{
			name:    "other kinds, also of the same name",
			text:    "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, spec: 7}\n- {apiVersion: v1, kind: Pod}\n---\n" + serviceText("b", "x"),
			objects: "Service default/b", good: 3,
			troubles: []string{
				"x.yaml: Service (serving.knative.dev/v1): objects of this kind are ignored",
				"x.yaml: Pod (v1): objects of this kind are ignored",
			},
		},
		{
			name:    "bad documents cost themselves",
			text:    serviceText("a", "x") + "---\na: [\n---\nmetadata: {name: x}\n---\n\njust text\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {ports: [{port: '80'}]}\n---\napiVersion: v1\nkind: Service\n---\nkind: x\nkind: y\n---\n" + serviceText("c", "x"),
			objects: "Service default/a; Service default/c", good: 2,
			troubles: []string{
				"x.yaml: document 2 (line 6): yaml: line 6: did not find expected node content",
				"x.yaml: document 3 (line 8): apiVersion or kind is missing",
				"x.yaml: document 4 (line 11): json: cannot unmarshal string into Go value of type cluster.typeMeta",
				"x.yaml: document 5 (line 13): json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32",
				"x.yaml: document 6 (line 18): Service without a name",
				"x.yaml: document 7 (line 21): yaml: unmarshal errors: line 22: key \"kind\" already set in map",
			},
		},
		{
			name:    "bad items cost themselves",
			text:    "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a}}\n- {apiVersion: v1, kind: Service, metadata: {name: 7}}\n- null\n- {kind: Service}\n- {apiVersion: v1, kind: List, items: 7}\n- {apiVersion: v1, kind: Service, metadata: {name: B b}}\n- {apiVersion: v1, kind: Service, metadata: {name: z, namespace: a/b}}\n",
			objects: "Service default/a", good: 1,
			troubles: []string{
				"x.yaml: document 1 (line 1): items[1]: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string",
				"x.yaml: document 1 (line 1): items[2]: empty item",
				"x.yaml: document 1 (line 1): items[3]: apiVersion or kind is missing",
				"x.yaml: document 1 (line 1): items[4]: json: cannot unmarshal number into Go struct field .items of type []json.RawMessage",
				`x.yaml: document 1 (line 1): items[5]: metadata.name "B b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`,
				`x.yaml: document 1 (line 1): items[6]: metadata.namespace "a/b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name', or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')`,
			},
		},
		{
			name:    "the same object twice",
			text:    serviceText("a", "x") + "---\n" + serviceText("a", "z"),
			objects: "Service default/a", good: 2,
			troubles: []string{"x.yaml: document 2 (line 6): Service default/a: document 1 defines it too and counts"},
		},
		{
			name:     "Lists without end",
			text:     strings.Repeat("{apiVersion: v1, kind: List, items: [", 20) + strings.Repeat("]}", 20),
			good:     1,
			troubles: []string{"x.yaml: document 1 (line 1): " + strings.Repeat("items[0].", 7) + "items[0]: too many Lists in Lists"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.file == "" {
				test.file = "x.yaml"
			}
			p := parseFile(test.file, []byte(test.text), Options{})
			var keys, texts []string
			bad := false
			for _, o := range p.objects {
				keys = append(keys, o.key.String())
			}
			for _, tr := range p.troubles {
				texts = append(texts, tr.Error())
				bad = bad || tr.Reason == TroubleDocument
			}
			if got := strings.Join(keys, "; "); got != test.objects {
				t.Errorf("objects %s, want %s", got, test.objects)
			}
			if p.good != test.good || p.bad != bad {
				t.Errorf("%d good documents, bad %v; want %d, %v", p.good, p.bad, test.good, bad)
			}
			if diff := cmp.Diff(test.troubles, texts); diff != "" {
				t.Errorf("Troubles (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTroublesOfAFileAreBounded(t *testing.T) {
	p := parseFile("x.yaml", []byte(strings.Repeat("--- 7\n", 1000)+strings.Repeat("--- {kind: "+strings.Repeat("x", 9000)+"}\n", 100)), Options{})
	if n := len(p.troubles); n != listedPerFile+1 {
		t.Errorf("%d Troubles", n)
	}
	if got, want := p.troubles[listedPerFile].Error(), "x.yaml: Document: 1080 more like these"; got != want {
		t.Errorf("last Trouble %q, want %q", got, want)
	}
}

// Whatever is in a file: no panic, Troubles of bounded size, what counts is in
// range, and reading it once more says the same.
func FuzzDirectoryFile(f *testing.F) {
	f.Add([]byte(serviceText("web", "10.96.0.1") + "---\n" + sliceText("web-1", "web", "10.1.0.1", "::1")))
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"}},null,{"kind":7}]}{`))
	f.Add([]byte("apiVersion: v1\nkind: Node\nmetadata: {name: own}\nstatus: {addresses: [{type: InternalIP, address: 10.0.0.1}]}\n"))
	f.Add([]byte("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n--- !!binary |\n  AA==\n...\n%TAG ! x\n"))
	f.Add([]byte("apiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems:\n- metadata: {name: s, labels: {kubernetes.io/service-name: web}}\n  addressType: IPv6\n  ports: [{port: null}, {port: 1, protocol: UDP}]\n  endpoints: [{addresses: [fd00::1], conditions: {ready: null}, hints: {forZones: [{name: z}]}}, {}]\n"))
	if text, err := os.ReadFile("testdata/kubectl.yaml"); err == nil {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		opt := Options{NodeName: "own"}
		for _, name := range []string{"x.yaml", "x.json"} {
			m := NewModel(opt)
			p := parseFile(name, text, opt)
			for _, o := range p.objects {
				m.put(o)
			}
			for _, id := range m.Services() {
				checkRanges(t, m, id)
			}
			for _, tr := range p.troubles {
				if s := tr.Error(); len(s) > 4000 || strings.Contains(s, "\n") {
					t.Fatalf("not a short line: %q", s)
				}
			}
			m.Take()
			for _, o := range parseFile(name, text, opt).objects {
				m.put(o)
			}
			if dirty, node, _ := m.Take(); len(dirty) > 0 || node {
				t.Fatalf("the same text dirties %v, node %v", dirty, node)
			}
			for _, o := range p.objects {
				m.drop(o.key)
			}
			if len(m.Services()) != 0 || len(m.slices) != 0 {
				t.Fatal("something stays behind")
			}
		}
	})
}
