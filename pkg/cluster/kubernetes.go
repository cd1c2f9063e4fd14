package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

// The reasons of Troubles with an API server, beside [TroubleAPIServer].
const (
	// TroubleClusterIP: it is reached through a ClusterIP, which this process
	// itself has to program.
	TroubleClusterIP = "ClusterIP"
	// TroubleEvents: it does not take Events; said once.
	TroubleEvents = "Events"
)

// The API's types that are spoken here, and no others: client-go's clientset
// would bring those of all groups into the binary.
var (
	scheme = runtime.NewScheme()
	codecs = serializer.NewCodecFactory(scheme)
)

func init() {
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, eventsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err) // two types under one name: a mistake in this program
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
}

// watched is a kind of objects with the part of it that is asked for.
type watched struct {
	kind, resource string
	group          schema.GroupVersion
	example        runtime.Object
	fields, labels string
}

// headlessLabel stands on the EndpointSlices of headless Services.
const headlessLabel = corev1.IsHeadlessService

// wantedKinds is what a node needs of the cluster: all Services with a
// ClusterIP and all EndpointSlices that are not of headless Services, whoever
// serves them (nobody may have another's ClusterIP or pod, and
// default/kubernetes says where the API server is), and the own Node.
func wantedKinds(opt Options) []watched {
	return []watched{
		{kind: "Service", resource: "services", group: corev1.SchemeGroupVersion, example: &corev1.Service{},
			fields: fields.OneTermNotEqualSelector("spec.clusterIP", corev1.ClusterIPNone).String()},
		{kind: "EndpointSlice", resource: "endpointslices", group: discoveryv1.SchemeGroupVersion, example: &discoveryv1.EndpointSlice{},
			labels: "!" + headlessLabel},
		{kind: "Node", resource: "nodes", group: corev1.SchemeGroupVersion, example: &corev1.Node{},
			fields: fields.OneTermEqualSelector("metadata.name", opt.NodeName).String()},
	}
}

// Kubernetes is a source: it feeds a Model from the API server, by one
// streaming list with the watch behind it for each of Services, EndpointSlices
// and the own Node.
//
// Nothing that happens to the API server takes anything away: only complete
// lists and deletions that it tells of do. It need not be there at the start.
type Kubernetes struct {
	model   *Model
	contact *contact
	kinds   []watched
	clients map[schema.GroupVersion]*rest.RESTClient
	events  *Events
	backoff wait.Backoff

	mu   sync.Mutex
	full map[string]bool // kinds of which there was a complete list
}

// NewKubernetes makes a source for m. Report is called with a [Trouble] when
// one appears and when it is over, from any goroutine; nil is allowed. The
// error is about conn: nothing is asked of the API server before Run.
func NewKubernetes(conn Connection, m *Model, report func(error)) (*Kubernetes, error) {
	cfg, inCluster, err := conn.load()
	if err != nil {
		return nil, err
	}
	if report == nil {
		report = func(error) {}
	}
	k := &Kubernetes{model: m, kinds: wantedKinds(m.opt), full: map[string]bool{}, clients: map[schema.GroupVersion]*rest.RESTClient{},
		// client-go's own pauses grow to 60 s, which would be too long for a watch to be back within 60 s.
		backoff: wait.Backoff{Duration: 800 * time.Millisecond, Cap: 20 * time.Second, Steps: 25, Factor: 2, Jitter: 1}}
	var names []string
	for _, w := range k.kinds {
		names = append(names, w.kind)
	}
	k.contact = newContact(cfg.Host, names, report)
	if err := k.connect(cfg); err != nil {
		return nil, err
	}
	k.events = newEvents(k.clients[eventsv1.SchemeGroupVersion], m, func(err error) {
		k.contact.add(Trouble{Object: "Events", Reason: TroubleEvents, Message: "some are not written: " + reason(err)})
	})
	host := hostOf(cfg.Host)
	if addr, err := netip.ParseAddr(host); err == nil {
		k.foundServers([]netip.Addr{addr})
	}
	if inCluster && servicesOwn() {
		k.ownAddress(ID{"default", "kubernetes"}, host, "KUBERNETES_SERVICE_HOST")
	}
	return k, nil
}

