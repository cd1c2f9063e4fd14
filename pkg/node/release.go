package node

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Release is that of the running kernel, such as 6.1.0-42-amd64.
func Release() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read the kernel's release: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}
