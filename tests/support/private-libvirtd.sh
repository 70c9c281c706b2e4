#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A libvirtd of one's own, which may be killed and stopped without disturbing any other on the machine. Needs root.
#
#   private-libvirtd.sh start DIR   starts (or, after a kill, starts again) the daemon that lives in DIR
#   private-libvirtd.sh stop DIR    ends its domains and the daemon; DIR may then be removed
#   private-libvirtd.sh kill-domain DIR NAME   ends a domain while the daemon is away, with its cgroup
#
# It runs in a mount namespace where all of libvirt's folders are DIR's. Outside of that namespace:
#   DIR/run/libvirt-sock   the socket: qemu+unix:///system?socket=DIR/run/libvirt-sock
#   DIR/run/qemu           the domains' pid files (LibvirtSource::Options::run_dir)
#   DIR/libvirtd.pid       the daemon's process id
# cgroups are the host's own. DIR must be short: a socket's path has at most 107 characters.
set -euo pipefail
dir=$(readlink -m "$2")
cache=${KVMSCOPE_CACHE:-/var/tmp/kvmscope}/libvirt-capabilities-of-tests
uri="qemu+unix:///system?socket=$dir/run/libvirt-sock"

running() { [[ -s $dir/libvirtd.pid ]] && kill -0 "$(cat "$dir/libvirtd.pid")" 2>/dev/null; }

start() {
  running && return
  mkdir -p "$dir"/{run,lib,log,cache,etc} /run/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /etc/libvirt
  # Probing QEMU's capabilities takes ten seconds: the result is kept from one daemon to the next.
  [[ -d $dir/cache/qemu || ! -d $cache ]] || cp -a "$cache/." "$dir/cache/"
  # One process per domain and nothing else: no virtlogd, no mount namespaces, no security labels.
  cat >"$dir/etc/qemu.conf" <<CONF
stdio_handler = "file"
namespaces = []
security_driver = "none"
user = "root"
group = "root"
CONF
  cat >"$dir/etc/libvirtd.conf" <<CONF
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:file:$dir/log/libvirtd.log"
CONF
  rm -f "$dir/run/libvirt-sock" "$dir/run/libvirt-sock-ro"
  unshare --mount --propagation private bash -euc '
    mount --bind "$1/run" /run/libvirt
    mount --bind "$1/lib" /var/lib/libvirt
    mount --bind "$1/log" /var/log/libvirt
    mount --bind "$1/cache" /var/cache/libvirt
    mount --bind "$1/etc" /etc/libvirt
    exec setsid libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$1/libvirtd.pid" --timeout 0
  ' - "$dir" </dev/null >"$dir/log/stdout" 2>&1 &
  for _ in $(seq 300); do
    if [[ -S $dir/run/libvirt-sock ]] && virsh -c "$uri" version >/dev/null 2>&1; then
      [[ -d $cache ]] || { mkdir -p "${cache%/*}" && cp -a "$dir/cache" "$cache"; }
      return
    fi
    sleep 0.1
  done
  echo "private-libvirtd: no answer from $uri:" >&2
  tail -n 5 "$dir/log/stdout" "$dir/log/libvirtd.log" >&2 || true
  exit 1
}

# libvirt removes a domain's cgroup when it sees the domain end: here nobody may be left to see it.
end_domain() {
  local pid=$1 group=/
  group=$(sed -n 's|^0::\(.*\.libvirt-qemu\).*|\1|p' "/proc/$pid/cgroup" 2>/dev/null) || return 0
  kill -9 "$pid" 2>/dev/null || return 0
  while kill -0 "$pid" 2>/dev/null; do sleep 0.02; done
  local root
  root=$(awk '/ - cgroup2 / {print $5; exit}' /proc/self/mountinfo)
  [[ -n $group && -d $root$group ]] && find "$root$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
}

stop() {
  if running; then
    pid=$(cat "$dir/libvirtd.pid")
    kill -9 "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.02; done
  fi
  for pidfile in "$dir"/run/qemu/*.pid; do
    [[ ${pidfile##*/} == driver.pid || ! -s $pidfile ]] && continue  # driver.pid: the daemon's own
    end_domain "$(cat "$pidfile")"
  done
}

case $1 in
  start) start ;;
  stop) stop ;;
  kill-domain) end_domain "$(cat "$dir/run/qemu/$3.pid")" ;;
  *) sed -n '3,7p' "$0" >&2; exit 2 ;;
esac
