package node

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"strconv"
	"strings"
)

const conntrackDir = "/proc/sys/net/netfilter/nf_conntrack_"

func checkConntrack() Finding {
	count, err := readNumber(conntrackDir + "count")
	if errors.Is(err, fs.ErrNotExist) {
		return warning("there is no connection tracking (nf_conntrack is not loaded); ip_vs brings it along")
	}
	limit, err2 := readNumber(conntrackDir + "max")
	if err := errors.Join(err, err2); err != nil {
		return warning("connection tracking could not be looked at: %v", err)
	}
	return judgeConntrack(count, limit)
}

// fullPercent is from when on a connection table is worth a warning: what a burst brings must still fit.
const fullPercent = 80

// judgeConntrack: 0 is a table without a limit.
func judgeConntrack(count, limit int) Finding {
	if limit > 0 && count*100 > limit*fullPercent {
		return warning("connection tracking has %d of %d entries: when it is full, new connections are dropped; raise net.netfilter.nf_conntrack_max (in the machine's first network namespace)", count, limit)
	}
	return ok("connection tracking: %d of %d entries", count, limit)
}

func readNumber(file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

func checkConnections() Finding {
	const file = "/proc/thread-self/net/ip_vs"
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return warning("there is no IPVS to look at (ip_vs is not loaded)")
	}
	if err != nil {
		return warning("IPVS could not be looked at: %v", err)
	}
	defer f.Close()
	connections, rows, err := readConnections(f)
	if err != nil {
		return warning("IPVS could not be looked at: %s: %v", file, err)
	}
	return judgeConnections(connections, rows)
}

// readConnections adds up the connections of all real servers: the list of connections itself costs a line for
// each. Rows is the size of the table in which they stand: since 7.x a namespace has its own, which is none before
// the first virtual server and grows with the connections, up to what conn_tab_bits says.
func readConnections(r io.Reader) (connections, rows int, err error) {
	lines, sized := bufio.NewScanner(r), false
	for lines.Scan() {
		line := lines.Text()
		if _, size, found := strings.Cut(line, "(size="); found {
			if rows, err = strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(size), ")")); err != nil {
				return 0, 0, fmt.Errorf("size of the table in %q: %w", line, err)
			}
			sized = true
			continue
		}
		f := strings.Fields(line)
		if len(f) < 6 || f[0] != "->" || f[1] == "RemoteAddress:Port" {
			continue
		}
		for _, n := range f[4:6] {
			c, err := strconv.Atoi(n)
			if err != nil {
				return 0, 0, fmt.Errorf("connections in %q: %w", line, err)
			}
			connections += c
		}
	}
	if err := lines.Err(); err != nil {
		return 0, 0, err
	}
	if !sized {
		return 0, 0, errors.New("no size in the first line")
	}
	return connections, rows, nil
}

// longRow is how many connections a row may have on average: each packet of a connection walks its row.
const longRow = 4

func judgeConnections(connections, rows int) Finding {
	if rows > 0 && connections > longRow*rows {
		return warning("IPVS has %d connections in a table of %d rows: each packet searches through %d of them; load ip_vs with conn_tab_bits=%d (a line options ip_vs conn_tab_bits=%d in /etc/modprobe.d, then a reboot)",
			connections, rows, connections/rows, bits.Len(uint(connections)), bits.Len(uint(connections)))
	}
	return ok("IPVS: %d connections in a table of %d rows", connections, rows)
}