// connect makes the clients, which share one transport and one limit.
func (k *Kubernetes) connect(cfg *rest.Config) error {
	for _, list := range []string{cfg.ContentType, cfg.AcceptContentTypes} {
		for t := range strings.SplitSeq(list, ",") {
			if err := checkContentType(t); err != nil {
				return err
			}
		}
	}
	cfg.Dial = newDialer(k.foundServers).dial
	readTokenAgain(cfg)
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper { return witness{rt, k} })
	cfg.NegotiatedSerializer = codecs.WithoutConversion()
	httpClient, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return fmt.Errorf("connection to the API server %s: %w", cfg.Host, err)
	}
	for _, group := range []schema.GroupVersion{corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, eventsv1.SchemeGroupVersion} {
		of := rest.CopyConfig(cfg)
		of.GroupVersion, of.APIPath = &group, "/apis"
		if group.Group == "" {
			of.APIPath = "/api"
		}
		if k.clients[group], err = rest.RESTClientForConfigAndClient(of, httpClient); err != nil {
			return fmt.Errorf("connection to the API server %s: %w", cfg.Host, err)
		}
		cfg.RateLimiter = k.clients[group].GetRateLimiter()
	}
	return nil
}

// checkContentType refuses what cannot be decoded.
func checkContentType(t string) error {
	t, _, _ = strings.Cut(strings.TrimSpace(t), ";")
	known := []string{"", "*/*"}
	for _, info := range codecs.SupportedMediaTypes() {
		known = append(known, info.MediaType)
	}
	if !slices.Contains(known, t) {
		return fmt.Errorf("content type %q: want %s or %s", t, runtime.ContentTypeProtobuf, runtime.ContentTypeJSON)
	}
	return nil
}

// Run follows the cluster until ctx ends, which is no error, and marks the
// Model synced and complete when it has the first complete list of each kind.
// Run once only.
func (k *Kubernetes) Run(ctx context.Context) error {
	// client-go logs each attempt; what there is to say the contact says.
	ctx = klog.NewContext(ctx, logr.Discard())
	var all sync.WaitGroup
	for _, w := range k.kinds {
		all.Go(func() { k.reflector(ctx, w).RunWithContext(ctx) })
	}
	all.Go(func() { k.events.run(ctx) })
	all.Wait()
	return nil
}

// LogTo has what client-go logs by itself, of things that concern no attempt of ours, go to a function in place of standard
// error. It is for the whole process, and for its beginning.
func LogTo(say func(text string)) {
	klog.SetLogger(funcr.New(func(_, text string) { say(text) }, funcr.Options{}))
}

// Server is the API server's address as it is configured, a URL as a rule.
func (k *Kubernetes) Server() string { return k.contact.server }

// Events sends Events about Services to the same API server, while Run runs.
func (k *Kubernetes) Events() *Events { return k.events }

// Age is how old the cluster's state in the Model may be: the time since the
// API server last spoke of Services, EndpointSlices or the own Node, whichever
// it did so longest ago of, by a complete list, an event, or a bookmark, which
// says that there was none. Bookmarks come about once a minute: on a quiet
// cluster the age goes up to that and starts anew, and more than 3 min mean that
// something is wrong. An open connection, which may be answered by an API server
// that itself has no news, does not make the state younger. Before the first
// complete lists it is the time since the source was made.
func (k *Kubernetes) Age() time.Duration { return k.contact.age() }

// Reachable reports whether the API server took the last request about each
// kind of objects. A connection that died silently shows after 45 s; before the
// first request it is true.
func (k *Kubernetes) Reachable() bool { return k.contact.reachable() }

func (k *Kubernetes) reflector(ctx context.Context, w watched) *cache.Reflector {
	s := &store{kind: w.kind, model: k.model, took: k.took(w.kind), heard: func() { k.contact.hear(w.kind) }, full: func() { k.listed(w.kind) }}
	quiet := logr.Discard()
	backoff := k.backoff
	return cache.NewReflectorWithOptions(k.listWatch(w), w.example, s, cache.ReflectorOptions{
		Logger: &quiet, Name: w.resource, Backoff: &backoff, Clock: stoppable{ctx: ctx},
	})
}

