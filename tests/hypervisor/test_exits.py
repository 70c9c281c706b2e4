# SPDX-License-Identifier: Apache-2.0
"""vCPU exits, halts and emulation under real KVM, against what KVM itself tells libvirt."""

import re
import time
from pathlib import Path

import pytest

from bed.libvirt import Disk, Domain, Nova, Own
from bed.otlp import export_of, settled
from bed.shell import run, wait_for
from bed.storage import LoopDisk

EXITS = "kvmscope.vm.cpu.exits"
EXIT_TIME = "kvmscope.vm.cpu.exit.time"
EMULATIONS = "kvmscope.vm.cpu.emulations"
EMULATION_TIME = "kvmscope.vm.cpu.emulation.time"
HALT = "kvmscope.vm.cpu.halt.time"
CPU_TIME = "kvmscope.vm.cpu.time"
READS = 200


def boot(bed, libvirt, name, metadata, vcpus=1, wait=True, topology=""):
    return Domain(bed, libvirt, name, [Disk(LoopDisk(bed, name, 16), "native")], metadata, vcpus=vcpus,
                  topology=topology).start(wait)


def kvm_exits(libvirt, domain, vcpu):
    stats = libvirt.virsh("domstats", "--vcpu", domain.name)
    return int(re.search(rf"vcpu\.{vcpu}\.exits\.sum=(\d+)", stats).group(1))


class Window:
    """What was exported of a domain's vCPUs between two readings while it was suspended."""

    def __init__(self, daemon, libvirt, domain):
        self.daemon, self.libvirt, self.domain = daemon, libvirt, domain

    def _reading(self):
        exits = [kvm_exits(self.libvirt, self.domain, n) for n in range(self.domain.vcpus)]
        return exits, settled(self.daemon.operator_path())

    def __enter__(self):
        self.libvirt.virsh("suspend", self.domain.name)
        self._before = self._reading()
        self.libvirt.virsh("resume", self.domain.name)
        self._resumed = time.monotonic()
        return self

    def __exit__(self, *_):
        self.libvirt.virsh("suspend", self.domain.name)
        self.seconds = time.monotonic() - self._resumed
        self._after = self._reading()
        self.libvirt.virsh("resume", self.domain.name)

    def kvm(self, vcpu):
        return self._after[0][vcpu] - self._before[0][vcpu]

    def grown(self, metric, **labels):
        after, before = (export.total(metric, vm=self.domain.uuid, **labels) for export in (self._after[1], self._before[1]))
        return after - before

    def by_reason(self, metric, vcpu="0"):
        reasons = {series.attrs["cpu.exit.reason"] for series in self._after[1].find(metric, vm=self.domain.uuid, vcpu=vcpu)}
        return {reason: self.grown(metric, vcpu=vcpu, **{"cpu.exit.reason": reason}) for reason in reasons}


@pytest.fixture(scope="module")
def guests(bed, libvirt):
    pair = (boot(bed, libvirt, "exits-a", Nova("tenant-a"), vcpus=2, wait=False),
            boot(bed, libvirt, "exits-b", Nova("tenant-b"), wait=False))
    for guest in pair:
        guest.wait_booted()
    return pair


def test_exits_are_kvms_own_exactly(libvirt, start_hostd, guests):
    daemon = start_hostd()
    busy, idle = guests
    with Window(daemon, libvirt, idle) as beside, Window(daemon, libvirt, busy) as window:
        busy.vmio("vda", "read", 200)
        busy.run("taskset 2 dd if=/dev/zero of=/dev/null bs=1M count=100")
    for vcpu in range(2):
        assert window.kvm(vcpu) > 0
        assert window.grown(EXITS, vcpu=str(vcpu)) == window.kvm(vcpu)
    assert beside.grown(EXITS, vcpu="0") == beside.kvm(0)
    own = settled(daemon.tenant_path("tenant-a"))
    assert own.find(EXITS, vm=busy.uuid) and not own.find(EXITS, vm=idle.uuid)
    # The host's side of the exits is no more than the vCPU's thread ran.
    for vcpu in ("0", "1"):
        spent = window.grown(EXIT_TIME, vcpu=vcpu) + window.grown(EMULATION_TIME, vcpu=vcpu)
        assert 0 < spent <= window.grown(CPU_TIME, vcpu=vcpu) * 1.02
    assert daemon.stop() == 0


