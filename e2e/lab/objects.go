package lab

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Object is a Kubernetes object that a Cluster can write: Service or Slice.
type Object interface {
	// file is the name of the object's file, without its ending.
	file() string
	document() map[string]any
}

// Port is a port of a Service or of a slice.
type Port struct {
	Name       string
	Protocol   string // "" means TCP
	Port       uint16 // of the Service
	TargetPort uint16 // of the pods; 0 means Port
	NodePort   uint16
}

func (p Port) protocol() string {
	if p.Protocol == "" {
		return "TCP"
	}
	return p.Protocol
}

func (p Port) target() uint16 {
	if p.TargetPort == 0 {
		return p.Port
	}
	return p.TargetPort
}

// Service describes a Service.
type Service struct {
	Namespace   string // "" means default
	Name        string
	Type        string   // "" means ClusterIP
	ClusterIPs  []string // the families follow from them; "None" is headless
	Ports       []Port
	Labels      map[string]string
	Annotations map[string]string
	Selector    map[string]string // nil means app: NAME
	Created     time.Time         // not written when zero
	// Spec and Status hold any other field, named as in YAML; Spec's win.
	Spec   map[string]any
	Status map[string]any
}

func (s Service) file() string { return fileName("service", s.Namespace, s.Name) }

func (s Service) document() map[string]any {
	selector := s.Selector
	if selector == nil {
		selector = map[string]string{"app": s.Name}
	}
	spec := map[string]any{
		"type":                  orDefault(s.Type, "ClusterIP"),
		"ports":                 s.ports(),
		"selector":              selector,
		"sessionAffinity":       "None",
		"internalTrafficPolicy": "Cluster",
	}
	if s.Type == "NodePort" || s.Type == "LoadBalancer" {
		spec["externalTrafficPolicy"] = "Cluster"
	}
	if len(s.ClusterIPs) > 0 {
		spec["clusterIP"] = s.ClusterIPs[0]
		spec["clusterIPs"] = s.ClusterIPs
		spec["ipFamilies"], spec["ipFamilyPolicy"] = families(s.ClusterIPs)
	}
	maps.Copy(spec, s.Spec)
	status := s.Status
	if status == nil {
		status = map[string]any{"loadBalancer": map[string]any{}}
	}
	meta := metadata(s.Namespace, s.Name, s.Labels, s.Annotations)
	if !s.Created.IsZero() {
		meta["creationTimestamp"] = s.Created.UTC().Format(time.RFC3339)
	}
	return map[string]any{
		"apiVersion": "v1",
		"kind":       "Service",
		"metadata":   meta,
		"spec":       spec,
		"status":     status,
	}
}

func (s Service) ports() []map[string]any {
	var ports []map[string]any
	for _, p := range s.Ports {
		m := map[string]any{"port": p.Port, "protocol": p.protocol(), "targetPort": p.target()}
		if p.Name != "" {
			m["name"] = p.Name
		}
		if p.NodePort != 0 {
			m["nodePort"] = p.NodePort
		}
		ports = append(ports, m)
	}
	return ports
}

func families(ips []string) ([]string, string) {
	var f []string
	for _, ip := range ips {
		if strings.Contains(ip, ":") {
			f = append(f, "IPv6")
		} else {
			f = append(f, "IPv4")
		}
	}
	if len(f) > 1 {
		return f, "RequireDualStack"
	}
	return f, "SingleStack"
}

// Endpoint is one endpoint of a slice. Conditions that are nil are not written.
type Endpoint struct {
	Addr                        netip.Addr
	Node                        string
	Ready, Serving, Terminating *bool
	Pod                         string // targetRef
	Zone                        string
	ForZones, ForNodes          []string // hints
}

// Slice describes an EndpointSlice.
type Slice struct {
	Namespace string // "" means default
	Service   string
	Name      string // "" means SERVICE-ipv4 or SERVICE-ipv6
	Family    int    // 4 or 6
	Ports     []Port // as those of the Service: the target is what is written
	Endpoints []Endpoint
	Labels    map[string]string
	// Annotations of the slice.
	Annotations map[string]string
}

func (s Slice) name() string {
	return orDefault(s.Name, fmt.Sprintf("%s-ipv%d", s.Service, s.Family))
}

func (s Slice) file() string { return fileName("endpointslice", s.Namespace, s.name()) }

func (s Slice) document() map[string]any {
	labels := map[string]string{
		"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
		"kubernetes.io/service-name":             s.Service,
	}
	maps.Copy(labels, s.Labels)
	ports := []map[string]any{}
	for _, p := range s.Ports {
		ports = append(ports, map[string]any{"name": p.Name, "port": p.target(), "protocol": p.protocol()})
	}
	endpoints := []map[string]any{}
	for _, e := range s.Endpoints {
		endpoints = append(endpoints, e.document())
	}
	return map[string]any{
		"apiVersion":  "discovery.k8s.io/v1",
		"kind":        "EndpointSlice",
		"metadata":    metadata(s.Namespace, s.name(), labels, s.Annotations),
		"addressType": fmt.Sprintf("IPv%d", s.Family),
		"ports":       ports,
		"endpoints":   endpoints,
	}
}

func (e Endpoint) document() map[string]any {
	conditions := map[string]any{}
	for name, value := range map[string]*bool{"ready": e.Ready, "serving": e.Serving, "terminating": e.Terminating} {
		if value != nil {
			conditions[name] = *value
		}
	}
	m := map[string]any{"addresses": []string{e.Addr.String()}, "conditions": conditions}
	if e.Node != "" {
		m["nodeName"] = e.Node
	}
	if e.Zone != "" {
		m["zone"] = e.Zone
	}
	if e.Pod != "" {
		m["targetRef"] = map[string]any{"kind": "Pod", "name": e.Pod, "namespace": "default"}
	}
	hints := map[string]any{}
	for key, names := range map[string][]string{"forZones": e.ForZones, "forNodes": e.ForNodes} {
		var list []map[string]any
		for _, n := range names {
			list = append(list, map[string]any{"name": n})
		}
		if list != nil {
			hints[key] = list
		}
	}
	if len(hints) > 0 {
		m["hints"] = hints
	}
	return m
}

// SlicesFor gives the IPv4 and the IPv6 slice of a Service whose endpoints are
// the given pods, all of them ready.
func (w *World) SlicesFor(s Service, pods ...*Pod) (v4, v6 Slice) {
	slice := func(family int) Slice {
		sl := Slice{Namespace: s.Namespace, Service: s.Name, Family: family, Ports: s.Ports}
		for _, p := range pods {
			yes, no := true, false
			sl.Endpoints = append(sl.Endpoints, Endpoint{Addr: p.Addr(family), Node: p.Node.Name, Pod: p.Name,
				Ready: &yes, Serving: &yes, Terminating: &no})
		}
		return sl
	}
	return slice(4), slice(6)
}

// YAML prints an object as kubectl does.
func YAML(o Object) (string, error) {
	b, err := yaml.Marshal(o.document())
	if err != nil {
		return "", fmt.Errorf("%s as YAML: %w", o.file(), err)
	}
	return string(b), nil
}

func metadata(namespace, name string, labels, annotations map[string]string) map[string]any {
	m := map[string]any{"name": name, "namespace": orDefault(namespace, "default")}
	if len(labels) > 0 {
		m["labels"] = labels
	}
	if len(annotations) > 0 {
		m["annotations"] = annotations
	}
	return m
}

func fileName(kind, namespace, name string) string {
	return fmt.Sprintf("%s.%s.%s", kind, orDefault(namespace, "default"), name)
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
