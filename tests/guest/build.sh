#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# build.sh CACHE | --key: makes CACHE/guest-<hash>/{vmlinuz,initrd}: Debian's cloud kernel, virtio modules, busybox, vmio.
# The kernel package is unpacked, never installed. Nothing is done if the image is there; prints its folder.
# --key: prints only the hash.
set -eu
here=$(dirname "$(readlink -f "$0")")
key=$(cat "$here/build.sh" "$here/init" "$here/vmio.c" | sha256sum | cut -c1-16)
[ "$1" = --key ] && { echo "$key"; exit; }
cache=$1
modules='virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk failover net_failover virtio_net'
out=$cache/guest-$key
if [ ! -f "$out/initrd" ]; then
  work=$(mktemp -d "$cache/guest-build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  chmod 755 "$work"
  kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
  [ -n "$kernel" ] || { echo "no cloud kernel package known: run apt-get update" >&2; exit 1; }
  (cd "$work" && apt-get -o APT::Sandbox::User=root -o Acquire::Retries=3 -qq download "$kernel")
  dpkg -x "$work"/linux-image-*.deb "$work/kernel"
  root=$work/root
  mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/modules" "$root/tmp" "$work/out"
  for module in $modules; do
    find "$work/kernel/lib/modules" -name "$module.ko" -exec cp {} "$root/modules/" \;
    [ -f "$root/modules/$module.ko" ] && echo "$module" >>"$root/modules/order"
  done
  cp /bin/busybox "$root/bin/"
  gcc -static -O2 -Wall -Wextra -Werror -Wno-misleading-indentation -o "$root/bin/vmio" "$here/vmio.c"
  install -m 755 "$here/init" "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/out/initrd"
  cp "$work"/kernel/boot/vmlinuz-* "$work/out/vmlinuz"
  chmod -R a+rX "$work/out"
  rm -rf "$out"
  mv "$work/out" "$out"
fi
echo "$out"
