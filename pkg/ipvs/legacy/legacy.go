// Package legacy reads and writes the tables of iptables-legacy, which nftables does not show: by socket options, as the
// program does it, without the program. It takes kube-proxy's chains out of them.
package legacy

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kubeproxy"
)

// Table is one that the kernel has in this network namespace.
type Table struct {
	IPv6 bool
	Name string
}

// Program is what a person changes it with.
func (t Table) Program() string {
	if t.IPv6 {
		return "ip6tables-legacy"
	}
	return "iptables-legacy"
}

func (t Table) String() string { return "table " + t.Name + " of " + t.Program() }

// Show is what a person types to see a chain.
func (t Table) Show(chain string) string { return t.Program() + " -t " + t.Name + " -S " + chain }

// Command is what a person types to take kube-proxy's chains out of it.
func (t Table) Command() string {
	p := t.Program()
	return fmt.Sprintf("%s-save -t %s | grep -vE '(^:|-[Ajg] )%s ' | %s-restore -T %s", p, t.Name, kubeproxy.Pattern(), p, t.Name)
}

// Tables lists those in which kube-proxy may have chains, in the order in which they may go. It does not ask the kernel
// for any other: it would make them.
func Tables() (list []Table, err error) {
	for _, ipv6 := range []bool{false, true} {
		file := "/proc/thread-self/net/ip_tables_names"
		if ipv6 {
			file = "/proc/thread-self/net/ip6_tables_names"
		}
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // without the file there is no iptables-legacy of that family
		}
		if err != nil {
			return nil, fmt.Errorf("list tables of iptables-legacy: %w", err)
		}
		for _, name := range strings.Fields(string(b)) {
			if slices.Contains(kubeproxy.Tables, name) {
				list = append(list, Table{ipv6, name})
			}
		}
	}
	place := func(t Table) int { return slices.Index(kubeproxy.Tables, t.Name) }
	slices.SortStableFunc(list, func(a, b Table) int { return place(a) - place(b) })
	return list, nil
}

// Found is what of a table is kube-proxy's.
type Found struct {
	// Rules counts the rules that go, Chains the chains.
	Rules, Chains int
	// Stays says what of it stays because others rely on it, a line each.
	Stays []string
	// Before are the rules of others that lead to where it serves, refuses or drops a packet before IPVS sees it.
	Before []kubeproxy.Jump
	// Drops names the chains, INPUT and FORWARD, of the table filter whose policy is to drop.
	Drops []string
}

// Look reads what of a table is kube-proxy's, and what drops.
func (t Table) Look() (f Found, err error) {
	d, err := open(t.IPv6)
	if err != nil {
		return f, err
	}
	defer d.close()
	have, err := d.read(t.Name)
	if err != nil {
		return f, err
	}
	_, f, _, err = have.judge(layouts[t.IPv6])
	return f, err
}

// judge finds the entries that go.
func (t table) judge(l layout) (list []entry, f Found, gone func(entry) bool, err error) {
	if list, err = t.parse(l); err != nil {
		return nil, f, nil, fmt.Errorf("iptables-legacy: %w", err)
	}
	all, jumps := t.chains(list)
	going, stays := kubeproxy.Going(all, jumps)
	f.Stays, f.Chains, f.Drops = stays, len(going), t.drops(list)
	f.Before = slices.DeleteFunc(jumps, func(j kubeproxy.Jump) bool { return !kubeproxy.StandsBefore(j.To) })
	gone = func(e entry) bool { return going[e.chain] || going[e.to] }
	for _, e := range list {
		if gone(e) && !e.head {
			f.Rules++
		}
	}
	f.Rules -= f.Chains // the last entry of a chain returns, and is no rule
	return list, f, gone, nil
}

// Clean takes it out, at once, and leaves the other rules their order and counters. It holds the lock of iptables-legacy
// meanwhile, without which the change of another program at the same time could get lost: ErrNoLock where it cannot be
// had. A change in between all the same is noticed by the kernel where it changes the number of rules (EAGAIN).
func (t Table) Clean() error {
	unlock, err := lock(lockFile)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := open(t.IPv6)
	if err != nil {
		return err
	}
	defer d.close()
	have, err := d.read(t.Name)
	if err != nil {
		return err
	}
	l := layouts[t.IPv6]
	list, f, gone, err := have.judge(l)
	if err != nil || f.Chains == 0 && f.Rules == 0 {
		return err
	}
	without, kept := have.without(l, list, gone)
	old, err := d.replace(t.Name, without, have.entries)
	if err != nil {
		return err
	}
	var counters []byte
	for _, i := range kept {
		counters = append(counters, old[i*counterBytes:][:counterBytes]...)
	}
	return d.addCounters(t.Name, counters)
}

// lockFile is what iptables-legacy locks, since 1.6.2.
const lockFile = "/run/xtables.lock"

// ErrNoLock: the lock of iptables-legacy cannot be had here.
var ErrNoLock = errors.New("the lock " + lockFile + " cannot be had")

// lock takes the lock. That another program has it at the moment is EWOULDBLOCK, not ErrNoLock.
func lock(file string) (unlock func(), err error) {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: open: %w", ErrNoLock, err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("another program has the lock %s: %w", file, err)
	}
	return func() { unix.Close(fd) }, nil
}

// Traces remembers of each table what Write wrote of it, as long as the table has as many entries and bytes.
type Traces map[Table]trace

type trace struct {
	info info
	sum  uint64
}

// Write writes what stands for kube-proxy's rules of a table, without their counters.
func (ts Traces) Write(w io.Writer, t Table) error {
	d, err := open(t.IPv6)
	if err != nil {
		return err
	}
	defer d.close()
	is, err := d.info(t.Name)
	if err != nil {
		return err
	}
	if ts[t].info != is {
		have, err := d.read(t.Name)
		if err != nil {
			return err
		}
		sum, err := have.sum(layouts[t.IPv6])
		if err != nil {
			return err
		}
		ts[t] = trace{have.info, sum}
	}
	_, err = fmt.Fprintln(w, t, ts[t].sum)
	return err
}

// sum stands for kube-proxy's chains and the rules that lead there.
func (t table) sum(l layout) (uint64, error) {
	list, err := t.parse(l)
	sum := fnv.New64a()
	for _, e := range list {
		if kubeproxy.IsChain(e.chain) || kubeproxy.IsChain(e.to) {
			fmt.Fprintln(sum, e.chain, e.to, min(e.verdict, 0))
			_, _ = sum.Write(t.blob[e.at:][:l.comefrom])
			_, _ = sum.Write(t.blob[e.at+l.size : e.at+e.size-e.tail()])
		}
	}
	return sum.Sum64(), err
}

// tail is how many bytes at the end say where an entry leads: that changes with what others have in the table.
func (e entry) tail() int {
	if e.standard {
		return 8
	}
	return 0
}
