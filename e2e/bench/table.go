package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"

	mobyipvs "github.com/moby/ipvs"
	"github.com/sirupsen/logrus"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

// sliceKeys is how many Keys the loop puts into one Plan.
const sliceKeys = 64

// rounds is how often each table is filled.
const rounds = 3

// table fills an empty IPVS table through our writer and through moby/ipvs, and returns the ratio.
func (o options) table(w io.Writer) (float64, error) {
	fmt.Fprintf(w, "\n(a) %d virtual servers with %d real servers each, into an empty IPVS table: median of %d\n", o.servers, o.reals, rounds)
	medians := map[string]float64{}
	for _, c := range []struct{ name, what string }{
		{"writer", fmt.Sprintf("our writer, %d virtual servers a plan", sliceKeys)},
		{"moby", "moby/ipvs, one at a time"},
	} {
		var took []time.Duration
		for range rounds {
			var d time.Duration
			if err := o.measure(c.name, &d); err != nil {
				return 0, err
			}
			took = append(took, d)
		}
		medians[c.name] = million(median(took))
		fmt.Fprintf(w, "  %-58s %10.1f   (", c.what, medians[c.name])
		for i, d := range took {
			fmt.Fprintf(w, "%s%.1f", []string{"", " "}[min(i, 1)], million(d))
		}
		fmt.Fprintln(w, ")")
	}
	ratio := medians["moby"] / medians["writer"]
	fmt.Fprintf(w, "  %-58s %10.1f\n", "ratio", ratio)
	return ratio, nil
}

func vip(i int) netip.Addr { return addrAt(netip.AddrFrom4([4]byte{10, 96, 0, 1}), i) }

func pod(i int) netip.AddrPort {
	return netip.AddrPortFrom(addrAt(netip.AddrFrom4([4]byte{10, 128, 0, 1}), i), 8080)
}

func addrAt(first netip.Addr, i int) netip.Addr {
	b := first.As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += uint32(i)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// tableByWriter hands the Plans to the kernel as the loop does.
func tableByWriter(servers, reals int) (time.Duration, error) {
	ctx := context.Background()
	k, err := kernel.Open(ctx, kernel.Config{})
	if err != nil {
		return 0, err
	}
	defer k.Close()
	var plans []ipvs.Plan
	for i := range servers {
		if i%sliceKeys == 0 {
			plans = append(plans, nil)
		}
		plan := &plans[len(plans)-1]
		key := ipvs.Key{Addr: vip(i), Port: 80, Proto: ipvs.TCP}
		*plan = append(*plan, ipvs.Step{Key: key, Op: ipvs.AddServer{Key: key, Scheduler: "rr"}})
		for j := range reals {
			*plan = append(*plan, ipvs.Step{Key: key, Op: ipvs.AddReal{Key: key, Real: ipvs.Real{Addr: pod(i*reals + j), Weight: 1}}})
		}
	}
	runtime.GC() // of what was made so far
	began := time.Now()
	for _, p := range plans {
		for i, o := range k.Do(ctx, p) {
			if o.Err != nil {
				return 0, fmt.Errorf("%s: %w", p[i].Op, o.Err)
			}
		}
	}
	took := time.Since(began)
	return took, checkTable(servers, reals)
}

// tableByMoby does the same with the library that others use, a request and its answer at a time.
func tableByMoby(servers, reals int) (time.Duration, error) {
	logrus.SetOutput(io.Discard) // the library looks for modprobe first, and grumbles
	h, err := mobyipvs.New("")
	if err != nil {
		return 0, err
	}
	defer h.Close()
	runtime.GC()
	began := time.Now()
	for i := range servers {
		svc := &mobyipvs.Service{AddressFamily: syscall.AF_INET, Protocol: syscall.IPPROTO_TCP, Address: vip(i).AsSlice(), Port: 80, SchedName: "rr", Netmask: 0xffffffff}
		if err := h.NewService(svc); err != nil {
			return 0, fmt.Errorf("virtual server %d: %w", i, err)
		}
		for j := range reals {
			to := pod(i*reals + j)
			dst := &mobyipvs.Destination{AddressFamily: syscall.AF_INET, Address: to.Addr().AsSlice(), Port: to.Port(), Weight: 1}
			if err := h.NewDestination(svc, dst); err != nil {
				return 0, fmt.Errorf("real server %d of %d: %w", j, i, err)
			}
		}
	}
	took := time.Since(began)
	return took, checkTable(servers, reals)
}

// checkTable counts what the kernel really has.
func checkTable(servers, reals int) error {
	text, err := os.ReadFile(tableFile)
	if err != nil {
		return err
	}
	gotServers, gotReals := bytes.Count(text, []byte("\nTCP ")), realsIn(text)
	if gotServers != servers || gotReals != servers*reals {
		return fmt.Errorf("the kernel holds %d virtual servers and %d real servers, want %d and %d", gotServers, gotReals, servers, servers*reals)
	}
	return nil
}

// tableFile is the kernel's list of virtual servers.
const tableFile = "/proc/net/ip_vs"

// realsIn counts the real servers of the list. The first line that looks like one is a headline.
func realsIn(text []byte) int { return bytes.Count(text, []byte("\n  -> ")) - 1 }

// countReals counts the real servers that the kernel really has, and so many more.
func countReals(more int) (int, error) {
	text, err := os.ReadFile(tableFile)
	return realsIn(text) + more, err
}
