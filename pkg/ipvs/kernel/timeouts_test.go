package kernel

import (
	"context"
	"slices"
	"testing"
	"time"

	moby "github.com/moby/ipvs"
)

// B50: ipvs.tcpTimeout and its like are set where they differ, a zero leaves the kernel's value alone, and what is
// right is not written again.
func TestB50Timeouts(t *testing.T) {
	needsIPVS(t)
	inNetns(t)
	other := openMoby(t)
	before, err := other.GetConfig()
	must(t, err)
	for _, c := range []struct {
		cfg   Timeouts
		wrote []string
		want  moby.Config
	}{
		{Timeouts{}, nil, *before},
		{Timeouts{TCP: 17 * time.Minute}, []string{"ipvsadm --set 1020 0 0"},
			moby.Config{TimeoutTCP: 17 * time.Minute, TimeoutTCPFin: before.TimeoutTCPFin, TimeoutUDP: before.TimeoutUDP}},
		{Timeouts{TCPFin: 1500 * time.Millisecond, UDP: 7 * time.Second}, []string{"ipvsadm --set 0 2 7"},
			moby.Config{TimeoutTCP: 17 * time.Minute, TimeoutTCPFin: 2 * time.Second, TimeoutUDP: 7 * time.Second}},
		{Timeouts{TCP: 17 * time.Minute, UDP: 7 * time.Second}, nil,
			moby.Config{TimeoutTCP: 17 * time.Minute, TimeoutTCPFin: 2 * time.Second, TimeoutUDP: 7 * time.Second}},
	} {
		k, err := Open(context.Background(), Config{Timeouts: c.cfg})
		must(t, err)
		r, err := k.Base(context.Background())
		must(t, err)
		k.Close()
		wrote := slices.DeleteFunc(r.Wrote, func(line string) bool { return len(line) < 7 || line[:7] != "ipvsadm" })
		if !slices.Equal(wrote, c.wrote) {
			t.Errorf("%v wrote %q, want %q", c.cfg, wrote, c.wrote)
		}
		if got, err := other.GetConfig(); err != nil || *got != c.want {
			t.Errorf("%v makes %v, want %v (%v)", c.cfg, got, c.want, err)
		}
	}
}
