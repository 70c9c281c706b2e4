# SPDX-License-Identifier: Apache-2.0
"""Delays and errors of the host's storage show as what they are."""

import pytest

from bed.daemon import Hostd
from bed.libvirt import Disk, Domain, Nova
from bed.otlp import DURATION, ERRORS, OPERATIONS, QUEUE_DURATION, difference, export_of, settled, unseen
from bed.shell import SLOWNESS
from bed.storage import FailingDisk, LoopDisk, SlowDisk


@pytest.fixture(scope="module")
def guest(bed, libvirt):
    disks = [Disk(SlowDisk(bed, "slow", 20, 30)), Disk(FailingDisk(bed, "failing")), Disk(LoopDisk(bed, "sound"))]
    return Domain(bed, libvirt, "storage", disks, Nova("tenant-s")).start()


@pytest.fixture(scope="module")
def hostd(bed, guest):
    daemon = Hostd(bed).start()
    yield daemon
    print(daemon.log()[-6000:])
    assert daemon.stop() == 0
    export_of(daemon.operator_path())


@pytest.mark.parametrize("direction, delay", [("read", 0.020), ("write", 0.030)])
def test_an_imposed_delay_is_in_its_buckets(guest, hostd, direction, delay):
    before = settled(hostd.operator_path())
    said = guest.vmio("vda", direction, 100)
    after = settled(hostd.operator_path())
    where = {"vm": guest.uuid, "device": "vda", "direction": direction}
    storage = difference(before, after, DURATION, **where)
    queue = difference(before, after, QUEUE_DURATION, **where)
    assert 100 - unseen(before, after) <= storage.count <= 100
    assert 100 - unseen(before, after) <= queue.count <= 100
    # Never faster than the delay; nearly all within 8 ms more (this machine may be busy); the guest saw no less.
    assert all(storage.bounds(index)[1] >= delay for index in storage.buckets), storage
    assert storage.count_between(delay, delay + 0.008 * SLOWNESS) >= 90, storage
    assert 100 * delay <= storage.sum <= said["seconds"]
    assert queue.sum / queue.count < 0.003 * SLOWNESS, queue


def test_injected_errors_are_errors_of_their_direction(guest, hostd):
    before = settled(hostd.operator_path())
    failing = guest.disks[1].storage
    guest.vmio("vdb", "read", 20)
    failing.fail(True)
    said = guest.vmio("vdb", "readwrite", 14)
    failing.fail(False)
    guest.vmio("vdb", "write", 20)
    assert (said["read_errors"], said["write_errors"]) == (7, 7)
    after = settled(hostd.operator_path())
    for direction in ("read", "write"):
        where = {"vm": guest.uuid, "device": "vdb", "direction": direction}
        assert difference(before, after, ERRORS, **where) == 7
        assert difference(before, after, OPERATIONS, **where) in (20, 27)  # whether a failed one is an operation too
    assert difference(before, after, ERRORS, vm=guest.uuid) == 14
    assert all(s.attrs.get("error.type") for s in after.find(ERRORS, vm=guest.uuid))
    # The tenant is told of single errors too, as records.
    own = settled(hostd.tenant_path("tenant-s"))
    assert sum(record.event_name == "kvmscope.vm.disk.error" for _, record in own.logs) == 14


def test_a_disk_next_to_a_slow_one_is_not_slow(guest, hostd):
    before = settled(hostd.operator_path())
    slow = guest.background_vmio("vda", "read", 0, seconds=3)
    device = guest.disks[2].storage.stat()["reads"]
    guest.vmio("vdc", "read", 500)
    assert guest.disks[2].storage.stat()["reads"] - device == 500  # the block layer's own word
    slow()
    after = settled(hostd.operator_path())
    quick = difference(before, after, DURATION, vm=guest.uuid, device="vdc", direction="read")
    assert difference(before, after, OPERATIONS, vm=guest.uuid, device="vdc", direction="read") == 500
    assert 500 - unseen(before, after) <= quick.count <= 500
    assert quick.sum / quick.count < min(0.010 * SLOWNESS, 0.018)  # a slow one takes 0.020