def test_a_guest_that_halts_and_one_that_hammers_a_port(libvirt, start_hostd, guests):
    daemon = start_hostd()
    hammer, idle = guests
    with Window(daemon, libvirt, idle) as halting:
        time.sleep(20)
    blocked = halting.grown(HALT, vcpu="0")
    assert 0.8 * halting.seconds < blocked < 1.05 * halting.seconds
    assert halting.grown(HALT, **{"vcpu": "0", "cpu.halt": "blocked"}) > 0.5 * blocked
    # Of the host's side of an exit sleep is no part.
    assert halting.grown(EXIT_TIME) + halting.grown(EMULATION_TIME) <= halting.grown(CPU_TIME, vcpu="0") * 1.02

    with Window(daemon, libvirt, hammer) as hammering:
        # Each word of a device's configuration is read by two accesses to ports, and QEMU's to emulate.
        config = "/sys/bus/pci/devices/0000:00:00.0/config"
        assert hammer.run(f"taskset 1 sh -c 'for i in $(seq {READS}); do cat {config}; done' >/dev/null").status == 0
    reasons = hammering.by_reason(EXITS)
    assert max(reasons, key=reasons.get) == "io" and reasons["io"] >= READS * 2 * 64
    assert hammering.grown(EMULATIONS, vcpu="0") >= READS * 2 * 64
    assert hammering.grown(EMULATION_TIME, vcpu="0") > 0
    assert daemon.stop() == 0


def test_owners_and_ends(bed, libvirt, start_hostd, guests):
    """Each owner has the exits of his time, and a killed VM all of them; each vCPU its own, whatever KVM calls it."""
    for guest in guests:
        guest.destroy()
    daemon = start_hostd(interval="600s")  # no reading but those that these events need
    # Here QEMU's numbers for KVM (its APIC's) are 0, 1, 2, 4, 5, 6.
    topology = "<topology sockets='2' cores='3' threads='1'/>"
    guest = boot(bed, libvirt, "exits-owned", Own("tenant-x"), vcpus=6, topology=topology, wait=False)
    wait_for("its first exits", lambda: kvm_exits(libvirt, guest, 0) > 1000)
    libvirt.virsh("suspend", guest.name)
    formers = [kvm_exits(libvirt, guest, vcpu) for vcpu in range(6)]
    guest.set_own_metadata("tenant-y")
    wait_for("its new owner", lambda: [vm["tenant"] for vm in daemon.client_json("vms")
                                       if vm["uuid"] == guest.uuid and vm["state"] == "attributed"] == ["tenant-y"])
    libvirt.virsh("resume", guest.name)
    guest.wait_booted()
    libvirt.virsh("suspend", guest.name)
    all_of_it = [kvm_exits(libvirt, guest, vcpu) for vcpu in range(6)]
    guest.kill()
    wait_for("its end", lambda: not [vm for vm in daemon.client_json("vms")
                                     if vm["uuid"] == guest.uuid and vm["state"] == "attributed"])
    assert daemon.stop() == 0
    export = export_of(daemon.operator_path())
    for tenant, exits in (("tenant-x", formers), ("tenant-y", [a - b for a, b in zip(all_of_it, formers)])):
        assert [export.total(EXITS, vm=guest.uuid, tenant=tenant, vcpu=str(vcpu)) for vcpu in range(6)] == exits
    assert min(all_of_it) > 0 and not export.find(EXITS, vm=guest.uuid, vcpu="other")
    guest.destroy()


def test_kvm_may_come_after_the_daemon(bed, libvirt, start_hostd, guests):
    for guest in guests:
        guest.destroy()
    (module,) = re.findall(r"^(kvm_amd|kvm_intel) ", Path("/proc/modules").read_text(), re.M)
    run("modprobe", "-r", module)
    daemon = start_hostd()
    run("modprobe", module)
    wait_for("the programs", lambda: "KVM is here" in daemon.log(), timeout=60)
    guest = boot(bed, libvirt, "exits-late", Nova("tenant-l"), wait=False)
    wait_for("its first exits", lambda: settled(daemon.operator_path()).total(EXITS, vm=guest.uuid, vcpu="0") > 0)
    guest.destroy()
    assert daemon.stop() == 0
