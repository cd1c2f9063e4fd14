//go:build !race

package sync

const defaultSequences = 100_000
