#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# provision.sh [packages | configure]: turns a Debian 12 system into the hypervisor of the tests.
#
#   packages    prints what it installs, one a line
#   configure   all but installing
#   (nothing)   both: what the Vagrantfile runs
#
# The image builder installs the packages itself and runs `configure` in the new root, where nothing is started.
set -eu

packages='
  systemd systemd-sysv systemd-container dbus udev kmod procps util-linux iproute2 busybox-static e2fsprogs openssl
  libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils
  nbdkit libnbd-bin fuse3 fio bpftool python3
  libgrpc++1.51 libprotobuf32 libbpf1 libelf1 libvirt0 libpugixml1v5 libyaml-cpp0.7 libspdlog1.10 libfmt9 libssl3
  libsystemd0 libcap2 libstdc++6
'
# Where the processor is not the one that a module is for, loading it fails and nothing waits for it.
modules='kvm_amd kvm_intel vhost_net tun loop fuse'
# What makes a boot long, or a shutdown (libvirt-guests waits minutes for guests that nobody shuts down).
unwanted='
  libvirt-guests.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
  e2scrub_reap.service systemd-networkd-wait-online.service
'

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq -o Acquire::Retries=3 update
  # shellcheck disable=SC2086  # one word per package
  apt-get -qq -o Acquire::Retries=3 install --no-install-recommends -y $packages
}

configure() {
  printf '%s\n' $modules >/etc/modules-load.d/kvmscope.conf
  # shellcheck disable=SC2086  # one word per unit
  systemctl mask --quiet $unwanted
  # A guest's disks are wherever a test puts them; the owner of an image that two domains share is nobody's to restore.
  grep -qx 'remember_owner = 0' /etc/libvirt/qemu.conf || echo 'remember_owner = 0' >>/etc/libvirt/qemu.conf
  # libvirtd stays, also when nobody is connected.
  printf 'LIBVIRTD_ARGS=""\n' >/etc/default/libvirtd
}

case ${1:-} in
  packages) printf '%s\n' $packages ;;
  configure) configure ;;
  '')
    install_packages
    configure
    # One of kvm_amd and kvm_intel is not for this processor.
    systemctl restart systemd-modules-load || true
    systemctl restart libvirtd
    ;;
  *) sed -n '3,9p' "$0" >&2; exit 2 ;;
esac
