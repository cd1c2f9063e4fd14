package config

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	logsapi "k8s.io/component-base/logs/api/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// read reads a configuration file and fills in defaults. The warnings name what the file has and nobody knows.
func read(file string) (*Config, []string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("read the configuration: %w", err)
	}
	return parse(file, data)
}

// parse reads the text of a configuration file. Its name is for messages.
func parse(file string, data []byte) (*Config, []string, error) {
	c := &Config{file: file, docs: map[metav1.TypeMeta]int{}}
	var warnings []string
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", file, err)
		}
		kind, w, err := c.document(doc)
		if err == nil && c.docs[kind] != 0 {
			err = fmt.Errorf("document %d is of this kind, too: want one", c.docs[kind])
		}
		if err != nil {
			return nil, nil, placed(place(file, n, kind), err)
		}
		if kind != (metav1.TypeMeta{}) {
			c.docs[kind] = n
		}
		for _, text := range w {
			warnings = append(warnings, file+": "+text)
		}
	}
	if len(c.docs) == 0 {
		return nil, nil, fmt.Errorf("%s: no document in it: want one of kind %s (%s), and %s (%s) beside it where needed", file,
			proxyKind.Kind, proxyKind.APIVersion, ownKind.Kind, ownKind.APIVersion)
	}
	c.setDefaults()
	return c, warnings, nil
}

// placed puts a place before an error, and before each of several, so that every line says where it is.
func placed(place string, err error) error {
	several, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return fmt.Errorf("%s: %w", place, err)
	}
	var errs []error
	for _, e := range several.Unwrap() {
		errs = append(errs, placed(place, e))
	}
	return errors.Join(errs...)
}

// document reads one document of the file into its place. No kind and no error means that it is empty.
// kube-proxy's document is read as kube-proxy does it, which ignores unknown keys; in ours they are errors.
func (c *Config) document(doc []byte) (kind metav1.TypeMeta, warnings []string, err error) {
	raw, strict := yaml.YAMLToJSONStrict(doc)
	if strict != nil {
		if raw, err = yaml.YAMLToJSON(doc); err != nil {
			return kind, nil, err
		}
	}
	if string(raw) == "null" {
		return kind, nil, nil
	}
	if raw[0] != '{' {
		return kind, nil, fmt.Errorf("%s: want keys with values, apiVersion and kind among them", raw)
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &kind); err != nil {
		return metav1.TypeMeta{}, nil, blame(raw, reflect.TypeFor[metav1.TypeMeta](), err)
	}
	var into any
	switch kind {
	case proxyKind:
		into = &c.Proxy
	case ownKind:
		into = &c.Own
	default:
		return kind, nil, fmt.Errorf("apiVersion: %q, kind: %q: want %s, %s, or %s, %s", kind.APIVersion, kind.Kind,
			proxyKind.APIVersion, proxyKind.Kind, ownKind.APIVersion, ownKind.Kind)
	}
	unknown, err := kjson.UnmarshalStrict(raw, into)
	if err != nil {
		return kind, nil, blame(raw, reflect.TypeOf(into).Elem(), err)
	}
	for i, u := range unknown {
		unknown[i] = withMeant(u, reflect.TypeOf(into).Elem())
	}
	twice := repeated(strict)
	if kind == ownKind {
		for _, t := range twice {
			unknown = append(unknown, fmt.Errorf("%s: want it once", t))
		}
		return kind, nil, errors.Join(unknown...)
	}
	for _, u := range unknown {
		warnings = append(warnings, u.Error()+": ignored")
	}
	for _, t := range twice {
		warnings = append(warnings, t+": the last one counts")
	}
	return kind, warnings, nil
}

// repeated names the keys that a document has twice, which the parser tells of in one error of several lines. It counts
// lines from the document's first.
func repeated(err error) (keys []string) {
	if err == nil {
		return nil
	}
	for line := range strings.Lines(err.Error()) {
		if at, key, ok := strings.Cut(strings.TrimSpace(line), ": key "); ok {
			keys = append(keys, fmt.Sprintf("%s of the document: %s a second time", at, strings.TrimSuffix(key, " already set in map")))
		}
	}
	if len(keys) == 0 { // another text than is known here
		return []string{strings.Join(strings.Fields(err.Error()), " ")}
	}
	return keys
}

// blame finds the keys whose values do not fit: it decodes each value by itself. The decoder's own error, which
// names Go types and at times no key, is the answer only where that finds nothing.
func blame(raw []byte, t reflect.Type, err error) error {
	var tree any
	if json.Unmarshal(raw, &tree) != nil {
		return err
	}
	var found []error
	for _, l := range leaves(tree) {
		alone := l.value
		for _, name := range slices.Backward(l.path) {
			alone = map[string]any{name: alone}
		}
		text, _ := json.Marshal(alone)
		if kjson.UnmarshalCaseSensitivePreserveInts(text, reflect.New(t).Interface()) == nil {
			continue
		}
		value, _ := json.Marshal(l.value)
		key, want := wanted(t, l.path)
		found = append(found, problem{key, string(value), want})
	}
	if len(found) == 0 {
		return err
	}
	return errors.Join(found...)
}

// leaf is a value of a document, and the keys that lead to it.
type leaf struct {
	path  []string
	value any
}

func (l leaf) key() string { return strings.Join(l.path, ".") }

// leaves lists the values of a document by key. Lists are values; so is a map without keys.
func leaves(tree any) (out []leaf) {
	var walk func(path []string, v any)
	walk = func(path []string, v any) {
		m, _ := v.(map[string]any)
		if len(m) == 0 {
			out = append(out, leaf{slices.Clone(path), v})
			return
		}
		for _, k := range slices.Sorted(maps.Keys(m)) {
			walk(append(path, k), m[k])
		}
	}
	walk(nil, tree)
	return out
}

// wanted says which key of a type a path leads to, which is shorter than the path where the document goes
// deeper than the type, and what its value is to look like.
func wanted(t reflect.Type, path []string) (key, want string) {
	depth := 0
	for ; depth < len(path); depth++ {
		next := below(t, path[depth])
		if next == nil {
			break
		}
		t = next
	}
	return strings.Join(path[:depth], "."), describe(t)
}

// below is the type of a key's value, nil where there is no such key.
func below(t reflect.Type, name string) reflect.Type {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == durationType || t == flushType:
	case t.Kind() == reflect.Map:
		return t.Elem()
	case t.Kind() == reflect.Struct:
		for _, f := range reflect.VisibleFields(t) {
			if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name {
				return f.Type
			}
		}
	}
	return nil
}

var durationType, flushType = reflect.TypeFor[metav1.Duration](), reflect.TypeFor[logsapi.TimeOrMetaDuration]()

// describe says what a value of a type looks like in the file.
func describe(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == durationType || t == flushType {
		return "a duration like 30s or 1h30m"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "text, in quotes where it looks like something else"
	case reflect.Int32:
		return "a whole number that fits into 32 bits"
	case reflect.Uint32:
		return "a whole number, 0 or more, that fits into 32 bits"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list"
	}
	return "keys with values"
}
