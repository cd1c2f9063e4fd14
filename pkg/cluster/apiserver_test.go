package cluster

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

// fakeAPI speaks as much of the Kubernetes API as a source needs: lists,
// watches from a resource version, streaming lists, bookmarks, selectors, 410,
// protobuf and JSON, Events.
type fakeAPI struct {
	t      testing.TB
	server *httptest.Server
	addr   string

	mu        sync.Mutex
	rv        int
	oldest    int // watches from before it are answered by 410
	objects   map[string]map[ID]apiObject
	history   []change
	changed   chan struct{} // closed and made anew at each change
	bookmarks int           // bookmarks asked for so far
	cut       chan struct{} // closed: all streams end

	requests  []request
	refuse    func(*http.Request) *metav1.Status // nil: nothing
	streaming bool                               // streaming lists are known
	stored    []*eventsv1.Event
	patches   []string
}

type apiObject interface {
	runtime.Object
	metav1.Object
}

// change is one step of the history.
type change struct {
	rv       int
	resource string
	old, new apiObject // nil: none
}

// request is what was asked.
type request struct {
	resource, auth, accept string
	query                  url.Values
}

func newFakeAPI(t testing.TB) *fakeAPI {
	f := &fakeAPI{t: t, rv: 100, objects: map[string]map[ID]apiObject{}, changed: make(chan struct{}), cut: make(chan struct{}), streaming: true}
	for _, r := range []string{"services", "endpointslices", "nodes"} {
		f.objects[r] = map[ID]apiObject{}
	}
	f.start("127.0.0.1:0")
	t.Cleanup(f.stop)
	return f
}

// start listens, at the address of before when it was stopped.
func (f *fakeAPI) start(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.addr = l.Addr().String()
	f.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(f.serve)}, EnableHTTP2: true}
	f.server.StartTLS()
}

func (f *fakeAPI) stop() {
	f.drop()
	f.server.CloseClientConnections()
	f.server.Close()
}

func (f *fakeAPI) restart() { f.start(f.addr) }

// drop ends all streams.
func (f *fakeAPI) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cutAll()
}

func (f *fakeAPI) cutAll() {
	close(f.cut)
	f.cut = make(chan struct{})
}

func (f *fakeAPI) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func resourceOf(obj runtime.Object) string {
	switch obj.(type) {
	case *corev1.Service:
		return "services"
	case *discoveryv1.EndpointSlice:
		return "endpointslices"
	}
	return "nodes"
}

// set creates or changes objects.
func (f *fakeAPI) set(objs ...apiObject) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, obj := range objs {
		f.rv++
		obj = obj.DeepCopyObject().(apiObject)
		obj.SetResourceVersion(strconv.Itoa(f.rv))
		r, id := resourceOf(obj), ID{obj.GetNamespace(), obj.GetName()}
		f.history = append(f.history, change{f.rv, r, f.objects[r][id], obj})
		f.objects[r][id] = obj
	}
	f.wake()
}

// remove deletes an object.
func (f *fakeAPI) remove(obj apiObject) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rv++
	r, id := resourceOf(obj), ID{obj.GetNamespace(), obj.GetName()}
	f.history = append(f.history, change{f.rv, r, f.objects[r][id], nil})
	delete(f.objects[r], id)
	f.wake()
}

// swap puts others in place of all objects of a resource, as a restored backup
// would: no watch tells of it, and all are cut.
func (f *fakeAPI) swap(resource string, rv int, objs ...apiObject) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rv, f.oldest, f.history = rv, rv, nil
	f.objects[resource] = map[ID]apiObject{}
	for _, obj := range objs {
		obj = obj.DeepCopyObject().(apiObject)
		obj.SetResourceVersion(strconv.Itoa(rv))
		f.objects[resource][ID{obj.GetNamespace(), obj.GetName()}] = obj
	}
	f.cutAll()
}

// compact forgets the history and cuts all watches, so that each has to list
// again.
func (f *fakeAPI) compact() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rv += 10
	f.oldest, f.history = f.rv, nil
	f.cutAll()
}

func (f *fakeAPI) bookmark() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bookmarks++
	f.wake()
}

