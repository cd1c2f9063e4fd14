package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// result is what runs of the bench recorded, for docs/performance.md.
type result struct {
	Kernel  string        `json:",omitempty"` // uname -r, of the packets' way
	Packets []way         `json:",omitempty"`
	Asking  *asking       `json:",omitempty"`
	Crowd   *crowdFigures `json:",omitempty"`
}

// with is a result with the parts of another one, which ran later, in their places.
func (r result) with(later result) result {
	if later.Packets != nil {
		r.Kernel, r.Packets = later.Kernel, later.Packets
	}
	if later.Asking != nil {
		r.Asking = later.Asking
	}
	if later.Crowd != nil {
		r.Crowd = later.Crowd
	}
	return r
}

// way are the counts of one contender at one size.
type way struct {
	Contender string
	Services  int    `json:",omitempty"` // of both IP families, one endpoint each
	Binding   string `json:",omitempty"` // how virtual IPs stand on the interface
	// Counts are instructions, by case and then for IPv4 and IPv6.
	Counts map[string][2]int64
	child  string
}

func (c way) String() string {
	if c.Services == 0 {
		return c.Contender
	}
	if c.Binding == "" {
		return fmt.Sprintf("%s, %d Services", c.Contender, c.Services)
	}
	return fmt.Sprintf("%s, %d Services, virtual IPs bound by %s", c.Contender, c.Services, c.Binding)
}

// contenders are all, in the order in which they are counted. The other binding stands beside the largest size.
func (o options) contenders() []way {
	list := []way{{Contender: "no proxy", child: "direct"}, {Contender: "no proxy, connections tracked", child: "tracked"}}
	for _, n := range o.sizes {
		list = append(list, way{Contender: "agent", Services: n, Binding: "address", child: "agent"})
	}
	list = append(list, way{Contender: "agent", Services: o.sizes[len(o.sizes)-1], Binding: "route", child: "agent"})
	if _, there := kubeProxy(); !there || o.peerAt == 0 {
		return list
	}
	for _, mode := range []string{"ipvs", "nftables", "iptables"} {
		list = append(list, way{Contender: "kube-proxy " + mode, Services: o.peerAt, child: mode})
	}
	return list
}

// packets counts the packets' way of all contenders.
func (o options) packets(w io.Writer) (r result, err error) {
	r.Kernel = kernelRelease()
	for _, c := range o.contenders() {
		one, t := o, taken{}
		one.services, one.binding = c.Services, c.Binding
		if err := one.measure(c.child, &t); err != nil {
			return r, err
		}
		c.Counts = map[string][2]int64{}
		fmt.Fprintf(w, "\n(d) the packets' way, %s: thousand instructions, lower quartile of %d\n  %-40s %10s %10s\n", c, count, "", "IPv4", "IPv6")
		for i, d := range t {
			if d[0] == 0 {
				continue // not without a proxy
			}
			c.Counts[cases[i].name] = [2]int64{d[0].Nanoseconds(), d[1].Nanoseconds()}
			fmt.Fprintf(w, "  %-40s %10.2f %10.2f\n", cases[i].name, thousand(d[0]), thousand(d[1]))
		}
		r.Packets = append(r.Packets, c)
	}
	return r, nil
}

// thousand turns a time of the machine's clock into thousands of instructions.
func thousand(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// resultWord begins the line of the output that is the result.
const resultWord = "result: "

func (r result) print(w io.Writer) error {
	b, err := json.Marshal(r)
	if err == nil {
		_, err = fmt.Fprintf(w, "\n%s%s\n", resultWord, b)
	}
	return err
}

// writeResult takes the results out of what a run printed, and puts them into a file, in the place of those of the same.
func writeResult(from io.Reader, file string) error {
	text, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	r, err := readResult(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	found := false
	for line := range strings.Lines(string(text)) {
		raw, is := strings.CutPrefix(line, resultWord)
		if !is {
			continue
		}
		var later result
		if err := json.Unmarshal([]byte(raw), &later); err != nil {
			return err
		}
		r, found = r.with(later), true
	}
	if !found {
		return fmt.Errorf("no line begins with %q", resultWord)
	}
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

func readResult(file string) (r result, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("result %s: %w", file, err)
	}
	return r, nil
}

// dearest is what a case may cost more than the same without a proxy, in instructions.
var dearest = []struct {
	name, bare string
	most       int64
}{
	{"connect, pod to ClusterIP", "connect, pod to pod", 29_500},
	{"connect, pod to pod", "connect, pod to pod", 15_000},
	{"round trip, pod to ClusterIP", "round trip, pod to pod", 11_500},
}

// limits says which cases cost more than they may. Of IPv4, at each size.
func (r result) limits(w io.Writer) (err error) {
	if !counts() {
		return nil
	}
	fmt.Fprintln(w, "\nLimits of the packets' way: thousand instructions more than without a proxy, IPv4")
	bare := r.Packets[0].Counts
	for _, c := range r.Packets {
		for _, d := range dearest {
			if c.Binding == "" {
				continue
			}
			more, verdict := c.Counts[d.name][0]-bare[d.bare][0], "ok"
			if more > d.most {
				verdict, err = "BROKEN", fmt.Errorf("a limit of the packets' way is broken")
			}
			fmt.Fprintf(w, "  %-30s %6d Services, %-8s %10.2f   at most %.1f: %s\n", d.name, c.Services, c.Binding, float64(more)/1000, float64(d.most)/1000, verdict)
		}
	}
	return err
}
