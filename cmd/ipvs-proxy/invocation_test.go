package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

func TestArguments(t *testing.T) {
	for _, c := range []struct{ argv, want string }{
		{"/usr/local/bin/kube-proxy --config=/var/lib/kube-proxy/config.conf --hostname-override=n", "run --config=/var/lib/kube-proxy/config.conf --hostname-override=n"},
		{"kube-proxy", "run"},
		{"kube-proxy --help", "run --help"},
		{"kube-proxy -v 4", "run -v 4"},
		{"kube-proxy init", "init"}, // an init container that only adds to the command
		{"ipvs-proxy --config=c", "run --config=c"},
		{"ipvs-proxy --version", "run --version"},
		{"ipvs-proxy", ""},
		{"ipvs-proxy -h", "-h"},
		{"ipvs-proxy --help", "--help"},
		{"ipvs-proxy run --config c", "run --config c"},
		{"ipvs-proxy explain 10.0.0.1 -> 10.96.0.10:53/udp -o json", "explain 10.0.0.1 to 10.96.0.10:53/udp -o json"},
		{"ipvs-proxy explain default/web -o json", "explain default/web -o json"},
		{"/usr/local/bin/ipvs-proxy check --config=c", "check --config=c"},
	} {
		if got := arguments(strings.Fields(c.argv)); !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s: %q, want %q", c.argv, got, c.want)
		}
	}
	if got := arguments(nil); len(got) != 0 {
		t.Errorf("no name at all: %q", got)
	}
}

// The schedulers that a configuration may name without a warning are those that the kernel's door knows.
func TestSchedulersAgree(t *testing.T) {
	if !slices.Equal(config.Schedulers, kernel.Schedulers) {
		t.Errorf("config knows %q, the kernel's door %q", config.Schedulers, kernel.Schedulers)
	}
}
