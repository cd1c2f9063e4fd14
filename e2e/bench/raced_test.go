//go:build race

package main

// slower is how many times slower this is with the race detector, at most.
const slower = 10
