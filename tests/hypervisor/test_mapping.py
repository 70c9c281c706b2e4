# SPDX-License-Identifier: Apache-2.0
"""Domains of type kvm under systemd-machined are mapped to their VM and tenant, whatever they are called and wherever
their cgroup is; what each does is counted as its own."""

import os
import re
from pathlib import Path

import pytest

from bed.libvirt import Disk, Domain, Nova
from bed.otlp import OPERATIONS, settled
from bed.shell import wait_for
from bed.storage import LoopDisk

CPU_TIME = "kvmscope.vm.cpu.time"


def unified_path(pid, tid=None):
    """Where a process, or one of its threads, is in the unified hierarchy."""
    text = Path(f"/proc/{pid}/task/{tid or pid}/cgroup").read_text()
    return re.search(r"^0::(.*)$", text, re.M).group(1)


def vcpu_threads(pid):
    """{number: thread} of a QEMU's vCPUs, by their names."""
    names = {tid: Path(f"/proc/{pid}/task/{tid}/comm").read_text() for tid in os.listdir(f"/proc/{pid}/task")}
    found = ((re.match(r"CPU (\d+)/KVM", name), tid) for tid, name in names.items())
    return {int(match.group(1)): int(tid) for match, tid in found if match}


def boot(bed, libvirt, name, tenant, disk=None, paused=False, **options):
    disk = disk or Disk(LoopDisk(bed, f"disk-{tenant}", 16), "native")
    domain = Domain(bed, libvirt, name, [disk], Nova(tenant, f"{tenant}-vm", f"project {tenant}"), **options)
    return domain.start(wait=False, paused=paused)


def mapped(daemon, domain):
    """The daemon's own line about a domain, once it knows the owner."""
    def line():
        found = [vm for vm in daemon.client_json("vms") if vm["uuid"] == domain.uuid]
        return found[0] if found and found[0]["state"] == "attributed" else None

    return wait_for(f"{domain.name} to be mapped", line)


def assert_mapped(daemon, domain, libvirt):
    vm = mapped(daemon, domain)
    assert vm["pid"] == domain.pid()
    assert vm["tenant"] == domain.metadata.project_id and vm["tenant_name"] == domain.metadata.project_name
    assert str(vm["domain_id"]) == libvirt.virsh("domid", domain.uuid)
    assert [disk["target"] for disk in vm["disks"]] == ["vda"]


def assert_counts_land(daemon, counts):
    """counts: {domain: writes}, made here; all of them, and nothing at anybody else's."""
    before = settled(daemon.operator_path())
    for domain, writes in counts.items():
        domain.vmio("vda", "write", writes)
    after = settled(daemon.operator_path())

    def written(export, domain, tenant):
        return export.total(OPERATIONS, vm=domain.uuid, tenant=tenant, direction="write")

    for domain, writes in counts.items():
        own = domain.metadata.project_id
        assert written(after, domain, own) - written(before, domain, own) == writes
        assert written(after, domain, None) == written(after, domain, own)


@pytest.fixture(scope="module")
def pair(bed, libvirt):
    """Two tenants' guests; one is older than the daemon."""
    return [boot(bed, libvirt, f"pair-{tenant}", tenant) for tenant in ("tenant-a", "tenant-b")]


def test_it_is_a_hypervisor_under_systemd(pair):
    for number, domain in enumerate(pair):
        domain.wait_booted()
        assert re.fullmatch(r"/machine\.slice/machine-qemu\\x2d\d+\\x2dkvmscope.*\.scope/libvirt/emulator",
                            unified_path(domain.pid())), number
        thread = vcpu_threads(domain.pid())[0]
        assert unified_path(domain.pid(), thread).endswith(".scope/libvirt/vcpu0")


def test_two_tenants_guests_are_mapped(libvirt, start_hostd, pair):
    daemon = start_hostd()
    for domain in pair:
        assert_mapped(daemon, domain, libvirt)
    assert_counts_land(daemon, {pair[0]: 31, pair[1]: 17})
    assert daemon.stop() == 0


NAMES = {
    "odd": "-a.b c  d--e_.-", "utf-8": "zażółć gęślą ☃", "escaped": "a&b<c>'d'\"e\"",
    # 64 characters is what machined takes; two that differ only beyond
    "long-1": "instance-" + "x" * 80 + "-1", "long-2": "instance-" + "x" * 80 + "-2",
}


def test_names_and_partitions(bed, libvirt, start_hostd):
    daemon = start_hostd()
    # They need not run: QEMU reads its disk and uses the CPU all the same.
    domains = [boot(bed, libvirt, name, f"tenant-{key}", paused=True) for key, name in NAMES.items()]
    partition = boot(bed, libvirt, "partition", "tenant-p", paused=True, partition="/machine/foo")
    domains.append(partition)
    for domain in domains:
        assert_mapped(daemon, domain, libvirt)
    assert unified_path(partition.pid()).startswith("/machine.slice/machine-foo.slice/machine-qemu")
    used = {domain: domain.cpu_seconds() for domain in domains}
    shown = settled(daemon.operator_path())
    for domain in domains:
        own = domain.metadata.project_id
        # Of QEMU itself: the kernel's helpers of the VM are `other`. Its clock also has what was before it became QEMU.
        qemu = sum(shown.total(CPU_TIME, vm=domain.uuid, tenant=own, **{"cpu.thread": thread}) for thread in ("vcpu", "emulator"))
        assert used[domain] * 0.95 <= qemu <= domain.cpu_seconds() * 1.02
        assert shown.total(OPERATIONS, vm=domain.uuid, tenant=own, direction="read") > 0
        assert {series.resource["cloud.account.id"] for series in shown.find(CPU_TIME, vm=domain.uuid)} == {own}
        domain.destroy()
    assert daemon.stop() == 0


def test_a_plugged_vcpu(bed, libvirt, start_hostd):
    daemon = start_hostd()
    plugged = boot(bed, libvirt, "plugged", "tenant-v", Disk(LoopDisk(bed, "plugged", 16), "native", ioeventfd=False),
                   max_vcpus=2)
    plugged.wait_booted()
    assert_mapped(daemon, plugged, libvirt)
    # Requests of the new vCPU are submitted by its own thread, which is in a cgroup that came after the mapping.
    libvirt.virsh("setvcpus", plugged.name, "2", "--live")
    threads = wait_for("the second vCPU", lambda: (lambda t: t if len(t) == 2 else None)(vcpu_threads(plugged.pid())))
    assert unified_path(plugged.pid(), threads[1]).endswith(".scope/libvirt/vcpu1")
    wait_for("the second CPU in the guest", lambda: plugged.run(
        "echo 1 >/sys/devices/system/cpu/cpu1/online; grep -q 0-1 /sys/devices/system/cpu/online").status == 0)
    before = settled(daemon.operator_path())
    assert plugged.run("taskset 2 vmio /dev/vda write 50 4096").json()["writes"] == 50
    after = settled(daemon.operator_path())
    shown = [export.total(OPERATIONS, vm=plugged.uuid, tenant="tenant-v", direction="write") for export in (before, after)]
    assert shown[1] - shown[0] == 50
    for metric in (CPU_TIME, "kvmscope.vm.cpu.exits"):
        assert after.total(metric, vm=plugged.uuid, tenant="tenant-v", vcpu="1") > 0
    assert daemon.stop() == 0
