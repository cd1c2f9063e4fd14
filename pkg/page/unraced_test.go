//go:build !race

package page

// slower is how much slower than usual this build is.
const slower = 1
