# SPDX-License-Identifier: Apache-2.0
"""The guest's own operations, as QEMU counts them: also where the host's block layer sees none, or others."""

import contextlib
import os
import signal
import subprocess
import time

import pytest

from bed.libvirt import Disk, Domain, Nova
from bed.otlp import IO as STORAGE_IO, settled
from bed.shell import run, wait_for
from bed.storage import LoopDisk

OPERATIONS = "kvmscope.vm.disk.operations"
BYTES = "kvmscope.vm.disk.io"
TIME = "kvmscope.vm.disk.operation.time"
UNOBSERVED = "kvmscope.vm.disk.unobserved.time"


class NetworkDisk:
    """Storage that the host's block layer never sees: QEMU's own NBD client, an nbdkit that takes 20 ms to read."""

    is_block = False

    def __init__(self, bed):
        self.socket = bed.folder / "nbd.sock"
        run("nbdkit", "-U", self.socket, "-P", bed.folder / "nbd.pid", "--filter=delay", "memory", "16M", "rdelay=20ms")
        bed.push(lambda: run("kill", (bed.folder / "nbd.pid").read_text().strip(), check=False))
        wait_for("nbdkit", self.socket.exists)
        self.socket.chmod(0o666)  # QEMU's user is another

    def xml(self):
        return (f"<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/>"
                f"<source protocol='nbd' name=''><host transport='unix' socket='{self.socket}'/></source>"
                f"<target dev='vdb' bus='virtio'/></disk>")


def of(export, guest, metric, direction, disk):
    return export.total(metric, vm=guest.uuid, **{"disk.device": disk, "disk.io.direction": direction})


def test_a_guests_operations_are_qemus(bed, libvirt, start_hostd):
    daemon = start_hostd()
    guest = Domain(bed, libvirt, "guest-io", [Disk(LoopDisk(bed, "guest-io", 64), "native")], Nova("tenant-a"),
                   devices=NetworkDisk(bed).xml()).start()
    wait_for("the first reading", lambda: settled(daemon.operator_path()).find(OPERATIONS, vm=guest.uuid))
    before = settled(daemon.operator_path())
    guest.vmio("vda", "write", 50, 4096)
    guest.vmio("vda", "read", 3, MIB := 1 << 20)
    guest.vmio("vda", "write", 4, 4096, flush_every=1)
    guest.vmio("vdb", "read", 30, 4096)

    def all_there():
        export = settled(daemon.operator_path())
        grown = of(export, guest, OPERATIONS, "read", "vdb") - of(before, guest, OPERATIONS, "read", "vdb")
        return export if grown >= 30 else None

    after = wait_for("what the guest did last", all_there)

    def grown(metric, direction, disk):
        return of(after, guest, metric, direction, disk) - of(before, guest, metric, direction, disk)

    assert grown(OPERATIONS, "write", "vda") == 54 and grown(BYTES, "write", "vda") == 54 * 4096
    assert grown(OPERATIONS, "read", "vda") == 3 and grown(BYTES, "read", "vda") == 3 * MIB
    assert grown(OPERATIONS, "flush", "vda") >= 4
    # Of the network disk the host's block layer knows nothing.
    assert grown(OPERATIONS, "read", "vdb") == 30 and grown(BYTES, "read", "vdb") == 30 * 4096
    assert 30 * 0.020 <= grown(TIME, "read", "vdb") < 30 * 0.020 * 4
    assert not after.find(STORAGE_IO, vm=guest.uuid, **{"disk.device": "vdb"})
    own = settled(daemon.tenant_path("tenant-a"))
    assert of(own, guest, OPERATIONS, "read", "vdb") == of(after, guest, OPERATIONS, "read", "vdb")
    assert 0 < after.total(UNOBSERVED, vm=guest.uuid) < 10

    # With libvirtd away they stay what they were, and say for how long; the host's counts go on.
    libvirt.pause()
    try:
        guest.vmio("vda", "write", 5, 4096)
        time.sleep(4)
        away = settled(daemon.operator_path())
        assert of(away, guest, OPERATIONS, "write", "vda") == of(after, guest, OPERATIONS, "write", "vda")
        assert away.total(UNOBSERVED, vm=guest.uuid) > 3
    finally:
        libvirt.pause(stop=False)
    wait_for("its return", lambda: of(settled(daemon.operator_path()), guest, OPERATIONS, "write", "vda") ==
             of(after, guest, OPERATIONS, "write", "vda") + 5)
    guest.destroy()
    assert daemon.stop() == 0


@contextlib.contextmanager
def busy(libvirt, guest):
    """libvirt has a job on the domain, that waits for its QEMU: nobody else is told more than the names of its disks."""
    pid = guest.pid()
    os.kill(pid, signal.SIGSTOP)
    job = subprocess.Popen(["virsh", "-q", "-c", libvirt.uri, "domblkstat", guest.name, "vda"], stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def names_alone():
        try:
            said = run("virsh", "-q", "-c", libvirt.uri, "domstats", "--block", "--nowait", guest.name, timeout=3)
        except subprocess.TimeoutExpired:  # this one got the job
            return False
        return "block.0.name" in said and "rd.reqs" not in said

    try:
        wait_for("a job on the domain", names_alone)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
        job.wait()


@pytest.mark.parametrize("at_first", ["idle", "busy"])
def test_a_daemon_that_comes_later_begins_with_its_first_reading(bed, libvirt, start_hostd, at_first):
    name = f"later-{at_first}"
    guest = Domain(bed, libvirt, name, [Disk(LoopDisk(bed, name, 16), "native")], Nova("tenant-b")).start()
    guest.vmio("vda", "write", 40, 4096)
    time.sleep(3)

    def unobserved():
        return settled(daemon.operator_path()).total(UNOBSERVED, vm=guest.uuid)

    with busy(libvirt, guest) if at_first == "busy" else contextlib.nullcontext():
        daemon = start_hostd()
        if at_first == "busy":
            wait_for("time without a reading", lambda: unobserved() > 3)
            assert not settled(daemon.operator_path()).find(OPERATIONS, vm=guest.uuid)
    wait_for("the first reading", lambda: settled(daemon.operator_path()).find(OPERATIONS, vm=guest.uuid))
    if at_first == "busy":
        assert unobserved() > 3  # that time is in none
    guest.vmio("vda", "write", 6, 4096)
    wait_for("six writes", lambda: of(settled(daemon.operator_path()), guest, OPERATIONS, "write", "vda") == 6)
    time.sleep(3)
    assert of(settled(daemon.operator_path()), guest, OPERATIONS, "write", "vda") == 6
    guest.destroy()
    assert daemon.stop() == 0
