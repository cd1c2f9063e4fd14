package config

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	reference   = "../../docs/configuration.md"
	writtenFrom = "<!-- From here on written by: go test ./pkg/config -run TestReference -update -->\n"
)

// explained says what keys are for whose flag does not say it, or that have none.
var explained = map[string]string{
	"featureGates":                        "kube-proxy's feature gates",
	"clientConnection.kubeconfig":         "file that says how the API server is reached",
	"clientConnection.acceptContentTypes": "what the API server may answer in; empty for contentType",
	"clientConnection.contentType":        "what is spoken with the API server",
	"clientConnection.qps":                "how many requests a second may go to the API server",
	"clientConnection.burst":              "how many requests may follow each other at once beyond that",
	"bindAddress":                         "its family decides the defaults of healthzBindAddress and metricsBindAddress",
	"healthzBindAddress":                  "where /healthz and /livez are served",
	"metricsBindAddress":                  "where /metrics and the like are served",
	"bindAddressHardFail":                 "end when one of these addresses cannot be listened on",
	"enableProfiling":                     "serve /debug/pprof beside /metrics",
	"oomScoreAdj":                         "the process's OOM score, which the kubelet sets for a pod of priority system-node-critical",
	"configSyncPeriod":                    "how often kube-proxy reads the API server's objects again",
	"ipvs.syncPeriod":                     "how often kube-proxy looks at all of the kernel's state",
	"ipvs.minSyncPeriod":                  "kube-proxy's least time between two writes to the kernel",
	"ipvs.excludeCIDRs":                   "address ranges whose virtual servers are never removed",
	"ipvs.tcpTimeout":                     "how long IPVS keeps an idle TCP connection; 0 leaves the kernel's value alone",
	"ipvs.tcpFinTimeout":                  "how long IPVS keeps a TCP connection after FIN; 0 leaves the kernel's value alone",
	"ipvs.udpTimeout":                     "how long IPVS keeps an idle UDP flow; 0 leaves the kernel's value alone",
	"iptables.localhostNodePorts":         "*No effect: IPVS cannot serve node ports on loopback addresses.*",
	"nftables.masqueradeBit":              "the same as `iptables.masqueradeBit`, for rules of kube-proxy's mode `nftables`",
	"logging.format":                      "format of the log",
	"logging.flushFrequency":              "how often the log is written out",
	"logging.vmodule":                     "log levels of single source files",
	"logging.options":                     "further settings of the log's formats",
}

// TestReference keeps the tables of docs/configuration.md: every key of both documents, its default, its flag, and
// what it does. A key that is used and not described is an error.
func TestReference(t *testing.T) {
	text, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	prose, tables, found := strings.Cut(string(text), writtenFrom)
	if !found {
		t.Fatalf("%s: the line %q is gone", reference, writtenFrom)
	}
	want := "\n## KubeProxyConfiguration\n\n" + proxyTable(t) + "\n## IPVSProxyConfiguration\n\n" + ownTable(t)
	if *update {
		if err := os.WriteFile(reference, []byte(prose+writtenFrom+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if tables != want {
		t.Errorf("%s is out of date: go test ./pkg/config -run TestReference -update", reference)
	}
}

func proxyTable(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| key | default | flag | |\n| --- | --- | --- | --- |\n")
	usage := usages()
	seen := map[string]bool{}
	defaults := values(Default().Proxy)
	for _, key := range keysOf(reflect.TypeOf(Default().Proxy), "") {
		value := defaults[key]
		text := usage[key]
		if text == "" {
			text = explained[key]
		}
		for _, w := range without {
			if within(key, w.key) {
				if key != w.key { // a whole group of them
					value = ""
				}
				key, text = w.key, "*No effect: "+w.why+".*"
			}
		}
		if seen[key] {
			continue
		}
		seen[key] = true
		if text == "" {
			t.Errorf("%s is not described: by its flag, or here", key)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", key, value, flagText(key), text)
	}
	return b.String()
}

func ownTable(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| key | default | flag | |\n| --- | --- | --- | --- |\n")
	comments, defaults := ownComments(t), values(Default().Own)
	for _, key := range keysOf(reflect.TypeOf(Default().Own), "") {
		text := comments[key]
		if text == "" {
			t.Errorf("%s has no comment", key)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", key, defaults[key], flagText(key), text)
	}
	return b.String()
}

func flagText(key string) string {
	name := flagOf(key)
	switch len(name) {
	case 0:
		return ""
	case 1:
		return "`-" + name + "`"
	}
	return "`--" + name + "`"
}

// usages are the flags' help, by key.
func usages() map[string]string {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	RunFlags(fs)
	out := map[string]string{}
	for flag, key := range keys {
		if f := fs.Lookup(flag); f != nil {
			out[key] = f.Usage
		}
	}
	return out
}

// keysOf lists the keys of a document in the order of its type.
func keysOf(t reflect.Type, front string) (out []string) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == durationType || t == flushType || t == reflect.TypeFor[resource.QuantityValue]() {
		return []string{strings.TrimSuffix(front, ".")}
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Type == reflect.TypeFor[metav1.TypeMeta]():
		case name == "": // inline
			out = append(out, keysOf(f.Type, front)...)
		default:
			out = append(out, keysOf(f.Type, front+name+".")...)
		}
	}
	return out
}

// values are a document's values as a file would have them, by key; nothing for what is empty.
func values(document any) map[string]string {
	out := map[string]string{}
	for _, l := range leaves(asTree(document)) {
		if v := fmt.Sprint(l.value); !empty(l.value) && v != "" {
			if n, ok := l.value.(float64); ok && n == float64(int64(n)) {
				v = fmt.Sprint(int64(n))
			}
			out[l.key()] = "`" + v + "`"
		}
	}
	return out
}

// ownComments are the comments of our own document's fields.
func ownComments(t *testing.T) map[string]string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		front, ok := map[string]string{"IPVSProxyConfiguration": "", "Takeover": "takeover.", "ServiceMetrics": "serviceMetrics."}[spec.Name.Name]
		if !ok {
			return true
		}
		for _, f := range spec.Type.(*ast.StructType).Fields.List {
			if f.Tag == nil || len(f.Names) == 0 {
				continue
			}
			key, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
			text := strings.Join(strings.Fields(f.Doc.Text()), " ")
			for _, verb := range []string{" is ", " are ", ""} { // a comment begins with the field's name
				if rest, ok := strings.CutPrefix(text, f.Names[0].Name+verb); ok {
					text = strings.TrimSpace(rest)
					break
				}
			}
			out[front+key] = strings.TrimSuffix(text, ".")
		}
		return false
	})
	return out
}
