package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
)

// setupFlags are the flags about how a node is set up, which run, init and check share. The names are
// kube-proxy's.
type setupFlags struct {
	scheduler string
	strictARP bool
	conntrack kernel.Conntrack
}

func (s *setupFlags) add(cmd *cobra.Command) {
	f, c, def := cmd.Flags(), &s.conntrack, kernel.DefaultConntrack
	f.StringVar(&s.scheduler, "ipvs-scheduler", "rr", "scheduler of the virtual servers: rr, wrr, lc, wlc, lblc, lblcr, sed, nq, …")
	f.BoolVar(&s.strictARP, "ipvs-strict-arp", false, "set arp_ignore=1 and arp_announce=2, so that the node neither answers nor asks for virtual IPs by ARP")
	f.IntVar(&c.MaxPerCore, "conntrack-max-per-core", def.MaxPerCore, "room for so many tracked connections per processor (0 leaves the kernel's limit alone; it is only ever raised)")
	f.IntVar(&c.Min, "conntrack-min", def.Min, "room for so many tracked connections at least, however few the processors; without meaning where conntrack-max-per-core is 0")
	f.DurationVar(&c.TCPEstablished, "conntrack-tcp-timeout-established", def.TCPEstablished, "how long an idle TCP connection is tracked (0 leaves it alone)")
	f.DurationVar(&c.TCPCloseWait, "conntrack-tcp-timeout-close-wait", def.TCPCloseWait, "how long a TCP connection in CLOSE_WAIT is tracked (0 leaves it alone)")
	f.BoolVar(&c.TCPBeLiberal, "conntrack-tcp-be-liberal", def.TCPBeLiberal, "track TCP packets outside the window as part of their connection")
	f.DurationVar(&c.UDP, "conntrack-udp-timeout", def.UDP, "how long a UDP flow without an answer is tracked (0 leaves it alone)")
	f.DurationVar(&c.UDPStream, "conntrack-udp-timeout-stream", def.UDPStream, "how long an idle UDP flow is tracked (0 leaves it alone)")
}

// config adds to a configuration of the kernel what the flags say.
func (s *setupFlags) config(cfg kernel.Config) (kernel.Config, error) {
	c := s.conntrack
	for _, v := range []struct {
		flag  string
		value int64
		given any
	}{
		{"conntrack-max-per-core", int64(c.MaxPerCore), c.MaxPerCore}, {"conntrack-min", int64(c.Min), c.Min},
		{"conntrack-tcp-timeout-established", int64(c.TCPEstablished), c.TCPEstablished},
		{"conntrack-tcp-timeout-close-wait", int64(c.TCPCloseWait), c.TCPCloseWait},
		{"conntrack-udp-timeout", int64(c.UDP), c.UDP}, {"conntrack-udp-timeout-stream", int64(c.UDPStream), c.UDPStream},
	} {
		if v.value < 0 {
			return cfg, fmt.Errorf("--%s=%v: want 0, which leaves the kernel's value alone, or more", v.flag, v.given)
		}
	}
	cfg.StrictARP, cfg.Conntrack = s.strictARP, c
	return cfg, nil
}

func (s *setupFlags) options() (node.Options, error) {
	cfg, err := s.config(kernel.Config{})
	return node.Options{Kernel: cfg, Scheduler: s.scheduler}, err
}
