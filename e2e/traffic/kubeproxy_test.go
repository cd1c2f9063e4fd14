package traffic

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// kubeProxy writes into a node's kernel what kube-proxy writes there for one Service in each of its modes, with the
// programs that it uses, as far as packets and names go.
type kubeProxy struct {
	t    *testing.T
	s    *stage
	n    *lab.Node
	svc  lab.Service
	pods []*lab.Pod // the endpoints
	// legacy: with iptables-legacy in place of iptables-nft.
	legacy bool
}

func (k *kubeProxy) run(input, name string, args ...string) string {
	k.t.Helper()
	var out []byte
	if err := k.n.Do(func() (err error) {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(input)
		out, err = cmd.CombinedOutput()
		return err
	}); err != nil {
		k.t.Fatalf("%s %q on %s: %v\n%s\n%s", name, args, k.n.Name, err, out, input)
	}
	return string(out)
}

func (k *kubeProxy) program(family int, what string) string {
	return map[int]string{4: "iptables", 6: "ip6tables"}[family] + map[bool]string{false: "-nft", true: "-legacy"}[k.legacy] + what
}

// rules is what iptables-save prints of both families.
func (k *kubeProxy) rules() string {
	k.t.Helper()
	return k.run("", k.program(4, "-save")) + k.run("", k.program(6, "-save"))
}

// proto is the protocol of a port in small letters.
func proto(p lab.Port) string {
	if p.Protocol == "" {
		return "tcp"
	}
	return strings.ToLower(p.Protocol)
}

func podRange(family int) string {
	if family == 4 {
		return lab.ClusterCIDR4.String()
	}
	return lab.ClusterCIDR6.String()
}

// addresses are where the Service has its ports: ClusterIP, and a load balancer's.
func (k *kubeProxy) addresses(family int) []netip.Addr {
	return []netip.Addr{at(k.svc, family, 1).Addr(), balancerAddr(k.svc, family)}
}

// kubelet puts what the kubelet makes and keeps.
func (k *kubeProxy) kubelet() {
	k.t.Helper()
	k.run("*filter\n:KUBE-FIREWALL - [0:0]\n-I INPUT -j KUBE-FIREWALL\n-I OUTPUT -j KUBE-FIREWALL\nCOMMIT\n*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n",
		k.program(4, "-restore"), "--noflush")
}

