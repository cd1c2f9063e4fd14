package main

import (
	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
)

// kernelConfig is what the constant part of the kernel's state depends on.
func kernelConfig(c *config.Config) kernel.Config {
	p, t := &c.Proxy, &c.Proxy.Conntrack
	return kernel.Config{
		ClusterCIDRs:  c.ClusterCIDRs(),
		PodsFollow:    p.DetectLocalMode == "NodeCIDR",
		PodInterface:  c.PodInterface(),
		MasqueradeAll: p.IPTables.MasqueradeAll,
		ForeignMarks:  c.ForeignMarks(),
		Binding:       kernel.Binding(c.Own.VIPBinding),
		StrictARP:     p.IPVS.StrictARP,
		Timeouts: kernel.Timeouts{
			TCP: p.IPVS.TCPTimeout.Duration, TCPFin: p.IPVS.TCPFinTimeout.Duration, UDP: p.IPVS.UDPTimeout.Duration,
		},
		Conntrack: kernel.Conntrack{
			MaxPerCore: int(*t.MaxPerCore), Min: int(*t.Min),
			TCPEstablished: t.TCPEstablishedTimeout.Duration, TCPCloseWait: t.TCPCloseWaitTimeout.Duration,
			UDP: t.UDPTimeout.Duration, UDPStream: t.UDPStreamTimeout.Duration,
			TCPBeLiberal: t.TCPBeLiberal,
		},
	}
}

// nodeOptions is how a node is set up.
func nodeOptions(c *config.Config) node.Options {
	cfg := kernelConfig(c)
	return node.Options{Kernel: kernel.Config{StrictARP: cfg.StrictARP, Conntrack: cfg.Conntrack}, Scheduler: c.Proxy.IPVS.Scheduler}
}
