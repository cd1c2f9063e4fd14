#!/bin/sh
# Makes a box of Debian 12 for Vagrant's provider libvirt, of Debian's packages alone. Run as root.
#
#   box.sh SOURCES DIR
#
# SOURCES is an apt sources list of bookworm. DIR is made: box.img, vmlinuz, initrd.img and what Vagrant reads of a box.
# The machines boot the kernel directly, so there is no boot loader in it.
set -eu
sources=$1 dir=$2
mkdir -p "$dir"
root=$dir/root

packages="linux-image-cloud-amd64 systemd-sysv dbus libpam-systemd udev kmod openssh-server sudo ifupdown isc-dhcp-client iproute2 iputils-ping
	netbase procps rsync curl ca-certificates less e2fsprogs
	containerd runc containernetworking-plugins conntrack ethtool iptables ipset ipvsadm nftables"
include=$(echo $packages | tr ' ' ',')
mmdebstrap --quiet --variant=minbase --include="$include" \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
	bookworm "$root" "$sources"

# What the machine that made it has is none of the box's business: its mirrors are.
cat >"$root/etc/apt/sources.list" <<'EOF'
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian-security bookworm-security main
EOF
echo '/dev/vda / ext4 defaults,noatime 0 1' >"$root/etc/fstab"
echo debian >"$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n' >"$root/etc/hosts"
printf 'auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n' >"$root/etc/network/interfaces"
: >"$root/etc/machine-id"
echo 'UseDNS no' >"$root/etc/ssh/sshd_config.d/vagrant.conf"

# What Vagrant asks of a box: a user vagrant that may all, and whose key everybody has.
chroot "$root" useradd --create-home --shell /bin/bash vagrant
echo 'vagrant ALL=(ALL) NOPASSWD:ALL' >"$root/etc/sudoers.d/vagrant"
install -d -m 700 "$root/home/vagrant/.ssh"
cp "$(dpkg -L vagrant | grep /keys/vagrant.pub$)" "$root/home/vagrant/.ssh/authorized_keys"
chroot "$root" chown -R vagrant:vagrant /home/vagrant/.ssh
chroot "$root" systemctl mask --quiet apt-daily.timer apt-daily-upgrade.timer man-db.timer e2scrub_all.timer fstrim.timer

cp "$(ls "$root"/boot/vmlinuz-*)" "$dir/vmlinuz"
cp "$(ls "$root"/boot/initrd.img-*)" "$dir/initrd.img"
truncate -s 12G "$dir/box.raw"
mke2fs -q -t ext4 -O ^metadata_csum -d "$root" "$dir/box.raw"
qemu-img convert -O qcow2 "$dir/box.raw" "$dir/box.img"
rm -rf "$root" "$dir/box.raw"
echo '{"provider": "libvirt", "format": "qcow2", "virtual_size": 12}' >"$dir/metadata.json"
cat >"$dir/Vagrantfile" <<'EOF'
# The kernel of the box, where libvirt may read it; make vagrant-box put it there.
Vagrant.configure("2") do |config|
  config.vm.provider "libvirt" do |libvirt|
    libvirt.kernel = "/var/lib/libvirt/images/ipvs-proxy-debian-12/vmlinuz"
    libvirt.initrd = "/var/lib/libvirt/images/ipvs-proxy-debian-12/initrd.img"
    libvirt.cmd_line = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off init_on_alloc=0"
  end
end
EOF
