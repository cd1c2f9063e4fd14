//go:build !race

package page

// slower is how much slower than usual this build is.
const slower = 1

// changesAmong is how many changes are made among the pages of a hundred askers.
const changesAmong = 10
