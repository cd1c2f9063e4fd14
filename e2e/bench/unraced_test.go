//go:build !race

package main

// slower is how many times slower this is with the race detector, which is not there.
const slower = 1
