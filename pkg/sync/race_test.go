//go:build race

package sync

// defaultSequences of TestModel: the race detector makes each some ten times dearer.
const defaultSequences = 10_000
