package main

import (
	"math"
	"runtime/debug"
	"strings"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	was := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(was)
	for _, c := range []struct {
		limit, own string
		want       int64
		warned     string
	}{
		{"", "", math.MaxInt64, ""},
		{"536870912", "", 536870912 / 10 * 9, ""}, // 512Mi
		{"536870912", "100MiB", math.MaxInt64, ""},
		{"512", "", math.MaxInt64, "IPVS_PROXY_MEMORY_LIMIT=512 has no effect"}, // a divisor of 1Mi
		{"512Mi", "", math.MaxInt64, "IPVS_PROXY_MEMORY_LIMIT=512Mi has no effect"},
		{"-1", "", math.MaxInt64, "IPVS_PROXY_MEMORY_LIMIT=-1 has no effect"},
	} {
		debug.SetMemoryLimit(math.MaxInt64)
		env := map[string]string{"IPVS_PROXY_MEMORY_LIMIT": c.limit, "GOMEMLIMIT": c.own}
		warned := strings.Join(limitMemory(func(name string) string { return env[name] }), "\n")
		if got := debug.SetMemoryLimit(-1); got != c.want {
			t.Errorf("%v: Go's limit is %d, want %d", env, got, c.want)
		}
		if !strings.HasPrefix(warned, c.warned) || (warned == "") != (c.warned == "") {
			t.Errorf("%v: %q, want %q", env, warned, c.warned)
		}
	}
}
