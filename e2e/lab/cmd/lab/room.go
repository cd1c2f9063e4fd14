package main

import (
	"context"
	"time"

	"github.com/prometheus/procfs"
)

const (
	// look is how long the processors are watched for what they have left.
	look = 5 * time.Second
	// spare is how much of one processor has to be left for another emulated machine. On less they would all wait for each
	// other, and tests would meet limits that tell of nothing else.
	spare = 0.4
)

// room waits until this machine has enough left for another one, as long as there is something to run. What a hypervisor
// takes away is not left, and what runs at low priority has had its turn.
func room(ctx context.Context, next <-chan int) bool {
	for len(next) > 0 {
		before, err := idle()
		if err != nil {
			return true // a machine that does not tell is taken as it is
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(look):
		}
		if after, err := idle(); err != nil || after-before >= spare*look.Seconds() {
			return len(next) > 0
		}
	}
	return false
}

// eachTakes is what a machine takes of this one's memory, in bytes: its own and what emulating it takes.
const eachTakes = 5 << 29

// fitting is for how many machines there is memory. One that does not tell has enough.
func fitting() int {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return mostMachines
	}
	m, err := fs.Meminfo()
	if err != nil || m.MemAvailableBytes == nil {
		return mostMachines
	}
	return int(*m.MemAvailableBytes / eachTakes)
}

// idle is how many seconds the processors have had nothing to do, together and since boot.
func idle() (float64, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, err
	}
	s, err := fs.Stat()
	if err != nil {
		return 0, err
	}
	return s.CPUTotal.Idle + s.CPUTotal.Iowait, nil
}
