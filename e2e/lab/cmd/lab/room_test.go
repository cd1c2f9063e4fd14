package main

import (
	"context"
	"testing"
)

// Nobody waits for room when there is nothing left to run, or when all is over.
func TestRoom(t *testing.T) {
	next := make(chan int, 1)
	if room(t.Context(), next) {
		t.Error("there is room for nothing")
	}
	next <- 1
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if room(over, next) {
		t.Error("there is room after the end")
	}
	if n := fitting(); n < 1 {
		t.Errorf("memory for %d machines", n)
	}
	before, err := idle()
	if err != nil || before <= 0 {
		t.Errorf("idle for %v s since boot: %v", before, err)
	}
}
