// Package monitoring makes the dashboard of manifests/monitoring, and tests what stands there with Prometheus itself: each
// rule by promtool's kind of unit test, and each expression on what a real agent says. It is a module of its own because
// Prometheus takes minutes to compile.
package monitoring
