package main

import (
	"path/filepath"
	"slices"
	"strings"
)

// arguments is the command line with the subcommand run filled in where kube-proxy's users leave it out: when the
// program is called by the name of kube-proxy, which knows flags only, and when the first argument is a flag.
// So a DaemonSet made for kube-proxy keeps its command. "ipvs-proxy" alone, and asking for help, stays as it is.
func arguments(argv []string) []string {
	if len(argv) == 0 {
		return nil
	}
	args := argv[1:]
	asKubeProxy := filepath.Base(argv[0]) == "kube-proxy"
	switch {
	case len(args) == 0 && asKubeProxy:
	case len(args) > 0 && strings.HasPrefix(args[0], "-") && (asKubeProxy || args[0] != "-h" && args[0] != "--help"):
	case len(args) > 0 && args[0] == "explain":
		return withoutArrow(args)
	default:
		return args
	}
	return append([]string{"run"}, args...)
}

// withoutArrow says "to" for an arrow that stands by itself between two addresses, which would be taken for a flag.
func withoutArrow(args []string) []string {
	args = slices.Clone(args)
	if i := slices.Index(args, "->"); i > 1 {
		args[i] = "to"
	}
	return args
}
