# SPDX-License-Identifier: Apache-2.0
"""./dev demo: three small guests of two projects, kvmscope on the host, and what each tenant gets.

demo.py [--check] [SECONDS]: --check only says whether it can run here. Everything it starts is gone when it ends, except
for the exported lines in build/demo.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "host"))

from bed import session  # noqa: E402
from bed.daemon import Hostd  # noqa: E402
from bed.libvirt import Disk, Domain, Libvirt, Nova  # noqa: E402
from bed.shell import SOURCE, CommandFailed, Resources  # noqa: E402
from bed.storage import FileDisk, SlowDisk  # noqa: E402

OUTPUT = SOURCE / "build/demo"
SHOP, LAB = "5f0c1e9a7b2d4c3e8a6f1b2c3d4e5f60", "9d8c7b6a5f4e3d2c1b0a9f8e7d6c5b4a"
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, the same in every kernel


def obstacles():
    """What is missing here, one line each."""
    if os.geteuid() != 0:
        yield "not root: kvmscope loads BPF programs"
        return
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        yield "no /sys/kernel/btf/vmlinux: this kernel was built without BTF (CONFIG_DEBUG_INFO_BTF)"
    if os.readlink("/proc/self/ns/pid") != _INITIAL_PID_NAMESPACE:
        yield "inside a container (another pid namespace than the kernel's): run it on the host or in a VM"
    if not _can_bpf():
        yield "bpf(2) is refused: CAP_BPF and CAP_PERFMON are needed (a plain container has neither)"
    for device, what in (("/dev/loop-control", "loop devices"), ("/dev/fuse", "FUSE")):
        if not os.path.exists(device):
            yield f"no {device}: the demo's slow disk needs {what}"
    if shutil.which("libvirtd") is None and not os.path.exists("/usr/sbin/libvirtd"):
        yield "no libvirtd: run ./dev setup"


def _can_bpf():
    """Makes the smallest map there is: BPF_MAP_CREATE of an array of one u32."""
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = (ctypes.c_uint32 * 32)(2, 4, 4, 1)
    bpf_syscall = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine)
    fd = libc.syscall(bpf_syscall, 0, attributes, ctypes.sizeof(attributes)) if bpf_syscall else -1
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def host_has_libvirt():
    try:
        return subprocess.run(["virsh", "-q", "-c", Libvirt.uri, "version"], stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=20, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def show(seconds):
    began = time.monotonic()

    def say(text):
        print(f"[{time.monotonic() - began:4.1f} s] {text}", flush=True)

    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    with Resources("kvmscope-demo-") as bed:
        libvirt = Libvirt(bed)
        say("libvirtd answers")
        daemon = Hostd(bed, {
            "host": {"id": os.uname().nodename, "region": "demo"}, "log": {"level": "info"},
            "tenants": {"default": {"path": str(OUTPUT / "tenant-${tenant.id}.jsonl")}},
            "operator": {"path": str(OUTPUT / "operator.jsonl")},
        }, interval="2s", build=SOURCE / "build/release").start()
        say("kvmscope-hostd is ready")
        plan = [
            ("web-1", Nova(SHOP, "web-1", "shop"), FileDisk(bed, bed.folder, "web-1", 48),
             "vmio /dev/vda readwrite 0 4k depth=4 order=rand pause_us=4000 seconds=600"),
            ("db-1", Nova(SHOP, "db-1", "shop"), SlowDisk(bed, "db-1", 20, 30),
             "vmio /dev/vda readwrite 0 8k depth=2 order=rand flush_every=8 seconds=600"),
            ("batch-1", Nova(LAB, "batch-1", "lab"), FileDisk(bed, bed.folder, "batch-1", 48),
             "vmio /dev/vda read 0 64k depth=8 pause_us=20000 seconds=600"),
        ]
        say("disks are written; db-1's takes 20 ms for a read and 30 ms for a write")
        guests = [(Domain(bed, libvirt, name, [Disk(disk, "native")], metadata).start(wait=False), load)
                  for name, metadata, disk, load in plan]
        for guest, load in guests:
            guest.wait_booted()
            guest.background(load)
        say("three guests of two projects are at work: kvmscope top, for half a minute\n")
        top = subprocess.Popen([daemon.build / "hostd/kvmscope", "--socket", daemon.config["control"]["socket"], "top"])
        try:
            top.wait(seconds)
            raise CommandFailed(f"kvmscope top ended by itself with {top.returncode}\n{daemon.log()[-2000:]}")
        except subprocess.TimeoutExpired:
            top.send_signal(signal.SIGINT)
            top.wait(10)
        print()
        for guest, _ in guests:
            guest.destroy()
        code = daemon.stop()
        say(f"guests stopped; kvmscope-hostd exported the last interval and ended with {code}")
    show_lines()
    return code


def show_lines():
    owner = (int(os.environ.get("SUDO_UID", -1)), int(os.environ.get("SUDO_GID", -1)))
    os.chown(OUTPUT, *owner)
    for name, project in (("shop", SHOP), ("lab", LAB)):
        path = OUTPUT / f"tenant-{project}.jsonl"
        os.chown(path, *owner)
        lines = path.read_text(encoding="utf-8").splitlines()
        print(f"\nproject {name}: {len(lines)} OTLP requests in {path.relative_to(SOURCE)}")
        for line in lines[-2:]:
            print("  " + line[:300] + (" ..." if len(line) > 300 else ""))
    os.chown(OUTPUT / "operator.jsonl", *owner)
    print("\nthe operator, all VMs: build/demo/operator.jsonl")


def main(arguments):
    missing = list(obstacles())
    for line in missing:
        print(f"demo: {line}", file=sys.stderr)
    if missing or "--check" in arguments:
        return 1 if missing else 0
    if host_has_libvirt():
        print("using this host's libvirtd, with transient domains named kvmscope-demo-*")
    else:
        session.enter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return show(float(arguments[0]) if arguments else 30.0)
    except KeyboardInterrupt:
        return 130
    except (CommandFailed, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
