package main

import (
	"fmt"
	"io"
	"strings"
)

// page writes docs/clusters.md.
func (r *record) page(w io.Writer) error {
	var b strings.Builder
	b.WriteString(pageHead)
	fmt.Fprintf(&b, "\n## What ran, and when\n\nLast results: %s, on %s.\n\n| what | version |\n| --- | --- |\n", r.Day, r.Machines)
	for _, v := range r.Versions {
		fmt.Fprintf(&b, "| %s | %s |\n", v.What, v.Version)
	}
	b.WriteString("\n## Bringing it up\n\n| step | seconds |\n| --- | --- |\n")
	for _, s := range r.Steps {
		fmt.Fprintf(&b, "| %s | %.0f |\n", s.What, s.Seconds)
	}
	b.WriteString("\n## Stories\n\n| story | what | came to | seconds |\n| --- | --- | --- | --- |\n")
	for _, v := range r.Stories {
		came := "held"
		if !v.Passed {
			came = "**failed**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %.0f |\n", v.Name, v.What, came, v.Seconds)
	}
	for _, v := range r.Stories {
		fmt.Fprintf(&b, "\n### %s\n\n", v.Name)
		for _, f := range v.Figures {
			fmt.Fprintf(&b, "- %s\n", f)
		}
		if !v.Passed {
			fmt.Fprintf(&b, "\nIt failed:\n\n```\n%s\n```\n", v.Failure)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

const pageHead = `# A cluster of real machines

Three machines with kernels of their own, kubelet, containerd and flannel, made into a cluster by kubeadm with kube-proxy in
mode ` + "`ipvs`" + `. ipvs-proxy is installed there as [Replacing kube-proxy](replace-kube-proxy.md) says: the commands that run are
those of that page, word for word. This page is written by ` + "`make vagrant-page`" + ` from what the last runs came to.

` + "```" + `
make vagrant-up      # machines, kubeadm, kube-proxy, flannel
make vagrant-test    # the stories below; a story that passed with the same sources is not told again
make vagrant-down    # removes the machines
` + "```" + `

It wants root, Debian, 12 GB of memory and 20 GB of disk, and the module proxy. Kubernetes, etcd, CoreDNS and flannel are compiled
from their published modules, once. Vagrant, libvirt and QEMU are Debian's; without KVM the processors are emulated. The box
is made of Debian's packages; ` + "`BOX=`" + ` takes another one of Debian 12 or 13, and ` + "`VAGRANT_DEFAULT_PROVIDER=virtualbox`" + ` another
provider: neither was tried. flannel's CNI plugin is not a published module: a unit of each node writes down what it would hand
on to the plugin ` + "`bridge`" + `.
`
