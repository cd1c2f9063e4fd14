package legacy

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket options of ip_tables and ip6_tables, which have the same numbers.
const (
	soReplace     = 64 // IPT_SO_SET_REPLACE
	soAddCounters = 65 // IPT_SO_SET_ADD_COUNTERS
	soGetInfo     = 64 // IPT_SO_GET_INFO
	soGetEntries  = 65 // IPT_SO_GET_ENTRIES
)

const (
	infoBytes    = nameBytes + 4 + 2*4*hooks + 4 + 4 // struct ipt_getinfo
	headBytes    = nameBytes + 8                     // struct ipt_get_entries and xt_counters_info, before their lists
	replaceBytes = nameBytes + 12 + 2*4*hooks + 4 + 8
)

// door is a socket through which tables of one family are read and written. CAP_NET_ADMIN is enough.
type door struct {
	fd, level int
}

func open(ipv6 bool) (door, error) {
	family, level := unix.AF_INET, unix.SOL_IP
	if ipv6 {
		family, level = unix.AF_INET6, unix.SOL_IPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return door{}, fmt.Errorf("open a socket for iptables-legacy: %w", err)
	}
	return door{fd, level}, nil
}

func (d door) close() { unix.Close(d.fd) }

// info tells what a table has.
func (d door) info(name string) (is info, err error) {
	buf := make([]byte, infoBytes)
	copy(buf, name)
	if err := d.get(soGetInfo, buf); err != nil {
		return is, fmt.Errorf("read what table %s of iptables-legacy has: %w", name, err)
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(buf[nameBytes+4*i:]) }
	is.valid = word(0)
	for h := range hooks {
		is.entry[h], is.underflow[h] = word(1+h), word(1+hooks+h)
	}
	is.entries, is.size = word(1+2*hooks), word(2+2*hooks)
	return is, nil
}

// read gives a table.
func (d door) read(name string) (t table, err error) {
	if t.info, err = d.info(name); err != nil {
		return t, err
	}
	buf := make([]byte, headBytes+int(t.size))
	copy(buf, name)
	binary.NativeEndian.PutUint32(buf[nameBytes:], t.size)
	if err := d.get(soGetEntries, buf); err != nil { // EAGAIN: another program changed it in between
		return t, fmt.Errorf("read table %s of iptables-legacy: %w", name, err)
	}
	t.blob = buf[headBytes:]
	return t, nil
}

// replace puts a table in the place of one that has so many entries; the kernel refuses if it has another number by now
// (EAGAIN). Old are the counters that those had last.
func (d door) replace(name string, t table, was uint32) (old []byte, err error) {
	old = make([]byte, int(was)*counterBytes)
	var pin runtime.Pinner
	pin.Pin(&old[0])
	defer pin.Unpin()
	buf := make([]byte, nameBytes, replaceBytes+len(t.blob))
	copy(buf, name)
	put := func(v uint32) { buf = binary.NativeEndian.AppendUint32(buf, v) }
	put(t.valid)
	put(t.entries)
	put(t.size)
	for _, v := range t.entry {
		put(v)
	}
	for _, v := range t.underflow {
		put(v)
	}
	put(was)
	buf = binary.NativeEndian.AppendUint64(buf, uint64(uintptr(unsafe.Pointer(&old[0])))) // 64-bit machines only, as the agent is built
	buf = append(buf, t.blob...)
	if err := d.set(soReplace, buf); err != nil {
		return nil, fmt.Errorf("write table %s of iptables-legacy: %w", name, err)
	}
	return old, nil
}

// addCounters gives the entries back what they had counted.
func (d door) addCounters(name string, counters []byte) error {
	buf := make([]byte, headBytes, headBytes+len(counters))
	copy(buf, name)
	binary.NativeEndian.PutUint32(buf[nameBytes:], uint32(len(counters)/counterBytes))
	if err := d.set(soAddCounters, append(buf, counters...)); err != nil {
		return fmt.Errorf("give the rules of table %s of iptables-legacy their counters back: %w", name, err)
	}
	return nil
}

func (d door) get(option int, buf []byte) error {
	n := uint32(len(buf))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(d.fd), uintptr(d.level), uintptr(option), uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return e
	}
	return nil
}

func (d door) set(option int, buf []byte) error {
	_, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(d.fd), uintptr(d.level), uintptr(option), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0)
	if e != 0 {
		return e
	}
	return nil
}
