package cluster

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation"
)

// objectKey names an object of a file.
type objectKey struct {
	kind string // "Service", "EndpointSlice" or "Node"
	id   ID     // a Node has no namespace
}

func (k objectKey) String() string {
	return k.kind + " " + strings.TrimPrefix(k.id.String(), "/")
}

func (k objectKey) compare(o objectKey) int {
	if c := strings.Compare(k.kind, o.kind); c != 0 {
		return c
	}
	return k.id.Compare(o.id)
}

// object is a decoded object in its compact form, which the Model shares.
type object struct {
	key      objectKey
	svc      *Service
	slice    *sliceContent
	node     *Node     // nil when it is not the own one
	problems []Problem // of the Service or Node
}

// put hands an object to the Model.
func (m *Model) put(o *object) {
	switch o.key.kind {
	case "Service":
		m.setService(o.key.id, o.svc, o.problems)
	case "EndpointSlice":
		m.setSlice(o.key.id, o.slice)
	case "Node":
		if o.node != nil {
			m.setNode(*o.node, o.problems)
		}
	}
}

// drop takes an object from the Model.
func (m *Model) drop(k objectKey) {
	switch k.kind {
	case "Service":
		m.DeleteService(k.id.Namespace, k.id.Name)
	case "EndpointSlice":
		m.DeleteSlice(k.id.Namespace, k.id.Name)
	case "Node":
		m.DeleteNode(k.id.Name)
	}
}

// typeMeta is what an object says of its kind. Both parts count: other API
// groups have a kind Service as well.
type typeMeta struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

// lists are the kinds that hold others, with what their items are when these
// do not say it themselves.
var lists = map[typeMeta]typeMeta{
	{"v1", "List"}:        {},
	{"v1", "ServiceList"}: {"v1", "Service"},
	{"v1", "NodeList"}:    {"v1", "Node"},
	{"discovery.k8s.io/v1", "EndpointSliceList"}: {"discovery.k8s.io/v1", "EndpointSlice"},
}

// document reads a document in JSON.
func (p *parser) document(js []byte) {
	if bytes.Equal(bytes.TrimSpace(js), []byte("null")) {
		p.number-- // as empty as one without text
		return
	}
	if err := p.object(js, typeMeta{}, ""); err != nil {
		p.fail("", err)
		return
	}
	p.out.good++
}

// object reads an object or a list of them. Where is its place in the
// document. The error means that nothing of it could be used.
func (p *parser) object(js []byte, kind typeMeta, where string) error {
	if err := json.Unmarshal(js, &kind); err != nil {
		return err
	}
	if kind.Kind == "" || kind.APIVersion == "" {
		return errors.New("apiVersion or kind is missing")
	}
	if item, ok := lists[kind]; ok {
		if strings.Count(where, "items[") >= 8 {
			return errors.New("too many Lists in Lists")
		}
		return p.items(js, item, where)
	}
	switch kind {
	case typeMeta{"v1", "Service"}:
		return decode(js, func(obj *corev1.Service) error {
			return p.define(kind.Kind, obj, where, func(o *object) {
				o.svc, o.problems = sanitiseService(obj, p.opt)
			})
		})
	case typeMeta{"discovery.k8s.io/v1", "EndpointSlice"}:
		return decode(js, func(obj *discoveryv1.EndpointSlice) error {
			return p.define(kind.Kind, obj, where, func(o *object) { o.slice = sanitiseSlice(obj) })
		})
	case typeMeta{"v1", "Node"}:
		return decode(js, func(obj *corev1.Node) error {
			obj.Namespace = ""
			return p.define(kind.Kind, obj, where, func(o *object) {
				if obj.Name == p.opt.NodeName {
					node, probs := sanitiseNode(obj)
					o.node, o.problems = &node, probs
				}
			})
		})
	}
	p.ignore(kind)
	return nil
}

// items reads the items of a list; a bad one costs only itself.
func (p *parser) items(js []byte, kind typeMeta, where string) error {
	var list struct {
		Items []stdjson.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(js, &list); err != nil {
		return err
	}
	p.each(list.Items, kind, where)
	return nil
}

// each reads items that are taken apart.
func (p *parser) each(items []stdjson.RawMessage, kind typeMeta, where string) {
	for i, item := range items {
		place := strings.TrimPrefix(fmt.Sprintf("%s.items[%d]", where, i), ".")
		err := errors.New("empty item")
		if len(item) > 0 && !bytes.Equal(item, []byte("null")) {
			err = p.object(item, kind, place)
		}
		if err != nil {
			p.fail(place, err)
		}
	}
}

func decode[T any](js []byte, f func(*T) error) error {
	obj := new(T)
	if err := json.Unmarshal(js, obj); err != nil {
		return err
	}
	return f(obj)
}

// define checks the name of an object and adds it. Of two with one name the
// first counts.
func (p *parser) define(kind string, obj metav1.Object, where string, fill func(*object)) error {
	if kind != "Node" && obj.GetNamespace() == "" {
		obj.SetNamespace(metav1.NamespaceDefault)
	}
	key := objectKey{kind, objectID(obj)}
	if err := checkName(key); err != nil {
		return err
	}
	if first, twice := p.seen[key]; twice {
		p.trouble(key.String(), TroubleDuplicate, fmt.Sprintf("document %d defines it too and counts", first))
		return nil
	}
	p.seen[key] = p.number
	o := &object{key: key}
	fill(o)
	p.out.objects = append(p.out.objects, o)
	return nil
}

// checkName asks of names what the API server asks: they go into logs, labels
// and answers over HTTP.
func checkName(k objectKey) error {
	if k.id.Name == "" {
		return fmt.Errorf("%s without a name", k.kind)
	}
	if msgs := validation.IsDNS1123Subdomain(k.id.Name); len(msgs) > 0 {
		return fmt.Errorf("metadata.name %s: %s", quote(k.id.Name), msgs[0])
	}
	if k.kind == "Node" {
		return nil
	}
	if msgs := validation.IsDNS1123Label(k.id.Namespace); len(msgs) > 0 {
		return fmt.Errorf("metadata.namespace %s: %s", quote(k.id.Namespace), msgs[0])
	}
	return nil
}

// ignore notes a kind that has no use here, once a file.
func (p *parser) ignore(kind typeMeta) {
	name := oneLine(kind.Kind + " (" + kind.APIVersion + ")")
	if !p.ignored[name] && len(p.ignored) < listedPerFile {
		p.ignored[name] = true
		p.found.add(Trouble{File: p.file, Object: name, Reason: TroubleIgnoredKind, Message: "objects of this kind are ignored"})
	}
}
