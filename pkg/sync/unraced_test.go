//go:build !race

package sync

// modelDefault is what make test has time for; make soak walks a million.
const modelDefault = 20_000
