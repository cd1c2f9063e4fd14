package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// sysctlRoot is where this network namespace's settings are.
const sysctlRoot = "/proc/sys/"

// sysctl is a setting that the traffic needs.
type sysctl struct{ name, value, why string }

var sysctls = []sysctl{
	{"net/ipv4/vs/conntrack", "1", "masquerading sees no IPVS connection without it"},
	{"net/ipv4/vs/expire_nodest_conn", "1", "clients of a removed endpoint would hang instead of moving"},
	{"net/ipv4/vs/expire_quiescent_template", "1", "affinity would keep clients on a draining endpoint"},
	{"net/ipv4/ip_forward", "1", "IPv4 packets would not reach endpoints on other nodes"},
	{"net/ipv6/conf/all/forwarding", "1", "IPv6 packets would not reach endpoints on other nodes"},
}

// ensureSysctls reads each setting and writes it only where it differs. A setting that cannot be written is
// reported and does not stop the rest: the node may have been set up by other means, and what works
// without it should work.
func ensureSysctls() (wrote []string, warnings []error) {
	for _, s := range sysctls {
		changed, err := s.ensure()
		switch {
		case errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(s.name, "net/ipv6/"):
			// IPv6 is switched off on this node.
		case err != nil:
			warnings = append(warnings, fmt.Errorf("sysctl %s=%s: %w; without it %s", s.name, s.value, err, s.why))
		case changed:
			wrote = append(wrote, "sysctl -w "+s.name+"="+s.value)
		}
	}
	return wrote, warnings
}

func (s sysctl) ensure() (changed bool, err error) {
	have, err := os.ReadFile(sysctlRoot + s.name)
	if err != nil {
		return false, err
	}
	if strings.TrimSpace(string(have)) == s.value {
		return false, nil
	}
	return true, os.WriteFile(sysctlRoot+s.name, []byte(s.value), 0)
}
