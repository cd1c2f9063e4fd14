package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// sysctlRoot is where this network namespace's settings are.
const sysctlRoot = "/proc/sys/"

const forwarding6 = "net/ipv6/conf/all/forwarding"

// keepsDefaultRoute tells whether the node keeps its IPv6 default route when it begins to forward: a router takes
// none from router advertisements, and the kernel drops those that it took (addrconf_fixup_forwarding in
// net/ipv6/addrconf.c), unless the interface's accept_ra is 2.
func keepsDefaultRoute(root string) error {
	var routes []netlink.Route
	err := again(func() (err error) {
		routes, err = netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
		return err
	})
	if err != nil {
		return fmt.Errorf("list the default routes from router advertisements: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue // it went meanwhile, and its routes with it
		}
		name := link.Attrs().Name
		if b, err := os.ReadFile(root + "net/ipv6/conf/" + name + "/accept_ra"); err == nil && strings.TrimSpace(string(b)) == "1" {
			return fmt.Errorf("the kernel would drop the default route that %s has from router advertisements (set net/ipv6/conf/%s/accept_ra to 2 first)", name, name)
		}
	}
	return nil
}

// Setting is a sysctl that the traffic depends on.
type Setting struct {
	Name string // as below /proc/sys
	Want string // its value
	Else string // what is wrong with the traffic while it has another one
	// AtLeast: a larger number is right, too, and 0, by which the kernel means that there is no limit.
	AtLeast bool
	// Tuning: traffic does not depend on it, only how much of it, or for how long.
	Tuning bool
}

// Settings lists the sysctls that a configuration asks for. Two are left out on purpose: route_localnet would
// open what listens on the node's loopback to its network, and conn_reuse_mode has the right value where the
// kernel is new enough (5.9).
func Settings(cfg Config) []Setting {
	list := []Setting{
		{Name: "net/ipv4/vs/conntrack", Want: "1", Else: "masquerading sees no IPVS connection"},
		{Name: "net/ipv4/vs/expire_nodest_conn", Want: "1", Else: "clients of a removed endpoint hang instead of moving"},
		{Name: "net/ipv4/vs/expire_quiescent_template", Want: "1", Else: "affinity keeps clients on a draining endpoint"},
		{Name: "net/ipv4/ip_forward", Want: "1", Else: "IPv4 packets do not reach endpoints on other nodes"},
		{Name: forwarding6, Want: "1", Else: "IPv6 packets do not reach endpoints on other nodes"},
	}
	if cfg.StrictARP {
		// The kernel takes the larger of this value and the interface's own.
		list = append(list,
			Setting{Name: "net/ipv4/conf/all/arp_ignore", Want: "1", Else: "the node answers ARP for virtual IPs on every interface"},
			Setting{Name: "net/ipv4/conf/all/arp_announce", Want: "2", Else: "the node's ARP requests name virtual IPs as its own address"})
	}
	return append(list, cfg.Conntrack.settings(processors())...)
}

// Read reports the setting's value and whether it is right. A setting of IPv6 is right where IPv6 is switched
// off; its value is then empty.
func (s Setting) Read() (have string, right bool, err error) { return s.read(sysctlRoot) }

func (s Setting) read(root string) (have string, right bool, err error) {
	b, err := os.ReadFile(root + s.Name)
	if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(s.Name, "net/ipv6/") {
		return "", true, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("sysctl %s, which should be %s, cannot be read: %w", s.Name, s.Should(), err)
	}
	have = strings.TrimSpace(string(b))
	return have, s.allows(have), nil
}

func (s Setting) allows(have string) bool {
	if !s.AtLeast {
		return have == s.Want
	}
	h, err := strconv.ParseUint(have, 10, 64)
	w, wantErr := strconv.ParseUint(s.Want, 10, 64)
	return err == nil && wantErr == nil && (h == 0 || h >= w)
}

// Should is the value as a sentence has it.
func (s Setting) Should() string {
	if s.AtLeast {
		return "at least " + s.Want
	}
	return s.Want
}

// Writable asks the kernel whether the setting may be written, without writing it. It is nil when it may.
func (s Setting) Writable() error {
	// Effective rights, which is what a write needs, and the mount's: containers see /proc/sys read-only.
	return unix.Faccessat(unix.AT_FDCWD, sysctlRoot+s.Name, unix.W_OK, unix.AT_EACCESS)
}

// ensure reads the setting and writes it only where it is wrong; with readOnly it asks whether it could. Its error says
// what follows for the traffic.
func (s Setting) ensure(root string, readOnly bool) (wrote bool, err error) {
	have, right, err := s.read(root)
	switch {
	case err != nil:
		return false, fmt.Errorf("%w; where it is wrong, %s", err, s.Else)
	case right:
		return false, nil
	}
	if s.Name == forwarding6 && root == sysctlRoot {
		if err := keepsDefaultRoute(root); err != nil {
			return false, fmt.Errorf("sysctl %s is %s, should be %s and is left alone: %w; until it is, %s", s.Name, have, s.Should(), err, s.Else)
		}
	}
	// It exists, so it is not to be created: the error then speaks of the write.
	f, err := os.OpenFile(root+s.Name, os.O_WRONLY, 0)
	if err == nil {
		if !readOnly {
			_, err = f.WriteString(s.Want)
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return false, fmt.Errorf("sysctl %s is %s, should be %s and cannot be written: %w; until it is, %s", s.Name, have, s.Should(), err, s.Else)
	}
	return true, nil
}

// EnsureSettings sees to each setting. One that cannot be written is reported and does not stop the rest: the
// node may be set up by other means, and what works without it should work.
func EnsureSettings(list []Setting) (wrote []string, warnings []error) {
	return ensureSettings(sysctlRoot, list, false)
}

func ensureSettings(root string, list []Setting, readOnly bool) (wrote []string, warnings []error) {
	for _, s := range list {
		changed, err := s.ensure(root, readOnly)
		if err != nil {
			warnings = append(warnings, ipvs.About{Name: s.Name, Err: err})
		}
		if changed {
			wrote = append(wrote, "sysctl -w "+s.Name+"="+s.Want)
		}
	}
	return wrote, warnings
}
