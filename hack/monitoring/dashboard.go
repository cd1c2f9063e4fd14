package monitoring

import (
	"encoding/json"
	"fmt"
)

// panel is a picture, or a number, of some expressions.
type panel struct {
	title, about string // about: what it shows, and what to make of it
	kind         string // timeseries, stat or table
	unit         string // of Grafana's: short, s, pps, Bps, reqps
	width        int    // of 24
	exprs        []series
}

// series is an expression and how what it gives is called.
type series struct{ expr, legend string }

type row struct {
	title  string
	panels []panel
}

// rows are the dashboard, from what is looked at first to what is looked at last.
var rows = []row{
	{"Nodes", []panel{
		{"Agents", "Agents that answer, of those that are scraped.", "stat", "short", 4, []series{
			{`sum(up{job="kube-proxy", container="ipvs-proxy"})`, "answer"}, {`count(up{job="kube-proxy", container="ipvs-proxy"})`, "of"}}},
		{"Frontends", "Addresses with port and protocol that a node serves; the same on all nodes but for node ports.", "stat", "short", 4, []series{
			{`max by (ip_family) (ipvsproxy_frontends{instance=~"$instance"})`, "{{ip_family}}"}}},
		{"Failing", "Frontends that the kernel refuses, on all nodes.", "stat", "short", 4, []series{
			{`sum(ipvsproxy_frontends_failing{instance=~"$instance"})`, "failing"}}},
		{"Stepped back", "Nodes on which another Service proxy is at work: nothing is written there.", "stat", "short", 4, []series{
			{`sum(ipvsproxy_stepped_back{instance=~"$instance"})`, "nodes"}}},
		{"Problems", "Fields of Services and EndpointSlices that cannot be used.", "stat", "short", 4, []series{
			{`sum(max by (reason) (ipvsproxy_problems))`, "problems"}}},
		{"Node problems", "Things that could not be set up, on all nodes.", "stat", "short", 4, []series{
			{`sum(ipvsproxy_node_problems{instance=~"$instance"})`, "problems"}}},
		{"Queue", "Frontends that wait for their turn. It is empty again within a second of a change.", "timeseries", "short", 12, []series{
			{`ipvsproxy_queue_length{instance=~"$instance"}`, "{{instance}}"}}},
		{"Age of what is known of the cluster", "Since the API server's last sign of life.", "timeseries", "s", 12, []series{
			{`ipvsproxy_cluster_age_seconds{instance=~"$instance"}`, "{{instance}}"}}},
	}},
	{"Programming", []panel{
		{"From the change of a pod to the kernel", "Network programming latency, the control plane's part included.", "timeseries", "s", 12, []series{
			{`histogram_quantile(0.5, sum by (le) (rate(kubeproxy_network_programming_duration_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`, "half of them"},
			{`histogram_quantile(0.99, sum by (le) (rate(kubeproxy_network_programming_duration_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`, "99 of 100"}}},
		{"A round of writes", "What the kernel takes for up to 64 frontends.", "timeseries", "s", 12, []series{
			{`histogram_quantile(0.99, sum by (instance, le) (rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`, "{{instance}}"}}},
		{"Not programmed for", "How much newer the last change is than the last time that all was programmed; 0: nothing waits.", "timeseries", "s", 12, []series{
			{`clamp_min(kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{instance=~"$instance"} - (kubeproxy_sync_proxy_rules_last_timestamp_seconds > 0), 0)`, "{{instance}} {{ip_family}}"}}},
		{"Changes heard", "Of Services and of EndpointSlices.", "timeseries", "cps", 12, []series{
			{`sum(rate(kubeproxy_sync_proxy_rules_service_changes_total{instance=~"$instance"}[$__rate_interval]))`, "Services"},
			{`sum(rate(kubeproxy_sync_proxy_rules_endpoint_changes_total{instance=~"$instance"}[$__rate_interval]))`, "EndpointSlices"}}},
		{"Writes", "To the kernel, by what they do.", "timeseries", "wps", 12, []series{
			{`sum by (operation) (rate(ipvsproxy_kernel_writes_total{instance=~"$instance"}[$__rate_interval]))`, "{{operation}}"}}},
		{"Errors of the kernel", "Writes that were refused or not answered.", "timeseries", "wps", 12, []series{
			{`sum by (instance, errno) (rate(ipvsproxy_kernel_errors_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}} {{errno}}"}}},
	}},
	{"Services", []panel{
		{"New connections", "Given to endpoints, of the Services that ask for metrics (annotation ipvs-proxy.io/metrics).", "timeseries", "cps", 12, []series{
			{`sum by (namespace, service, port) (rate(ipvsproxy_service_connections_total{instance=~"$instance", namespace=~"$namespace", service=~"$service"}[$__rate_interval]))`, "{{namespace}}/{{service}} {{port}}"}}},
		{"Connections", "That are established.", "timeseries", "short", 12, []series{
			{`sum by (namespace, service, port) (ipvsproxy_service_active_connections{instance=~"$instance", namespace=~"$namespace", service=~"$service"})`, "{{namespace}}/{{service}} {{port}}"}}},
		{"Traffic", "What clients send (in) and what they are answered (out).", "timeseries", "Bps", 12, []series{
			{`sum by (namespace, service, port, direction) (rate(ipvsproxy_service_bytes_total{instance=~"$instance", namespace=~"$namespace", service=~"$service"}[$__rate_interval]))`, "{{namespace}}/{{service}} {{port}} {{direction}}"}}},
		{"Packets", "Those that were put together by the network card count as one.", "timeseries", "pps", 12, []series{
			{`sum by (namespace, service, port, direction) (rate(ipvsproxy_service_packets_total{instance=~"$instance", namespace=~"$namespace", service=~"$service"}[$__rate_interval]))`, "{{namespace}}/{{service}} {{port}} {{direction}}"}}},
		{"Endpoints", "In a node's kernel: the node that has most of them.", "timeseries", "short", 12, []series{
			{`max by (namespace, service, port, state) (ipvsproxy_service_backends{instance=~"$instance", namespace=~"$namespace", service=~"$service"})`, "{{namespace}}/{{service}} {{port}} {{state}}"}}},
		{"Beginning, ending, and UDP", "Connections that are not established.", "timeseries", "short", 8, []series{
			{`sum by (namespace, service, port) (ipvsproxy_service_inactive_connections{instance=~"$instance", namespace=~"$namespace", service=~"$service"})`, "{{namespace}}/{{service}} {{port}}"}}},
		{"Without metrics", "Services that ask for metrics, and for which serviceMetrics.limit leaves no room.", "stat", "short", 4, []series{
			{`max(ipvsproxy_services_without_metrics)`, "Services"}}},
	}},
	{"Refused and dropped", []panel{
		{"Refused", "The client is told. IPX0301: no Service has this port; IPX0302: no endpoint could serve.", "timeseries", "pps", 12, []series{
			{`sum by (instance, reason) (rate(ipvsproxy_refused_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}} {{reason}}"}}},
		{"Dropped", "In silence. IPX0303: a Local policy leaves no endpoint for the client; IPX0304: outside loadBalancerSourceRanges.", "timeseries", "pps", 12, []series{
			{`sum by (instance, reason) (rate(ipvsproxy_dropped_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}} {{reason}}"}}},
		{"Problems by reason", "docs/reasons.md says what each means and what to do.", "timeseries", "short", 12, []series{
			{`max by (reason) (ipvsproxy_problems) > 0`, "{{reason}}"}}},
		{"Local policy, and no endpoint here", "Services whose packets this node drops, so that load balancers send them elsewhere.", "timeseries", "short", 12, []series{
			{`sum by (instance, traffic_policy) (kubeproxy_sync_proxy_rules_no_local_endpoints_total{instance=~"$instance"})`, "{{instance}} {{traffic_policy}}"}}},
	}},
	{"Kernel", []panel{
		{"Draining", "Real servers at weight 0 that wait for their connections to end, for drainDeadline at most.", "timeseries", "short", 12, []series{
			{`ipvsproxy_draining_real_servers{instance=~"$instance"}`, "{{instance}}"}}},
		{"Changes by others", "To what is the agent's, each put right.", "timeseries", "cps", 12, []series{
			{`rate(ipvsproxy_audit_differences_total{instance=~"$instance"}[$__rate_interval])`, "{{instance}}"}}},
		{"A look for changes", "How long one takes.", "timeseries", "s", 12, []series{
			{`rate(ipvsproxy_audit_duration_seconds_sum{instance=~"$instance"}[$__rate_interval]) / rate(ipvsproxy_audit_duration_seconds_count{instance=~"$instance"}[$__rate_interval])`, "{{instance}}"}}},
		{"Entries of connection tracking deleted", "Those that bypass a new frontend, or lead to an endpoint that has left.", "timeseries", "short", 12, []series{
			{`sum by (instance) (rate(kubeproxy_conntrack_reconciler_deleted_entries_total{instance=~"$instance"}[$__rate_interval]))`, "{{instance}}"}}},
		{"Memory", "Of the agents.", "timeseries", "bytes", 12, []series{
			{`process_resident_memory_bytes{job="kube-proxy", container="ipvs-proxy", instance=~"$instance"}`, "{{instance}}"}}},
		{"Processor", "Of one.", "timeseries", "percentunit", 12, []series{
			{`rate(process_cpu_seconds_total{job="kube-proxy", container="ipvs-proxy", instance=~"$instance"}[$__rate_interval])`, "{{instance}}"}}},
		{"Versions", "Of the agents.", "table", "short", 24, []series{
			{`count by (version, revision, go_version) (ipvsproxy_build_info)`, ""}}},
	}},
}

// object is one of JSON's.
type object = map[string]any

// Dashboard gives the dashboard as Grafana imports it.
func Dashboard() ([]byte, error) {
	source := object{"type": "prometheus", "uid": "${datasource}"}
	var panels []object
	y := 0
	add := func(p object, x, w, h int) {
		p["id"], p["gridPos"] = len(panels)+1, object{"x": x, "y": y, "w": w, "h": h}
		panels = append(panels, p)
	}
	for _, r := range rows {
		add(object{"type": "row", "title": r.title, "collapsed": false, "panels": []object{}}, 0, 24, 1)
		y++
		x, high := 0, 0
		for _, p := range r.panels {
			if x+p.width > 24 {
				x, y = 0, y+high
			}
			high = map[string]int{"stat": 4, "timeseries": 8, "table": 6}[p.kind]
			add(p.object(source), x, p.width, high)
			x += p.width
		}
		y += high
	}
	b, err := json.MarshalIndent(object{
		"title": "ipvs-proxy", "uid": "ipvs-proxy", "tags": []string{"kubernetes", "network"}, "schemaVersion": 39, "editable": true, "refresh": "30s",
		"description": "Nodes, programming latency, traffic of Services, what is refused and dropped, drains. docs/monitoring.md",
		"time":        object{"from": "now-1h", "to": "now"}, "timezone": "browser", "panels": panels,
		"templating": object{"list": append([]object{{"name": "datasource", "label": "data source", "type": "datasource", "query": "prometheus"}},
			variable(source, "instance", "node", `label_values(ipvsproxy_build_info, instance)`),
			variable(source, "namespace", "namespace", `label_values(ipvsproxy_service_connections_total, namespace)`),
			variable(source, "service", "Service", `label_values(ipvsproxy_service_connections_total{namespace=~"$namespace"}, service)`))},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("the dashboard as JSON: %w", err)
	}
	return append(b, '\n'), nil
}

// variable is one that is chosen at the top of the dashboard, all by default.
func variable(source object, name, label, query string) object {
	return object{"name": name, "label": label, "type": "query", "datasource": source, "query": object{"query": query, "refId": name},
		"definition": query, "refresh": 2, "multi": true, "includeAll": true, "allValue": ".*", "sort": 1,
		"current": object{"selected": true, "text": []string{"All"}, "value": []string{"$__all"}}}
}

// object is the panel as Grafana has it.
func (p panel) object(source object) object {
	var targets []object
	for i, s := range p.exprs {
		target := object{"refId": string(rune('A' + i)), "datasource": source, "expr": s.expr, "legendFormat": s.legend}
		if p.kind == "table" {
			target["format"], target["instant"] = "table", true
		}
		targets = append(targets, target)
	}
	custom := object{}
	if p.kind == "timeseries" {
		custom = object{"fillOpacity": 10, "showPoints": "never"}
	}
	return object{"type": p.kind, "title": p.title, "description": p.about, "datasource": source, "targets": targets,
		"fieldConfig": object{"defaults": object{"unit": p.unit, "min": 0, "custom": custom}, "overrides": []object{}},
		"options":     object{}}
}
