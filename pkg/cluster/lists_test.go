package cluster

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/json"
)

// inOne reads a list as the one document that it is.
func inOne(t *testing.T, text string) (list listDocument) {
	t.Helper()
	js, err := yamlToJSON([]byte(text))
	if err != nil {
		t.Fatalf("taken apart it can be read, and in one piece it cannot: %v\n%q", err, text)
	}
	if err := json.Unmarshal(js, &list); err != nil {
		t.Fatalf("%v\n%q", err, text)
	}
	return list
}

// odd are documents that only look as kubectl lays out lists, or are lists of another layout.
var odd = map[string]string{
	"an anchor in one item for another":  "kind: List\napiVersion: v1\nitems:\n- &a {kind: Node}\n- *a\n",
	"an anchor outside":                  "kind: &v v1\napiVersion: v1\nitems:\n- kind: *v\n",
	"text over several lines":            "kind: List\napiVersion: v1\nitems:\n- kind: \"a\n- b\"\n- kind: c\n",
	"items in text":                      "kind: List\napiVersion: \"v1\nitems:\n- a\n\"\n",
	"items in text of one that has some": "apiVersion: v1\nkind: List\nx: \"\nitems:\n- a\n\"\n",
	"items twice":                        "kind: List\napiVersion: v1\nitems:\n- {}\nitems:\n- {}\n",
	"an item that cannot be read":        "kind: List\napiVersion: v1\nitems:\n- {\n- {}\n",
	"a key twice in an item":             "kind: List\napiVersion: v1\nitems:\n- a: 1\n  a: 2\n",
	"indented":                           "kind: List\napiVersion: v1\nitems:\n  - {}\n",
	"no list":                            "kind: Service\napiVersion: v1\nitems:\n- {}\n",
	"a dash that is none of an item":     "kind: List\napiVersion: v1\nitems:\n- {}\nmetadata:\n- {}\n- {}\n",
	"none":                               "kind: List\napiVersion: v1\nitems:\n",
	"an item after all":                  "kind: List\napiVersion: v1\nitems:\n- {}\nx: 1\n- {}\n",
	"a tab":                              "kind: List\napiVersion: v1\nitems:\n- a:\n\tb\n- {}\n",
}

// A list that is laid out as kubectl does it is taken apart, and says the same as in one piece. Where that cannot be
// known, it is left in one.
func TestListsAreTakenApart(t *testing.T) {
	kubectl, err := os.ReadFile("testdata/kubectl.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"kubectl's":               string(kubectl),
		"with a comment, a blank": "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Node\n# here\n\n  metadata: {name: a}\n- {kind: Node}\nkind: List\nmetadata: {resourceVersion: \"\"}\n",
		"DOS line ends":           strings.ReplaceAll(string(kubectl), "\n", "\r\n"),
		"of one kind, text":       "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata:\n    name: |\n      - a\n      items:\n",
	} {
		list, ok := takeApart([]byte(text))
		if !ok || len(list.Items) == 0 {
			t.Errorf("%s: not taken apart", name)
			continue
		}
		if diff := cmp.Diff(inOne(t, text), list, cmp.AllowUnexported(listDocument{})); diff != "" {
			t.Errorf("%s (- in one piece, + taken apart):\n%s", name, diff)
		}
	}
	for name, text := range odd {
		if list, ok := takeApart([]byte(text)); ok {
			if diff := cmp.Diff(inOne(t, text), list, cmp.AllowUnexported(listDocument{})); diff != "" {
				t.Errorf("%s (- in one piece, + taken apart):\n%s", name, diff)
			}
		}
	}
}

// FuzzLists: whatever is taken apart says the same as in one piece.
func FuzzLists(f *testing.F) {
	for _, text := range odd {
		f.Add(text)
	}
	f.Add("apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata:\n    name: a\n- kind: 'x\n  y'\nkind: List\n")
	f.Fuzz(func(t *testing.T, text string) {
		if list, ok := takeApart([]byte(text)); ok {
			if diff := cmp.Diff(inOne(t, text), list, cmp.AllowUnexported(listDocument{})); diff != "" {
				t.Errorf("(- in one piece, + taken apart):\n%s", diff)
			}
		}
	})
}
