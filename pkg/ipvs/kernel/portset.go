package kernel

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
	"strings"
)

// portSet is a set of ports.
type portSet [1 << 10]uint64

func portsOf(list []uint16) *portSet {
	s := new(portSet)
	for _, p := range list {
		s.add(p)
	}
	return s
}

func (s *portSet) add(p uint16) { s[p/64] |= 1 << (p % 64) }

// with and without are the union of two sets and the difference.
func (s *portSet) with(o *portSet) *portSet {
	out := *s
	for i := range out {
		out[i] |= o[i]
	}
	return &out
}

func (s *portSet) without(o *portSet) *portSet {
	out := *s
	for i := range out {
		out[i] &^= o[i]
	}
	return &out
}

func (s *portSet) empty() bool { return *s == portSet{} }

// all gives the ports in order.
func (s *portSet) all() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for i, word := range s {
			for bit := 0; word != 0; bit, word = bit+1, word>>1 {
				if word&1 != 0 && !yield(uint16(64*i+bit)) {
					return
				}
			}
		}
	}
}

// ranges gives them as the kernel prints them: 80, 443, 30000-30010.
func (s *portSet) ranges() (list []string) {
	first, last := -1, -1
	end := func() {
		switch {
		case first < 0:
		case first == last:
			list = append(list, strconv.Itoa(first))
		default:
			list = append(list, fmt.Sprintf("%d-%d", first, last))
		}
	}
	for p := range s.all() {
		if int(p) != last+1 || first < 0 {
			end()
			first = int(p)
		}
		last = int(p)
	}
	end()
	return list
}

func (s *portSet) String() string { return strings.Join(s.ranges(), ",") }

// listedRanges is how many ranges a message names.
const listedRanges = 8

// few is at most so many ranges, and the number of the rest.
func (s *portSet) few() string {
	list := s.ranges()
	if more := len(list) - listedRanges; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:listedRanges], ","), more)
	}
	return strings.Join(list, ",")
}

// parsePorts reads what the kernel prints, or what a person writes to it.
func parsePorts(text string) (*portSet, error) {
	s := new(portSet)
	for r := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		if r == "" {
			continue
		}
		first, last, isRange := strings.Cut(r, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err := errors.Join(err, err2); err != nil || to < from {
			return nil, fmt.Errorf("%q is no range of ports", r)
		}
		for p := from; p <= to; p++ {
			s.add(uint16(p))
		}
	}
	return s, nil
}

// readPorts reads a sysctl that is a list of ranges. It has to be read at once: the kernel gives the beginning of it, as much
// as there is room for, and then no more.
func readPorts(file string) (*portSet, error) {
	for room := 4 << 10; ; room *= 2 {
		text, err := readOnce(file, room)
		if err != nil {
			return nil, err
		}
		if len(text) < room {
			return parsePorts(string(text))
		}
	}
}

func readOnce(file string, room int) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, room)
	n, err := f.Read(b)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:n], err
}
