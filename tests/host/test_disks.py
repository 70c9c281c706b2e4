# SPDX-License-Identifier: Apache-2.0
"""Disks that change under a running VM: what was counted stays where it was reported, what comes is the disk's."""

import pytest

from bed.libvirt import Disk, Domain, Nova
from bed.otlp import OPERATIONS, export_of, settled
from bed.shell import wait_for
from bed.storage import FileDisk, Filesystem, block_stat


@pytest.fixture
def filesystem(bed, request):
    return Filesystem(bed, request.node.name[5:15])


def boot(bed, libvirt, filesystem, name, metadata=None):
    disk = Disk(FileDisk(bed, filesystem.folder, name), "native")
    return Domain(bed, libvirt, name, [disk], metadata).start()


def shown(export, guest, direction):
    """{disk: operations}; reading the export has already proven that no series fell."""
    series = export.find(OPERATIONS, vm=guest.uuid, direction=direction)
    return {s.attrs["disk.device"]: s.last for s in series if s.last}


def test_an_unplugged_disk_keeps_its_series(bed, libvirt, start_hostd, filesystem):
    daemon = start_hostd()
    guest = boot(bed, libvirt, filesystem, "unplug", Nova("tenant-a"))
    old = Disk(FileDisk(bed, filesystem.folder, "old", 16))
    assert guest.attach(old) == "vdb"
    guest.vmio("vdb", "write", 100)
    settled(daemon.operator_path())
    guest.vmio("vdb", "write", 37)  # in no reading before it goes
    guest.detach(old)
    settled(daemon.operator_path())
    fresh = Disk(FileDisk(bed, filesystem.folder, "fresh", 16))
    assert guest.attach(fresh) == "vdb"
    guest.vmio("vdb", "write", 5)
    settled(daemon.operator_path())
    assert daemon.stop() == 0
    for path in (daemon.operator_path(), daemon.tenant_path("tenant-a")):
        assert shown(export_of(path), guest, "write") == {"vdb": 142}
    guest.destroy()


def test_a_snapshot_and_its_commit_are_one_disk(bed, libvirt, start_hostd, filesystem):
    daemon = start_hostd()
    guest = boot(bed, libvirt, filesystem, "snapshot", Nova("tenant-a"))
    guest.vmio("vda", "write", 100)
    settled(daemon.operator_path())
    guest.vmio("vda", "write", 37)
    overlay = f"{filesystem.folder}/overlay.qcow2"
    libvirt.virsh("snapshot-create-as", guest.name, "--disk-only", "--no-metadata", "--diskspec",
                  f"vda,file={overlay},driver=qcow2")
    guest.vmio("vda", "read", 200)  # from the image below
    guest.vmio("vda", "write", 20)  # into the overlay, with what qcow2 writes about them
    libvirt.virsh("blockcommit", guest.name, "vda", "--active", "--pivot", "--wait", timeout=120)
    guest.vmio("vda", "write", 11)
    settled(daemon.operator_path())
    device = block_stat(filesystem.device.path)
    assert daemon.stop() == 0
    for path in (daemon.operator_path(), daemon.tenant_path("tenant-a")):
        export = export_of(path)
        reads, writes = shown(export, guest, "read"), shown(export, guest, "write")
        assert set(reads) | set(writes) <= {"vda", "unresolved"}  # a snapshot may be over before anybody can look
        assert 200 <= reads["vda"] <= device["reads"]
        assert 168 <= sum(writes.values()) <= device["writes"]
    guest.destroy()


def test_a_stop_exports_who_has_no_name_yet(bed, libvirt, start_hostd, filesystem):
    daemon = start_hostd({"tenancy": {"unattributed_after": "2m"}})
    lives = boot(bed, libvirt, filesystem, "lives")
    lives.vmio("vda", "write", 90)
    gone = boot(bed, libvirt, filesystem, "gone")
    gone.vmio("vda", "write", 60)
    gone.destroy()
    settled(daemon.operator_path())
    assert not any(export_of(daemon.operator_path()).find(OPERATIONS, vm=g.uuid) for g in (lives, gone))
    assert daemon.stop() == 0
    export = export_of(daemon.operator_path())
    assert {s.resource.get("cloud.account.id", "") for g in (lives, gone) for s in export.find(OPERATIONS, vm=g.uuid)} == {""}
    for guest, count in ((lives, 90), (gone, 60)):
        assert shown(export, guest, "write") == {"vda": count}
    assert not list(daemon.folder.glob("tenant-*.jsonl"))
    lives.destroy()


def test_an_adopted_vm_is_counted_once(bed, libvirt, start_hostd, filesystem):
    """What the operator saw of it while nobody owned it ends, series by series, when its owner's begin."""
    daemon = start_hostd({"tenancy": {"unattributed_after": "1s"}})
    guest = boot(bed, libvirt, filesystem, "adopted")
    guest.vmio("vda", "write", 40)
    wait_for("it to be nobody's", lambda: shown(export_of(daemon.operator_path()), guest, "write") == {"vda": 40})
    guest.set_own_metadata("tenant-late")
    guest.vmio("vda", "write", 2)
    wait_for("its owner's stream", lambda: daemon.tenant_path("tenant-late").exists() and shown(
        export_of(daemon.tenant_path("tenant-late")), guest, "write") == {"vda": 42})
    settled(daemon.operator_path())
    assert daemon.stop() == 0
    series = export_of(daemon.operator_path()).find(OPERATIONS, vm=guest.uuid)
    assert all(s.closed for s in series if not s.resource.get("cloud.account.id"))
    owned = [s for s in series if s.resource.get("cloud.account.id")]
    assert owned and not any(s.closed for s in owned)
    guest.destroy()