func (f *fakeAPI) asked(resource string) (out []request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if r.resource == resource {
			out = append(out, r)
		}
	}
	return out
}

func (f *fakeAPI) serve(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	resource := path[len(path)-1]
	f.mu.Lock()
	f.requests = append(f.requests, request{resource, r.Header.Get("Authorization"), r.Header.Get("Accept"), r.URL.Query()})
	refuse := f.refuse
	f.mu.Unlock()
	if refuse != nil {
		if status := refuse(r); status != nil {
			f.answer(w, r, int(status.Code), status)
			return
		}
	}
	if r.Method != http.MethodGet {
		f.write(w, r)
		return
	}
	q := r.URL.Query()
	watching := q.Get("watch") == "true" || q.Get("watch") == "1"
	f.mu.Lock()
	streaming := f.streaming
	f.mu.Unlock()
	switch {
	case watching && q.Get("sendInitialEvents") == "true" && !streaming:
		f.answer(w, r, 422, &metav1.Status{Status: "Failure", Reason: metav1.StatusReasonInvalid, Code: 422, Message: "sendInitialEvents is forbidden"})
	case watching:
		f.watch(w, r, resource)
	default:
		f.list(w, r, resource)
	}
}

func versionOf(r *http.Request) schema.GroupVersion {
	switch {
	case strings.HasPrefix(r.URL.Path, "/apis/discovery.k8s.io/"):
		return discoveryv1.SchemeGroupVersion
	case strings.HasPrefix(r.URL.Path, "/apis/events.k8s.io/"):
		return eventsv1.SchemeGroupVersion
	}
	return corev1.SchemeGroupVersion
}

// media is how a client wants to be answered: the first type that it names.
func media(r *http.Request) runtime.SerializerInfo {
	first, _, _ := strings.Cut(r.Header.Get("Accept"), ",")
	info, ok := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), strings.TrimSpace(first))
	if !ok {
		info, _ = runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeJSON)
	}
	return info
}

func (f *fakeAPI) answer(w http.ResponseWriter, r *http.Request, code int, obj runtime.Object) {
	info := media(r)
	w.Header().Set("Content-Type", info.MediaType)
	w.WriteHeader(code)
	version := versionOf(r)
	if _, ok := obj.(*metav1.Status); ok {
		version = schema.GroupVersion{Version: "v1"}
	}
	if err := codecs.EncoderForVersion(info.Serializer, version).Encode(obj, w); err != nil {
		f.t.Errorf("encoding %T: %v", obj, err)
	}
}

// selects is what the selectors of a request let through.
func selects(t testing.TB, q url.Values) func(apiObject) bool {
	ls, err := labels.Parse(q.Get("labelSelector"))
	if err != nil {
		t.Error(err)
	}
	fs, err := fields.ParseSelector(q.Get("fieldSelector"))
	if err != nil {
		t.Error(err)
	}
	return func(obj apiObject) bool {
		if obj == nil {
			return false
		}
		set := fields.Set{"metadata.name": obj.GetName()}
		if s, ok := obj.(*corev1.Service); ok {
			set["spec.clusterIP"] = s.Spec.ClusterIP
		}
		return ls.Matches(labels.Set(obj.GetLabels())) && fs.Matches(set)
	}
}

// selected are the objects of a resource, sorted, and the version of them.
func (f *fakeAPI) selected(resource string, ok func(apiObject) bool) (out []apiObject, rv int) {
	for _, obj := range f.objects[resource] {
		if ok(obj) {
			out = append(out, obj)
		}
	}
	slices.SortFunc(out, func(a, b apiObject) int {
		return strings.Compare(a.GetNamespace()+"/"+a.GetName(), b.GetNamespace()+"/"+b.GetName())
	})
	return out, f.rv
}

func (f *fakeAPI) list(w http.ResponseWriter, r *http.Request, resource string) {
	var list runtime.Object
	switch resource {
	case "services":
		list = &corev1.ServiceList{}
	case "endpointslices":
		list = &discoveryv1.EndpointSliceList{}
	default:
		list = &corev1.NodeList{}
	}
	f.mu.Lock()
	objs, rv := f.selected(resource, selects(f.t, r.URL.Query()))
	f.mu.Unlock()
	var items []runtime.Object
	for _, o := range objs {
		items = append(items, o)
	}
	if err := meta.SetList(list, items); err != nil {
		f.t.Error(err)
	}
	m, _ := meta.ListAccessor(list)
	m.SetResourceVersion(strconv.Itoa(rv))
	f.answer(w, r, http.StatusOK, list)
}

