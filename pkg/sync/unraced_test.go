//go:build !race

package sync

const modelDefault = 100_000
