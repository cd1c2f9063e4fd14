package main

import (
	"fmt"
	"runtime/debug"
	"strconv"
)

// memoryVariable is the environment variable in which the manifests hand on how much memory the container may have, in
// bytes (resourceFieldRef limits.memory).
const memoryVariable = "IPVS_PROXY_MEMORY_LIMIT"

// leastMemory is a container's least memory, in bytes, with which a limit for the collector makes sense: below it the
// agent would do nothing but collect.
const leastMemory = 32 << 20

// limitMemory has Go collect its garbage rather than let the container come to its end: it may use nine tenths of what
// the container may. The rest is for what Go does not count: the program itself, and what the kernel holds for the
// container, such as the buffers of its sockets. GOMEMLIMIT, which Go reads by itself, comes first. Warnings say why a
// limit cannot be used; the agent then runs without.
func limitMemory(getenv func(string) string) (warnings []string) {
	text := getenv(memoryVariable)
	if text == "" || getenv("GOMEMLIMIT") != "" {
		return nil
	}
	limit, err := strconv.ParseInt(text, 10, 64)
	if err != nil || limit < leastMemory {
		return []string{fmt.Sprintf("%s=%s has no effect: want bytes, %d at least (the divisor of the resourceFieldRef is 1)", memoryVariable, text, leastMemory)}
	}
	debug.SetMemoryLimit(limit / 10 * 9)
	return nil
}
