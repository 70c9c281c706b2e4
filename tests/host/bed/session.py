# SPDX-License-Identifier: Apache-2.0
"""A session of the bed: mounts and libvirt folders of its own, and a parent that leaves no process behind."""

import ctypes
import glob
import os
import shutil
import signal
import time
from pathlib import Path

from .shell import CACHE, run

_PRIVATE_DIRS = ["/run/libvirt", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"]
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result, what):
    if result != 0:
        raise OSError(ctypes.get_errno(), what + " (root is needed)")


def enter():
    """Call once, first thing, with one thread. What follows runs in a child of the calling process.

    libvirt's own folders, all mounts made afterwards and the network are private: the bed's libvirtd can be killed at will and the
    host's own never notices. The parent adopts and reaps what the child's processes leave (QEMU and nbdkit put
    themselves into the background; libvirtd waits seconds for a zombie that nobody reaps), kills what is still there
    when the child has ended, and ends with the child's status.
    """
    _check(_libc.prctl(36, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")
    child = os.fork()
    if child != 0:
        os._exit(_reap_until_done(child))
    _check(_libc.prctl(1, signal.SIGTERM, 0, 0, 0), "PR_SET_PDEATHSIG")
    clone_newns, clone_newnet, ms_rec, ms_private = 0x20000, 0x40000000, 0x4000, 0x40000
    _check(_libc.unshare(clone_newns | clone_newnet), "unshare")
    run("ip", "link", "set", "lo", "up")
    _check(_libc.mount(None, b"/", None, ms_rec | ms_private, None), "private mounts")
    for folder in _PRIVATE_DIRS:
        os.makedirs(folder, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", "mode=755", "kvmscope", folder)
    kept = CACHE / "libvirt-capabilities"  # probing QEMU takes seconds: its result is kept between runs
    kept.mkdir(parents=True, exist_ok=True)
    run("mount", "--bind", kept, "/var/cache/libvirt")
    # As root, or /dev/kvm is out of reach on hosts without udev, and libvirt then probes QEMU anew at every start.
    Path("/etc/libvirt/qemu.conf").write_text(
        'user = "root"\ngroup = "root"\nstdio_handler = "file"\nremember_owner = 0\n', encoding="ascii")
    Path("/etc/libvirt/libvirtd.conf").write_text(
        'auth_unix_rw = "none"\nauth_unix_ro = "none"\nunix_sock_ro_perms = "0777"\n', encoding="ascii")


def _reap_until_done(child):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child is in the same process group and gets its own
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: os.kill(child, received))
    status = None
    while status is None:
        pid, code = os.waitpid(-1, 0)
        if pid == child:
            status = os.waitstatus_to_exitcode(code)
    _kill_leftovers()
    _sweep(child)
    return status if status >= 0 else 128 - status


def _kill_leftovers():
    """All that is left below this process was started by its child."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
        except ChildProcessError:
            return
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _sweep(child):
    """Loop devices and folders of a child that was killed: normally there are none."""
    folders = glob.glob(f"/var/tmp/kvmscope-*-{child}-*")
    for line in run("losetup", "--noheadings", "--list", "--output", "NAME,BACK-FILE").splitlines() if folders else []:
        device, _, backing = line.partition(" ")
        if any(backing.strip().startswith(folder) for folder in folders):
            run("losetup", "--detach", device, check=False)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _children():
    """Own children (the kernel's list of them, /proc/PID/task/TID/children, is not built everywhere)."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            after_name = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        if int(after_name[1]) == os.getpid():
            found.append(int(entry))
    return found
