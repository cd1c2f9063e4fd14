#!/bin/sh
# Makes a Debian 12 or 13 machine one that kubeadm can take into a cluster: container runtime, kubelet, and where the pods'
# network comes from. Run as root; a second run changes nothing.
#
#   node.sh FILES REGISTRY IP
#
# FILES is where the programs are: kubelet, kubeadm, kubectl (http://172.28.128.1:8088/bin). REGISTRY is asked for all
# images before their own registries are (http://172.28.128.1:8088). IP is the node's address in the cluster.
set -eu
files=$1 registry=$2 ip=$3

# Debian's packages; nothing is asked of a mirror where the box has them.
packages="containerd runc containernetworking-plugins conntrack ethtool iptables ipset nftables kmod curl ca-certificates"
missing=
for p in $packages; do
	dpkg -s "$p" >/dev/null 2>&1 || missing="$missing $p"
done
if [ -n "$missing" ]; then
	apt-get update -q
	# shellcheck disable=SC2086 # one word a package
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fi

# kubeadm wants forwarding, and no swap; flannel ends where br_netfilter is not loaded. IPVS is for the proxy to load.
echo 'net.ipv4.ip_forward = 1' >/etc/sysctl.d/90-kubernetes.conf
sysctl -q -p /etc/sysctl.d/90-kubernetes.conf
swapoff -a
printf '%s\n' overlay br_netfilter >/etc/modules-load.d/kubernetes.conf
modprobe -a overlay br_netfilter

for p in kubelet kubeadm kubectl; do
	curl -fsS -o "/usr/local/bin/$p.new" "$files/$p"
	chmod 755 "/usr/local/bin/$p.new"
	mv "/usr/local/bin/$p.new" "/usr/local/bin/$p"
done

# containerd: systemd's control groups, as the kubelet has them; every registry by way of ours.
mkdir -p /etc/containerd/certs.d/_default
cat >/etc/containerd/certs.d/_default/hosts.toml <<EOF
[host."$registry"]
  capabilities = ["pull", "resolve"]
EOF
cat >/etc/containerd/config.toml <<'EOF'
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10.2"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
EOF

# The kubelet, as kubeadm's packages have it.
mkdir -p /etc/kubernetes/manifests
cat >/etc/systemd/system/kubelet.service <<EOF
[Unit]
Description=kubelet
Wants=network-online.target
After=network-online.target containerd.service

[Service]
Environment=KUBECONFIGS='--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf'
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
ExecStart=/bin/sh -c 'exec /usr/local/bin/kubelet \$KUBECONFIGS --config=/var/lib/kubelet/config.yaml --node-ip=$ip \$KUBELET_KUBEADM_ARGS'
Restart=always
StartLimitInterval=0
RestartSec=10

[Install]
WantedBy=multi-user.target
EOF

# The pods' network: flannel says which range is this node's, and what flannel's CNI plugin would hand on to the plugin
# bridge is written down instead.
cat >/usr/local/sbin/cni-of-flannel <<'EOF'
#!/bin/sh
set -eu
. /run/flannel/subnet.env
# flannel names the bridge's address in a /24, host-local wants the range.
subnet=${FLANNEL_SUBNET%.*}.0/${FLANNEL_SUBNET#*/}
mkdir -p /etc/cni/net.d
cat >/etc/cni/net.d/.10-flannel.new <<CNI
{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
  {"type": "bridge", "bridge": "cni0", "mtu": $FLANNEL_MTU, "isDefaultGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "subnet": "$subnet", "routes": [{"dst": "$FLANNEL_NETWORK"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
CNI
mv /etc/cni/net.d/.10-flannel.new /etc/cni/net.d/10-flannel.conflist
EOF
chmod 755 /usr/local/sbin/cni-of-flannel
cat >/etc/systemd/system/cni-of-flannel.service <<'EOF'
[Unit]
Description=CNI configuration from flannel's subnet
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/cni-of-flannel
EOF
cat >/etc/systemd/system/cni-of-flannel.path <<'EOF'
[Unit]
Description=flannel's subnet
[Path]
PathChanged=/run/flannel/subnet.env
Unit=cni-of-flannel.service
[Install]
WantedBy=multi-user.target
EOF

# A box's own configuration of the CNI, if any, would come before flannel's.
rm -f /etc/cni/net.d/10-containerd-net.conflist
systemctl daemon-reload
systemctl enable -q kubelet.service cni-of-flannel.path containerd.service
systemctl start cni-of-flannel.path
systemctl restart containerd.service