func emptyOf(resource string) apiObject {
	return map[string]apiObject{"services": &corev1.Service{}, "endpointslices": &discoveryv1.EndpointSlice{}, "nodes": &corev1.Node{}}[resource]
}

// watch answers a watch until the client goes or the streams are cut.
func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request, resource string) {
	info, q := media(r), r.URL.Query()
	w.Header().Set("Content-Type", info.MediaType+";stream=watch")
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	frames := info.StreamSerializer.Framer.NewFrameWriter(w)
	outer := codecs.EncoderForVersion(info.StreamSerializer.Serializer, schema.GroupVersion{Version: "v1"})
	inner := codecs.EncoderForVersion(info.Serializer, versionOf(r))
	if info.MediaType == runtime.ContentTypeJSON {
		frames = w
	}
	send := func(kind watch.EventType, obj runtime.Object) bool {
		if _, status := obj.(*metav1.Status); status {
			inner = codecs.EncoderForVersion(info.Serializer, schema.GroupVersion{Version: "v1"})
		}
		raw, err := runtime.Encode(inner, obj)
		if err != nil {
			f.t.Errorf("encoding %T: %v", obj, err)
			return false
		}
		return outer.Encode(&metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: raw}}, frames) == nil
	}
	mark := func(rv int, end bool) bool {
		obj := emptyOf(resource)
		obj.SetResourceVersion(strconv.Itoa(rv))
		if end {
			obj.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		}
		return send(watch.Bookmark, obj)
	}

	ok := selects(f.t, q)
	f.mu.Lock()
	cut, marks := f.cut, f.bookmarks
	var initial []apiObject
	at, _ := strconv.Atoi(q.Get("resourceVersion"))
	fresh := q.Get("sendInitialEvents") == "true" || at == 0
	tooOld := at < f.oldest && !fresh
	if fresh {
		initial, at = f.selected(resource, ok)
	}
	f.mu.Unlock()
	if tooOld {
		send(watch.Error, &metav1.Status{Status: "Failure", Code: http.StatusGone, Reason: metav1.StatusReasonExpired, Message: "too old resource version"})
		return
	}
	for _, obj := range initial {
		if !send(watch.Added, obj) {
			return
		}
	}
	if fresh && !mark(at, true) {
		return
	}
	for {
		w.(http.Flusher).Flush()
		f.mu.Lock()
		if cut != f.cut {
			f.mu.Unlock()
			return
		}
		changed, bookmarks := f.changed, f.bookmarks
		var news []change
		for _, c := range f.history {
			if c.rv > at && c.resource == resource {
				news = append(news, c)
			}
		}
		rv := f.rv
		f.mu.Unlock()
		for _, c := range news {
			at = c.rv
			was, is := c.old != nil && ok(c.old), c.new != nil && ok(c.new)
			sent := true
			switch {
			case is && was:
				sent = send(watch.Modified, c.new)
			case is:
				sent = send(watch.Added, c.new)
			case was:
				sent = send(watch.Deleted, c.old)
			}
			if !sent {
				return
			}
		}
		if bookmarks > marks {
			marks = bookmarks
			at = rv
			if !mark(rv, false) {
				return
			}
			continue
		}
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// write takes Events.
func (f *fakeAPI) write(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Method == http.MethodPatch {
		f.patches = append(f.patches, fmt.Sprintf("%s %s", r.URL.Path, body))
		f.answer(w, r, http.StatusOK, &eventsv1.Event{})
		return
	}
	obj, err := runtime.Decode(codecs.UniversalDeserializer(), body)
	if err != nil {
		f.t.Errorf("%s %s: %v", r.Method, r.URL, err)
		return
	}
	event := obj.(*eventsv1.Event)
	f.stored = append(f.stored, event)
	f.answer(w, r, http.StatusCreated, event)
}
