package cluster

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// store is where a reflector puts the objects of one kind. Each becomes
// compact on its way in, in a streaming list as well (that is what a
// cache.TransformingStore is for), so that of the API's types no more is ever
// held than what is being decoded. What exists is known by the Model's own
// keys; there is no second index.
type store struct {
	kind  string // as objectKey has it
	model *Model
	heard func() // there was news, or word that there is none
	full  func() // the first complete list is in the Model
	took  func(*object)
}

var (
	_ cache.TransformingStore      = (*store)(nil)
	_ cache.ReflectorBookmarkStore = (*store)(nil)
)

// Transformer gives reflectors the function that makes objects compact.
func (s *store) Transformer() cache.TransformFunc { return s.compact }

// compact makes an object compact. One that is compact already stays as it is:
// a streaming list arrives in Replace that way.
func (s *store) compact(obj any) (any, error) {
	switch obj := obj.(type) {
	case *object:
		return obj, nil
	case *corev1.Service:
		o := &object{key: objectKey{"Service", objectID(obj)}}
		o.svc, o.problems = sanitiseService(obj, s.model.opt)
		return o, nil
	case *discoveryv1.EndpointSlice:
		return &object{key: objectKey{"EndpointSlice", objectID(obj)}, slice: sanitiseSlice(obj)}, nil
	case *corev1.Node:
		o := &object{key: objectKey{"Node", objectID(obj)}}
		if obj.Name == s.model.opt.NodeName {
			node, problems := sanitiseNode(obj)
			o.node, o.problems = &node, problems
		}
		return o, nil
	}
	return nil, fmt.Errorf("%T: want a %s", obj, s.kind)
}

// Add takes an object as it is now.
func (s *store) Add(obj any) error { return s.Update(obj) }

// Update takes an object as it is now.
func (s *store) Update(obj any) error {
	if err := s.put(obj); err != nil {
		return err
	}
	s.heard()
	return nil
}

func (s *store) put(obj any) error {
	small, err := s.compact(obj)
	if err != nil {
		return err
	}
	o := small.(*object)
	s.model.put(o)
	s.took(o)
	return nil
}

// Delete forgets an object. Of what it was last only the name counts.
func (s *store) Delete(obj any) error {
	named, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("%T: want a %s", obj, s.kind)
	}
	s.model.drop(objectKey{s.kind, objectID(named)})
	s.heard()
	return nil
}

// Replace takes a complete list: what is not in it is gone. What is new comes
// before what is old goes, so that a Service whose slices have got other names
// is never without endpoints. An empty list counts like any other: unlike a
// directory, the API server gives lists completely or not at all.
func (s *store) Replace(list []any, _ string) error {
	keep := make(map[ID]struct{}, len(list))
	for i, obj := range list {
		list[i] = nil // what one page of a plain list has of the API's types can be freed
		small, err := s.compact(obj)
		if err != nil {
			return err
		}
		keep[small.(*object).key.id] = struct{}{}
		if err := s.put(small); err != nil {
			return err
		}
	}
	s.model.prune(s.kind, keep)
	s.heard()
	s.full()
	return nil
}

// Bookmark is word from the API server that there was no news.
func (s *store) Bookmark(string) error { s.heard(); return nil }

// Resync has nothing to do: the loop looks at the kernel by itself.
func (s *store) Resync() error { return nil }