// iptables puts its rules of mode iptables.
func (k *kubeProxy) iptables() {
	k.t.Helper()
	for _, family := range []int{4, 6} {
		var chains, rules strings.Builder
		add := func(format string, args ...any) { fmt.Fprintf(&rules, "-A "+format+"\n", args...) }
		for _, c := range []string{"SERVICES", "NODEPORTS", "POSTROUTING", "MARK-MASQ", "PROXY-CANARY"} {
			fmt.Fprintf(&chains, ":KUBE-%s - [0:0]\n", c)
		}
		for i, p := range k.svc.Ports {
			svc, ext := fmt.Sprintf("KUBE-SVC-%016d", i), fmt.Sprintf("KUBE-EXT-%016d", i)
			fmt.Fprintf(&chains, ":%s - [0:0]\n:%s - [0:0]\n", svc, ext)
			add("%s ! -s %s -j KUBE-MARK-MASQ", svc, podRange(family))
			for j, pod := range k.pods {
				sep := fmt.Sprintf("KUBE-SEP-%08d%08d", i, j)
				fmt.Fprintf(&chains, ":%s - [0:0]\n", sep)
				add("%s -m statistic --mode nth --every %d --packet 0 -j %s", svc, len(k.pods)-j, sep)
				add("%s -s %s -j KUBE-MARK-MASQ", sep, pod.Addr(family))
				add("%s -p %s -m %[2]s -j DNAT --to-destination %s", sep, proto(p), netip.AddrPortFrom(pod.Addr(family), p.TargetPort))
			}
			add("%s -j KUBE-MARK-MASQ", ext)
			add("%s -j %s", ext, svc)
			for j, a := range k.addresses(family) {
				add(`KUBE-SERVICES -d %s -p %s -m %[2]s --dport %d -m comment --comment "default/%s:%s" -j %s`, a, proto(p), p.Port, k.svc.Name, p.Name, []string{svc, ext}[j])
			}
			if p.NodePort != 0 {
				add("KUBE-NODEPORTS -p %s -m %[1]s --dport %d -j %s", proto(p), p.NodePort, ext)
			}
		}
		add("KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
		add("KUBE-MARK-MASQ -j MARK --or-mark 0x4000")
		add("KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN")
		add("KUBE-POSTROUTING -j MARK --xor-mark 0x4000")
		add("KUBE-POSTROUTING -j MASQUERADE --random-fully")
		jumps := `-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
`
		filter := `*filter
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
`
		// A load balancer with source ranges has this; whoever was let in has another destination by now.
		filter += fmt.Sprintf("-A KUBE-PROXY-FIREWALL -d %s -p tcp -m tcp --dport 80 -j DROP\nCOMMIT\n", balancerAddr(k.svc, family))
		k.run("*nat\n"+chains.String()+jumps+rules.String()+"COMMIT\n"+filter, k.program(family, "-restore"), "--noflush")
	}
}

// ipvs puts its rules and sets of mode ipvs. Virtual servers and addresses are there.
func (k *kubeProxy) ipvs() {
	k.t.Helper()
	for _, family := range []int{4, 6} {
		set, inet := "KUBE-", "inet"
		if family == 6 {
			set, inet = "KUBE-6-", "inet6"
		}
		sets := fmt.Sprintf("create %[1]sCLUSTER-IP hash:ip,port family %[2]s\ncreate %[1]sLOAD-BALANCER hash:ip,port family %[2]s\ncreate %[1]sIPVS-IPS hash:ip family %[2]s\ncreate %[1]sNODE-PORT-TCP bitmap:port range 0-65535\ncreate %[1]sNODE-PORT-UDP bitmap:port range 0-65535\ncreate %[1]sLOOP-BACK hash:ip,port,ip family %[2]s\n", set, inet)
		addrs := k.addresses(family)
		for i, a := range addrs {
			sets += fmt.Sprintf("add %sIPVS-IPS %s\n", set, a)
			for _, p := range k.svc.Ports {
				sets += fmt.Sprintf("add %s%s %s,%s:%d\n", set, []string{"CLUSTER-IP", "LOAD-BALANCER"}[i], a, proto(p), p.Port)
			}
		}
		for _, p := range k.svc.Ports {
			if p.NodePort != 0 {
				sets += fmt.Sprintf("add %sNODE-PORT-%s %d\n", set, strings.ToUpper(proto(p)), p.NodePort)
			}
		}
		k.run(sets, "ipset", "restore")
		k.run(strings.NewReplacer("@SET", set, "@PODS", podRange(family)).Replace(`*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -m set --match-set @SETLOAD-BALANCER dst,dst -j KUBE-LOAD-BALANCER
-A KUBE-SERVICES ! -s @PODS -m set --match-set @SETCLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set @SETCLUSTER-IP dst,dst -j ACCEPT
-A KUBE-NODE-PORT -p tcp -m set --match-set @SETNODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-NODE-PORT -p udp -m set --match-set @SETNODE-PORT-UDP dst -j KUBE-MARK-MASQ
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m set --match-set @SETLOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-IPVS-FILTER - [0:0]
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set @SETLOAD-BALANCER dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set @SETCLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set @SETIPVS-IPS dst -j REJECT
COMMIT
`), k.program(family, "-restore"), "--noflush")
	}
}

// nftables puts its tables of mode nftables.
func (k *kubeProxy) nftables() {
	k.t.Helper()
	for _, family := range []int{4, 6} {
		ip := map[int]string{4: "ip", 6: "ip6"}[family]
		var chains, services strings.Builder
		for i, p := range k.svc.Ports {
			svc := fmt.Sprintf("service-%d", i)
			for j, pod := range k.pods {
				fmt.Fprintf(&chains, "chain endpoint-%d-%d {\n %s saddr %s jump mark-for-masquerade\n meta l4proto %s dnat to %s\n}\n", i, j, ip, pod.Addr(family), proto(p), netip.AddrPortFrom(pod.Addr(family), p.TargetPort))
			}
			fmt.Fprintf(&chains, "chain %s {\n %s saddr != %s jump mark-for-masquerade\n numgen inc mod %d vmap {", svc, ip, podRange(family), len(k.pods))
			for j := range k.pods {
				fmt.Fprintf(&chains, " %d : goto endpoint-%d-%d,", j, i, j)
			}
			fmt.Fprintf(&chains, " }\n}\nchain external-%d {\n jump mark-for-masquerade\n goto %s\n}\n", i, svc)
			for j, a := range k.addresses(family) {
				fmt.Fprintf(&services, " %s daddr %s %s dport %d goto %s\n", ip, a, proto(p), p.Port, []string{svc, fmt.Sprintf("external-%d", i)}[j])
			}
			if p.NodePort != 0 {
				fmt.Fprintf(&services, " fib daddr type local %s dport %d goto external-%d\n", proto(p), p.NodePort, i)
			}
		}
		k.run(fmt.Sprintf(`table %s kube-proxy {
chain mark-for-masquerade { meta mark set mark or 0x4000; }
%s
chain services {
%s}
chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
chain nat-output { type nat hook output priority -100; jump services; }
chain nat-postrouting { type nat hook postrouting priority srcnat
 meta mark & 0x4000 == 0 return
 meta mark set mark xor 0x4000
 masquerade fully-random
}
}
`, ip, chains.String(), services.String()), "nft", "-f", "-")
	}
}

// ownFile is a configuration with a line of our own document, and lines of kube-proxy's.
func ownFile(t *testing.T, line string, theirs ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := fmt.Sprintf("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: %s,%s\n%s\n---\napiVersion: ipvs-proxy.io/v1alpha1\nkind: IPVSProxyConfiguration\n%s\n",
		lab.ClusterCIDR4, lab.ClusterCIDR6, strings.Join(theirs, "\n"), line)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
