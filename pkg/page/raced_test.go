//go:build race

package page

// slower is how much slower a build with the detector is, at most.
const slower = 10
