//go:build race

package sync

// modelDefault: what a walk does is one goroutine's work, in which there is little to race. The full number is for a
// build without the detector, which is six times as fast.
const modelDefault = 1_000
