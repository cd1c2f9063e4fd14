package lab

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ChecksumsOnTheWire has a host compute checksums before its packets leave by eth0. Between namespaces they are left open,
// and whoever takes the packet trusts the sender; a wrong one, which a network card would send, is seen by nobody.
func (h *Host) ChecksumsOnTheWire() error {
	return h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// struct ethtool_value and struct ifreq of include/uapi/linux/ethtool.h and if.h.
		off := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_STXCSUM}
		request := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&off)}
		copy(request.name[:], "eth0")
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return fmt.Errorf("checksums of eth0 of %s: %w", h.Name, errno)
		}
		return nil
	})
}
