package main

import (
	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
)

// setupFlags are the flags about how a node is set up, which run, init and check share. The names are
// kube-proxy's.
type setupFlags struct {
	scheduler string
	strictARP bool
}

func (s *setupFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.scheduler, "ipvs-scheduler", "rr", "scheduler of the virtual servers: rr, wrr, lc, wlc, lblc, lblcr, sed, nq, …")
	f.BoolVar(&s.strictARP, "ipvs-strict-arp", false, "set arp_ignore=1 and arp_announce=2, so that the node neither answers nor asks for virtual IPs by ARP")
}

// config adds to a configuration of the kernel what the flags say.
func (s *setupFlags) config(cfg kernel.Config) kernel.Config {
	cfg.StrictARP = s.strictARP
	return cfg
}

func (s *setupFlags) options() node.Options {
	return node.Options{Kernel: s.config(kernel.Config{}), Scheduler: s.scheduler}
}