// listWatch asks for a kind of objects.
func (k *Kubernetes) listWatch(w watched) *cache.ListWatch {
	request := func(opt *metav1.ListOptions) *rest.Request {
		opt.FieldSelector, opt.LabelSelector = w.fields, w.labels
		return k.clients[w.group].Get().Resource(w.resource).VersionedParams(opt, metav1.ParameterCodec)
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opt metav1.ListOptions) (runtime.Object, error) {
			list, err := request(&opt).Do(ctx).Get()
			k.asked(ctx, w.kind, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opt metav1.ListOptions) (watch.Interface, error) {
			opt.Watch = true
			stream, err := request(&opt).Watch(ctx)
			if opt.SendInitialEvents != nil && apierrors.IsInvalid(err) {
				return stream, err // an API server without streaming lists: a plain one follows
			}
			k.asked(ctx, w.kind, err)
			return stream, err
		},
	}
}

// asked notes an answer that is a refusal or makes no sense. Requests that get
// no answer, and those that are granted, the witness notes: client-go makes an
// empty stream of some of the former.
func (k *Kubernetes) asked(ctx context.Context, kind string, err error) {
	if unanswered := (*url.Error)(nil); err != nil && !errors.As(err, &unanswered) {
		k.failed(ctx, kind, err)
	}
}

// witness notes of each request about objects whether there was an answer.
type witness struct {
	http.RoundTripper
	k *Kubernetes
}

func (l witness) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(r)
	for _, w := range l.k.kinds {
		switch {
		case path.Base(r.URL.Path) != w.resource:
		case err != nil:
			l.k.failed(r.Context(), w.kind, err)
		case resp.StatusCode == http.StatusOK:
			l.k.contact.answered(w.kind)
		}
	}
	return resp, err
}

// failed notes why a request failed. That the state asked for is too old is no
// fault, nor that we end.
func (k *Kubernetes) failed(ctx context.Context, kind string, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
		return
	}
	k.contact.failed(kind, err)
}

// listed notes a complete list of one kind.
func (k *Kubernetes) listed(kind string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.full[kind] = true
	if len(k.full) == len(k.kinds) {
		k.model.SetSynced()
		k.model.SetComplete()
	}
}

// foundServers takes over addresses of the API server.
func (k *Kubernetes) foundServers(addrs []netip.Addr) {
	for _, a := range k.model.AddAPIServers(usable(addrs)) {
		for _, id := range k.model.withClusterIP(a) {
			k.ownAddress(id, a.String(), "the kubeconfig")
		}
	}
}

// took is what is done with each object beside putting it into the Model.
func (k *Kubernetes) took(kind string) func(*object) {
	if kind == "Service" {
		return k.checkClusterIPs
	}
	return func(*object) {}
}

// checkClusterIPs looks whether a Service has the address by which the API
// server is reached.
func (k *Kubernetes) checkClusterIPs(o *object) {
	if o.svc == nil || o.svc.Foreign {
		return
	}
	for _, a := range o.svc.ClusterIPs {
		if k.model.isAPIServer(a) {
			k.ownAddress(o.svc.ID, a.String(), "the kubeconfig")
		}
	}
}

// ownAddress says that the agent depends on itself.
func (k *Kubernetes) ownAddress(id ID, host, from string) {
	k.contact.add(Trouble{Object: "API server " + k.contact.server, Reason: TroubleClusterIP,
		Message: fmt.Sprintf("%s, which is from %s, is the ClusterIP of Service %s, and serving that takes this very process: after "+
			"a reboot, with nothing in the kernel, the node will not come up; name the API server by an address of its own", host, from, id)})
}

// stoppable is a clock whose pauses end with ctx: client-go waits for some of
// them without looking at it.
type stoppable struct {
	clock.RealClock
	ctx context.Context
}

func (s stoppable) After(d time.Duration) <-chan time.Time {
	out := make(chan time.Time, 1)
	go func() {
		select {
		case t := <-time.After(d):
			out <- t
		case <-s.ctx.Done():
			out <- time.Now()
		}
	}()
	return out
}
