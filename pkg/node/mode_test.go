package node

import (
	"slices"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

func TestKubeProxyModeIsKnownByNames(t *testing.T) {
	chain := func(family, table, name string) kernel.Chain {
		return kernel.Chain{Family: family, Table: table, Name: name}
	}
	kubelets := []kernel.Chain{chain("ip", "mangle", "KUBE-KUBELET-CANARY"), chain("ip", "filter", "KUBE-FIREWALL"), chain("ip", "filter", "INPUT")}
	for _, c := range []struct {
		name   string
		tables []string
		chains []kernel.Chain
		want   string
	}{
		{"the kubelet's", []string{"ip filter", "ip mangle"}, kubelets, ""},
		{"ipvs", []string{"ip filter", "ip nat"}, append(slices.Clone(kubelets), chain("ip", "nat", "KUBE-SERVICES"), chain("ip", "filter", "KUBE-IPVS-FILTER")),
			"ipvs"},
		{"iptables", []string{"ip nat"}, []kernel.Chain{chain("ip", "nat", "KUBE-SVC-ABC"), chain("ip", "nat", "KUBE-SEP-ABC")}, "iptables"},
		{"nftables", []string{"ip kube-proxy", "ip6 kube-proxy"}, []kernel.Chain{chain("ip", "kube-proxy", "services")},
			"nftables"},
	} {
		if got := judgeMode(c.tables, c.chains); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestPresentReadsTheList(t *testing.T) {
	const list = "Num       RefCount Protocol Flags    Type St Inode Path\n" +
		"0000000000000000: 00000002 00000000 00010000 0001 01 21000 @ipvs-proxy.io/agent\n" +
		"0000000000000000: 00000003 00000000 00000000 0001 03 21001\n"
	if !hasSocket(list, presenceName) || hasSocket(list, "@another") {
		t.Error("the list was misread")
	}
	release, err := Claim()
	if err != nil {
		t.Fatal(err)
	}
	there, err := Present()
	release()
	gone, err2 := Present()
	if !there || gone || err != nil || err2 != nil {
		t.Errorf("held: %t, %v; let go: %t, %v", there, err, gone, err2)
	}
}
