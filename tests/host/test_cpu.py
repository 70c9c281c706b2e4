# SPDX-License-Identifier: Apache-2.0
"""CPU time and steal of VMs, against the scheduler's own account of their threads."""

import os
import signal
import time

import pytest

from bed.libvirt import Disk, Domain, Nova
from bed.otlp import export_of, settled
from bed.shell import SLOWNESS, wait_for
from bed.storage import LoopDisk

CPU_TIME = "kvmscope.vm.cpu.time"
STEAL = "kvmscope.vm.cpu.steal.time"
DELAY = "kvmscope.vm.cpu.delay.duration"


def boot(bed, libvirt, name, tenant, **options):
    return Domain(bed, libvirt, name, [Disk(LoopDisk(bed, name), "native")], Nova(tenant)).start(**options)


@pytest.fixture(scope="module")
def pair(bed, libvirt):
    """Of two tenants, booted at the same time."""
    guests = [boot(bed, libvirt, f"pair-{tenant}", tenant, wait=False) for tenant in ("tenant-a", "tenant-b")]
    for guest in guests:
        guest.wait_booted()
    return guests


def busy(guest, seconds):
    return guest.background(f"timeout {seconds} sh -c 'while :; do :; done'")


def vcpu_thread(guest):
    for tid in os.listdir(f"/proc/{guest.pid()}/task"):
        with open(f"/proc/{guest.pid()}/task/{tid}/comm", encoding="utf-8") as comm:
            if comm.read().startswith("CPU 0/"):
                return int(tid)
    raise ProcessLookupError(guest.name)


def schedstat(guest):
    """Seconds on a CPU and waiting for one, of the vCPU's thread."""
    with open(f"/proc/{guest.pid()}/task/{vcpu_thread(guest)}/schedstat", encoding="utf-8") as file:
        ran_ns, waited_ns, _ = map(int, file.read().split())
    return ran_ns / 1e9, waited_ns / 1e9


def of_vcpu(export, guest, metric):
    return export.total(metric, vm=guest.uuid, vcpu="0")


def test_a_vcpus_time_is_the_schedulers_to_the_microsecond(libvirt, start_hostd, pair):
    daemon = start_hostd()
    guest, other = pair
    busy(guest, 30)
    libvirt.virsh("suspend", guest.name)
    truth = schedstat(guest)
    before = settled(daemon.operator_path())
    libvirt.virsh("resume", guest.name)
    time.sleep(3)
    libvirt.virsh("suspend", guest.name)
    truth = tuple(now - then for now, then in zip(schedstat(guest), truth))
    after = settled(daemon.operator_path())
    libvirt.virsh("resume", guest.name)
    assert truth[0] > 0.5
    for metric, seconds in zip((CPU_TIME, STEAL), truth):
        shown = of_vcpu(after, guest, metric) - of_vcpu(before, guest, metric)
        assert shown == pytest.approx(seconds, abs=2e-6), metric
    assert of_vcpu(after, other, CPU_TIME) - of_vcpu(before, other, CPU_TIME) < truth[0] / 4
    mine = settled(daemon.tenant_path("tenant-a"))
    assert mine.total(CPU_TIME, vm=guest.uuid) > 0 and not mine.find(CPU_TIME, vm=other.uuid)
    rows = [row for row in daemon.client_json("top", "--once")["cpus"] if row["uuid"] == guest.uuid]
    assert {"vcpu 0", "emulator"} <= {row["thread"] for row in rows}
    assert daemon.stop() == 0


def test_a_short_life_is_complete(bed, libvirt, start_hostd):
    daemon = start_hostd(interval="1m")
    guest = boot(bed, libvirt, "brief", "tenant-a", wait=False)
    time.sleep(2)
    pid = guest.pid()
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.2)
    truth = guest.cpu_seconds()
    os.kill(pid, signal.SIGKILL)
    wait_for("libvirt to notice", lambda: guest.name not in libvirt.virsh("list", "--name"))
    time.sleep(1)
    assert daemon.stop() == 0
    for path in (daemon.operator_path(), daemon.tenant_path("tenant-a")):
        shown = export_of(path).total(CPU_TIME, vm=guest.uuid)
        assert truth * 0.99 <= shown <= truth * 1.01 + 0.05 * SLOWNESS  # what its end cost, too


def test_two_vcpus_on_one_cpu_share_it_and_say_so(start_hostd, pair):
    daemon = start_hostd()
    for guest in pair:
        busy(guest, 60)
        os.sched_setaffinity(vcpu_thread(guest), {0})
    before = settled(daemon.operator_path())
    time.sleep(5)
    after = settled(daemon.operator_path())
    wall = (after.newest() - before.newest()) / 1e9
    for guest in pair:
        ran, waited = (of_vcpu(after, guest, m) - of_vcpu(before, guest, m) for m in (CPU_TIME, STEAL))
        assert ran + waited == pytest.approx(wall, rel=0.03), guest.name
        assert 0.25 < waited / wall < 0.75, guest.name
        delays = after.histogram(DELAY, vm=guest.uuid, vcpu="0") - before.histogram(DELAY, vm=guest.uuid, vcpu="0")
        assert delays.sum == pytest.approx(waited, rel=0.1, abs=0.05)
    assert daemon.stop() == 0
