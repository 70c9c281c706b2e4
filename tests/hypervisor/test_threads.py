# SPDX-License-Identifier: Apache-2.0
"""A VM's threads where the kernel itself adds them up: cgroups with quotas, vhost's workers."""

import re
import socket
import time
from pathlib import Path

import pytest

from bed.libvirt import Disk, Domain, Nova
from bed.otlp import settled
from bed.shell import run, wait_for
from bed.storage import LoopDisk

CPU_TIME = "kvmscope.vm.cpu.time"
STEAL = "kvmscope.vm.cpu.steal.time"
THROTTLED = "kvmscope.vm.cpu.throttled.time"
TAP = "kvmscope-tap"


def boot(bed, libvirt, name, tenant, paused=False, **options):
    return Domain(bed, libvirt, name, [Disk(LoopDisk(bed, name, 16), "native")], Nova(tenant), **options).start(paused=paused)


def scope(domain):
    """The VM's cgroup: all of its threads, and nobody else's."""
    path = re.search(r"^0::(.*)/libvirt/emulator$", Path(f"/proc/{domain.pid()}/cgroup").read_text(), re.M).group(1)
    return Path("/sys/fs/cgroup" + path)


def used(domain):
    """Seconds of CPU time by the kernel's own account of the cgroup."""
    return int(re.search(r"^usage_usec (\d+)$", (scope(domain) / "cpu.stat").read_text(), re.M).group(1)) / 1e6


class Window:
    """What grew while a busy domain ran; it is suspended at both readings."""

    def __init__(self, daemon, libvirt, domain, seconds):
        domain.background(f"timeout {4 * seconds} sh -c 'while :; do :; done'")
        libvirt.virsh("suspend", domain.name)
        used_before, before = used(domain), settled(daemon.operator_path())
        began = time.monotonic()
        libvirt.virsh("resume", domain.name)
        time.sleep(seconds)
        libvirt.virsh("suspend", domain.name)
        self.wall = time.monotonic() - began
        self.used = used(domain) - used_before
        after = settled(daemon.operator_path())
        libvirt.virsh("resume", domain.name)
        self.grown = lambda metric, **labels: (after.total(metric, vm=domain.uuid, **labels)
                                               - before.total(metric, vm=domain.uuid, **labels))


def test_what_a_quota_takes_is_no_steal(bed, libvirt, start_hostd):
    daemon = start_hostd()
    guest = boot(bed, libvirt, "quota", "tenant-a")
    for setting in ("vcpu_period=100000", "vcpu_quota=30000"):
        libvirt.virsh("schedinfo", guest.name, "--live", "--set", setting)
    window = Window(daemon, libvirt, guest, 20)
    ran, throttled, stolen = (window.grown(metric, vcpu="0") for metric in (CPU_TIME, THROTTLED, STEAL))
    assert 0.2 < ran / window.wall < 0.35
    assert 0.5 < throttled / window.wall < 0.8
    assert stolen / window.wall < 0.1
    assert window.grown(CPU_TIME) == pytest.approx(window.used, rel=0.01)
    assert daemon.stop() == 0


def vhost_worker(domain):
    """The schedstat of the VM's worker: a thread of QEMU, or one of the kernel's own."""
    name = f"vhost-{domain.pid()}"
    threads = [*Path(f"/proc/{domain.pid()}/task").iterdir(), *(p for p in Path("/proc").iterdir() if p.name.isdigit())]
    for thread in threads:
        try:
            if (thread / "comm").read_text().strip() == name:
                return thread / "schedstat"
        except OSError:
            pass  # gone meanwhile
    raise ProcessLookupError(name)


def seconds_of(schedstat):
    return int(schedstat.read_text().split()[0]) / 1e9


def test_a_vhost_worker_is_its_vms_and_the_cgroups_account_is_ours(bed, libvirt, start_hostd):
    daemon = start_hostd()
    nic = (f"<interface type='ethernet'><target dev='{TAP}'/><model type='virtio'/><driver name='vhost'/></interface>")
    guest, other = boot(bed, libvirt, "vhost", "tenant-a", devices=nic), boot(bed, libvirt, "plain", "tenant-b", paused=True)
    run("ip", "address", "add", "10.99.0.1/24", "dev", TAP)
    run("ip", "link", "set", TAP, "up")
    assert guest.run("ip address add 10.99.0.2/24 dev eth0 && ip link set eth0 up").status == 0
    wait_for("the guest's network", lambda: guest.run("ping -c 1 -W 5 10.99.0.1").status == 0)
    worker = vhost_worker(guest)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        end = time.monotonic() + 60
        while seconds_of(worker) < 0.5 and time.monotonic() < end:
            for _ in range(200):
                sender.sendto(b"x" * 1400, ("10.99.0.2", 9))
    time.sleep(2)
    libvirt.virsh("suspend", guest.name)
    truth = seconds_of(worker)
    shown = settled(daemon.operator_path())
    assert truth >= 0.5
    # From its first moment: it was born while the daemon looked on.
    assert shown.total(CPU_TIME, vm=guest.uuid, tenant="tenant-a", **{"cpu.thread": "vhost"}) == pytest.approx(truth, rel=0.01, abs=0.002)
    assert not shown.find(CPU_TIME, vm=other.uuid, **{"cpu.thread": "vhost"})
    own = settled(daemon.tenant_path("tenant-a"))
    assert own.total(CPU_TIME, **{"cpu.thread": "vhost"}) == pytest.approx(truth, rel=0.01, abs=0.002)
    libvirt.virsh("resume", guest.name)
    # The cgroup's own account, in which the worker is, is ours.
    window = Window(daemon, libvirt, guest, 20)
    assert window.used > 5
    assert window.grown(CPU_TIME) == pytest.approx(window.used, rel=0.01)
    # Gone with its VM, and its time stays.
    guest.destroy()
    time.sleep(2)
    assert settled(daemon.operator_path()).total(CPU_TIME, vm=guest.uuid, **{"cpu.thread": "vhost"}) >= truth * 0.99
    assert daemon.stop() == 0
