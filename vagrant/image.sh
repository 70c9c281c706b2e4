#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# image.sh root CACHE             makes CACHE/hypervisor-<hash>/root.img: Debian 12 with what provision.sh says, no kernel
# image.sh kernel CACHE KERNEL    makes CACHE/hypervisor-kernel-<hash>/{vmlinuz,initrd,modules.img}; KERNEL is 6.1, 6.12
#                                 or the name of a kernel package
# image.sh --name [KERNEL]        prints only the folder's name
#
# Needs root and Debian's package lists; takes the machine's own apt configuration. Nothing is done if it is there;
# prints its folder. Kernels are apart from the root file system, so that any kernel runs on the one image.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")

# What must be there to mount the root file system: the rest of the modules is on a disk of its own.
boot_modules='virtio_pci virtio_blk ext4'
# Never in such a machine, and most of what a kernel weighs.
heavy='drivers/gpu drivers/media drivers/infiniband drivers/net/wireless drivers/net/ethernet drivers/staging
  drivers/iio drivers/hwmon drivers/usb drivers/isdn drivers/scsi/qla2xxx drivers/scsi/lpfc sound net/wireless'

package() {
  case $1 in
    6.1) echo linux-image-amd64 ;;
    6.12) echo linux-image-6.12-amd64 ;;
    *) echo "$1" ;;
  esac
}

# key NAME FILE...: of what goes into it.
key() { { cat "$here/image.sh" "${@:2}"; echo "$1"; } | sha256sum | cut -c1-16; }
root_name() { echo "hypervisor-$(key root "$here/provision.sh" "$here/guest" "$here/guest.service")"; }
kernel_name() { echo "hypervisor-kernel-$(key "$(package "$1")" "$here/initrd-init")"; }

# The machine's sources, of Debian only, and how it reaches them.
sources() {
  apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' | sort -u
}

apt_options() {
  apt-config dump Acquire
  printf 'Dir::Etc::netrc "/etc/apt/auth.conf";\nDir::Etc::netrcparts "/etc/apt/auth.conf.d/";\n'
}

make_root() {
  local work=$1 out=$2 packages
  packages=$("$here/provision.sh" packages | paste -sd,)
  apt_options >"$work/apt.conf"
  sources >"$work/sources.list"
  [ -s "$work/sources.list" ] || { echo "no Debian package lists: run apt-get update" >&2; exit 1; }
  mmdebstrap --quiet --mode=root --format=directory --variant=minbase --include="$packages" \
    --aptopt="$work/apt.conf" --aptopt='Acquire::Retries "3"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="upload $here/provision.sh /root/provision.sh" \
    --customize-hook='chroot "$1" sh /root/provision.sh configure' \
    --customize-hook="copy-in $here/guest /usr/local/sbin" \
    --customize-hook="copy-in $here/guest.service /etc/systemd/system" \
    --customize-hook='systemctl --root="$1" --quiet enable guest.service' \
    --customize-hook='rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/apt/sources.list.d/"*' \
    --customize-hook='echo hypervisor >"$1/etc/hostname"; systemd-id128 new >"$1/etc/machine-id"' \
    --customize-hook='echo 127.0.0.1 localhost hypervisor >"$1/etc/hosts"' \
    --customize-hook='systemctl --root="$1" --quiet mask getty@tty1.service serial-getty@ttyS0.service' \
    --customize-hook='chroot "$1" passwd -d root >/dev/null' \
    bookworm "$work/root" "$work/sources.list"
  # Sparse: it takes what is in it; the rest is room for the payload and the guests' disks.
  mke2fs -q -t ext4 -E lazy_itable_init=1 -O ^metadata_csum -d "$work/root" "$out/root.img" 12G
}

make_kernel() {
  local work=$1 out=$2 package=$3 image version tree
  # A meta-package depends on the kernel of the day; any other is one itself.
  image=$(apt-cache depends "$package" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
  (cd "$work" && apt-get -o APT::Sandbox::User=root -o Acquire::Retries=3 -qq download "${image:-$package}")
  tree=$work/tree
  dpkg -x "$work"/linux-image-*.deb "$tree"
  version=$(ls "$tree/lib/modules")
  for folder in $heavy; do rm -rf "$tree/lib/modules/$version/kernel/$folder"; done
  depmod -b "$tree" "$version"
  cp "$tree/boot/vmlinuz-$version" "$out/vmlinuz"
  mke2fs -q -t ext4 -m 0 -d "$tree/lib/modules" "$out/modules.img" "$(($(du -sm "$tree/lib/modules" | cut -f1) * 5 / 4 + 16))M"
  make_initrd "$work/initrd" "$tree" "$version" "$out/initrd"
}

make_initrd() {
  local root=$1 tree=$2 version=$3 out=$4 module path
  mkdir -p "$root"/{bin,dev,proc,sys,modules,new}
  cp /bin/busybox "$root/bin/"
  for module in $boot_modules; do
    # insmod PATH OPTIONS, in the order that they need
    modprobe -d "$tree" -S "$version" --show-depends "$module" | sed -n 's/^insmod //p'
  done | awk '!seen[$1]++ {print $1}' | while read -r path; do
    case $path in
      *.xz) xz -dc "$path" >"$root/modules/$(basename "$path" .xz)" ;;
      *) cp "$path" "$root/modules/" ;;
    esac
    path=${path##*/}
    echo "${path%.xz}" >>"$root/modules/order"
  done
  install -m 755 "$here/initrd-init" "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$out"
}

# made NAME FUNCTION ARGUMENT...: CACHE/NAME, complete or not at all.
made() {
  local name=$1 function=$2 work
  shift 2
  if [ ! -f "$cache/$name/complete" ]; then
    work=$(mktemp -d "$cache/hypervisor-build.XXXXXX")
    # shellcheck disable=SC2064  # as it is now
    trap "rm -rf --one-file-system '$work'" EXIT
    chmod 755 "$work"
    mkdir "$work/out"
    "$function" "$work" "$work/out" "$@" >&2
    touch "$work/out/complete"
    rm -rf "${cache:?}/$name"
    mv "$work/out" "$cache/$name"
  fi
  echo "$cache/$name"
}

cache=${2:-}
case ${1:-} in
  --name) if [ $# = 2 ]; then kernel_name "$2"; else root_name; fi ;;
  root) made "$(root_name)" make_root ;;
  kernel) made "$(kernel_name "$3")" make_kernel "$(package "$3")" ;;
  *) sed -n '3,6p' "$0" >&2; exit 2 ;;
esac
