//go:build race

package page

// slower is how much slower a build with the detector is, at most.
const slower = 10

// changesAmong is how many changes are made among the pages of a hundred askers.
const changesAmong = 3
