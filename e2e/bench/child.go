package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// million turns a time of the machine's clock into millions of instructions.
func million(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(ds []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(ds))
	return sorted[len(sorted)/2]
}

// measure does one measurement in a process and a network namespace of its own: a table, a heap and sockets
// that nothing was done to before.
func (o options) measure(name string, result any) error {
	cmd := exec.Command("/proc/self/exe", "--child", name,
		"--servers", strconv.Itoa(o.servers), "--reals", strconv.Itoa(o.reals),
		"--services", strconv.Itoa(o.services), "--endpoints", strconv.Itoa(o.endpoints),
		"--settings", strconv.Itoa(o.settings), "--asks", o.asks,
		"--changes", strconv.Itoa(o.changes), "--binding", o.binding)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("measurement %s: %w", name, err)
	}
	// The kernel takes the namespace down later and on the same processor: let it, before the next one.
	time.Sleep(10 * time.Second)
	return json.Unmarshal(out.Bytes(), result)
}

func runChild(name string, o options) (err error) {
	if err := loopbackUp(); err != nil {
		return err
	}
	var result any
	switch name {
	case "writer":
		result, err = tableByWriter(o.servers, o.reals)
	case "moby":
		result, err = tableByMoby(o.servers, o.reals)
	case "cluster":
		result, err = runCluster(o)
	case "settings":
		result, err = runSettings(o)
	case "grown", "growing":
		result, err = runGrowing(o, name == "growing")
	case "kept", "kept-unaudited":
		result, err = runKept(o, name == "kept")
	case "kept-program":
		result, err = runKeptProgram(o)
	case "asking":
		result, err = runAsking(o)
	case "crowd":
		result, err = runCrowd(o)
	case "askers":
		result, err = runAskers(o)
	case "direct", "tracked":
		result, err = runDirect(name == "tracked")
	case "agent":
		result, err = runAgent(o)
	case "ipvs", "iptables", "nftables":
		result, err = runKubeProxy(o, name)
	default:
		err = fmt.Errorf("no measurement is called %s", name)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// loopbackUp: a namespace whose lo was never up has no table of local addresses, and IPVS then takes every
// real server for a broadcast address.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
