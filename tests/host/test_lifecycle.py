# SPDX-License-Identifier: Apache-2.0
"""VMs that come, go, change hands and lose their libvirtd: nothing is lost, nothing goes to the wrong tenant."""

import time

import pytest

from bed.daemon import INTERVAL
from bed.libvirt import Disk, Domain, Nova, Own
from bed.otlp import IO, OPERATIONS, attributes, export_of, settled
from bed.shell import SLOWNESS, wait_for
from bed.storage import FileDisk, Filesystem, LoopDisk, SlowDisk, block_stat


def boot(bed, libvirt, name, metadata, disk=None, **options):
    storage = disk or LoopDisk(bed, name)
    domain = Domain(bed, libvirt, name, [Disk(storage, "native")], metadata)
    if isinstance(storage, LoopDisk):
        domain.before = block_stat(storage.path)
    return domain.start(**options)


def device_grown(domain):
    """What the host's own counters of the loop device say since just before the start."""
    now = block_stat(domain.disks[0].storage.path)
    return {key: now[key] - domain.before[key] for key in now}


def assert_whole_life(export, domain, tenant, device):
    """Everything since before QEMU's first probe. libvirtd itself may read a header: reads may be a few less."""
    shown = {d: export.total(OPERATIONS, vm=domain.uuid, tenant=tenant, direction=d) for d in ("read", "write")}
    assert shown["write"] == device["writes"] - device["flushes"]
    assert export.total(IO, vm=domain.uuid, tenant=tenant, direction="write") == device["write_bytes"]
    assert device["reads"] - 8 <= shown["read"] <= device["reads"]
    everywhere = sum(s.last for s in export.find(OPERATIONS, vm=domain.uuid))
    mine = sum(s.last for s in export.find(OPERATIONS, vm=domain.uuid, tenant=tenant))
    assert everywhere == mine, "some of it went to somebody else"


def written(export, domain, tenant=None):
    return export.total(OPERATIONS, vm=domain.uuid, tenant=tenant, direction="write", device="vda")


def assert_told(export, domain, ended):
    """Its start and its end are records, in order; the end says how."""
    told = [record for resource, record in export.logs if resource.get("vm.id") == domain.uuid]
    assert [record.event_name for record in told] == ["kvmscope.vm.started", "kvmscope.vm.ended"]
    assert attributes(told[1].attributes) == ended
    assert told[0].time_unix_nano < told[1].time_unix_nano


@pytest.mark.parametrize("ending", ["destroyed", "killed"])
def test_a_life_between_two_intervals_is_accounted(bed, libvirt, start_hostd, ending):
    daemon = start_hostd(interval="1m")
    guest = boot(bed, libvirt, "short-" + ending, Nova("tenant-a"))
    guest.vmio("vda", "read", 500)
    guest.vmio("vda", "write", 250)
    device = device_grown(guest)
    assert device["reads"] >= 500 and device["writes"] == 250
    if ending == "killed":
        guest.kill()
        wait_for("libvirt to notice", lambda: guest.name not in libvirt.virsh("list", "--name"))
    else:
        guest.destroy()
    time.sleep(1)
    device = device_grown(guest)  # QEMU may read once more as it ends
    assert daemon.stop() == 0
    for path in (daemon.operator_path(), daemon.tenant_path("tenant-a")):
        export = export_of(path)
        assert_whole_life(export, guest, "tenant-a", device)
        how = {"kvmscope.exit.signal": "SIGKILL"} if ending == "killed" else {"process.exit.code": 0}
        assert_told(export, guest, how)
    ends = export_of(daemon.operator_path())
    assert ends.total("kvmscope.vms.ended", end="killed" if ending == "killed" else "well") >= 1


def test_a_killed_qemu_under_load_loses_nothing(bed, libvirt, start_hostd):
    daemon = start_hostd()
    guest = boot(bed, libvirt, "unclean", Nova("tenant-a"))
    guest.background_vmio("vda", "write", 0, seconds=60 * SLOWNESS)
    wait_for("it to write", lambda: device_grown(guest)["writes"] > 200)
    guest.kill()
    wait_for("libvirt to notice", lambda: guest.name not in libvirt.virsh("list", "--name"))
    time.sleep(1)
    device = device_grown(guest)
    assert daemon.stop() == 0
    assert_whole_life(export_of(daemon.tenant_path("tenant-a")), guest, "tenant-a", device)


def test_metadata_that_comes_late_gets_all_that_was_counted(bed, libvirt, start_hostd):
    daemon = start_hostd({"tenancy": {"unattributed_after": "2m"}})
    guest = boot(bed, libvirt, "late", None)
    guest.vmio("vda", "write", 300)
    settled(daemon.operator_path())
    assert not daemon.tenant_path("tenant-late").exists()
    guest.set_own_metadata("tenant-late", "named")
    guest.vmio("vda", "write", 200)
    device = device_grown(guest)

    def arrived():
        path = daemon.tenant_path("tenant-late")
        return path.exists() and written(export_of(path), guest) == 500

    wait_for("500 writes in the tenant's stream", arrived)
    assert daemon.stop() == 0
    for path in (daemon.operator_path(), daemon.tenant_path("tenant-late")):
        assert_whole_life(export_of(path), guest, "tenant-late", device)
    guest.destroy()


def test_a_vm_without_a_name_is_the_operators_alone(bed, libvirt, start_hostd):
    daemon = start_hostd({"tenancy": {"unattributed_after": "2s"}})
    named = boot(bed, libvirt, "named", Nova("tenant-a"))
    guest = boot(bed, libvirt, "nameless", None)
    guest.vmio("vda", "write", 120)
    wait_for("unattributed writes", lambda: written(export_of(daemon.operator_path()), guest, "") == 120)
    assert daemon.stop() == 0
    operators = export_of(daemon.operator_path())
    assert operators.total("kvmscope.vms.unattributed") >= 1
    assert {s.resource.get("cloud.account.id", "") for s in operators.find(OPERATIONS, vm=guest.uuid)} == {""}
    for path in daemon.folder.glob("tenant-*.jsonl"):
        assert guest.uuid not in path.read_text() and guest.name not in path.read_text()
    named.destroy()
    guest.destroy()


def test_a_rule_names_the_owner(bed, libvirt, start_hostd):
    daemon = start_hostd({"tenancy": {"rules": [{"name": "*-ruled-*", "tenant": "tenant-r"}]}})
    guest = boot(bed, libvirt, "ruled-1", None)
    guest.vmio("vda", "write", 50)
    device = device_grown(guest)
    settled(daemon.operator_path())
    assert daemon.stop() == 0
    assert_whole_life(export_of(daemon.tenant_path("tenant-r")), guest, "tenant-r", device)
    guest.destroy()


def test_requests_in_flight_stay_with_the_first_owner(bed, libvirt, start_hostd):
    daemon = start_hostd({"tenancy": {"linger": "15s"}})
    disk = SlowDisk(bed, "handed", 1, int(1500 * min(SLOWNESS, 4)))  # longer than it takes to change the owner
    guest = boot(bed, libvirt, "handed", Own("tenant-a"), disk)
    wait_for("tenant a's stream", lambda: daemon.tenant_path("tenant-a").exists() and export_of(
        daemon.tenant_path("tenant-a")).find("kvmscope.vms"))
    in_flight = guest.background_vmio("vda", "write", 8, depth=8, order="rand")
    time.sleep(0.5)
    guest.set_own_metadata("tenant-b")
    assert in_flight().json()["write_errors"] == 0
    wait_for("tenant b", lambda: daemon.tenant_path("tenant-b").exists(), 20)
    assert guest.vmio("vda", "write", 5, depth=5, order="rand")["writes"] == 5
    wait_for("b's writes", lambda: written(export_of(daemon.tenant_path("tenant-b")), guest) == 5)
    guest.destroy()
    time.sleep(1)
    assert daemon.stop() == 0
    assert written(export_of(daemon.tenant_path("tenant-a")), guest) == 8
    assert written(export_of(daemon.tenant_path("tenant-b")), guest) == 5
    operators = export_of(daemon.operator_path())
    assert written(operators, guest, "tenant-a") == 8 and written(operators, guest, "tenant-b") == 5
    epochs = {s.resource["service.instance.id"] for s in operators.find(OPERATIONS, vm=guest.uuid)}
    assert len(epochs) == 2


def test_owner_changes_under_load_lose_nothing(bed, libvirt, start_hostd):
    daemon = start_hostd({"tenancy": {"linger": "1s"}})
    guest = boot(bed, libvirt, "traded", Own("tenant-a"))
    wait_for("tenant a's stream", lambda: daemon.tenant_path("tenant-a").exists())
    load = guest.background_vmio("vda", "write", 0, depth=16, order="rand", seconds=14)
    for tenant in ("tenant-b", "tenant-a", "tenant-b"):
        time.sleep(3)
        guest.set_own_metadata(tenant)
    said = load(90).json()
    guest.destroy()
    time.sleep(1)
    assert daemon.stop() == 0
    shares = {t: export_of(daemon.tenant_path(t)).total(IO, vm=guest.uuid, direction="write") for t in ("tenant-a", "tenant-b")}
    assert sum(shares.values()) == said["write_bytes"]
    assert all(share > said["write_bytes"] / 10 for share in shares.values()), shares


def test_libvirtd_is_killed_and_restarted_under_load(bed, libvirt, start_hostd):
    daemon = start_hostd()
    a = boot(bed, libvirt, "steady-a", Nova("tenant-a"))
    b = boot(bed, libvirt, "steady-b", Nova("tenant-b"))
    loads = [guest.background_vmio("vda", "write", 0, seconds=12) for guest in (a, b)]
    time.sleep(2)
    libvirt.kill()
    time.sleep(4)
    gone = time.time_ns()
    assert settled(daemon.operator_path(), 5).newest() > gone  # it went on reading
    libvirt.start()
    said = [load(90).json() for load in loads]
    late = boot(bed, libvirt, "after-restart", Nova("tenant-b"))
    late.vmio("vda", "write", 77)
    wait_for("the VM started after the restart", lambda: written(
        export_of(daemon.tenant_path("tenant-b")), late) == 77, 30)
    assert daemon.stop() == 0
    operators = export_of(daemon.operator_path())
    for guest, tenant, job in ((a, "tenant-a", said[0]), (b, "tenant-b", said[1])):
        assert written(export_of(daemon.tenant_path(tenant)), guest) == job["writes"]
        assert written(operators, guest) == written(operators, guest, tenant) == job["writes"]
    for guest in (a, b, late):
        guest.destroy()


def test_a_hanging_libvirtd_delays_nothing(bed, libvirt, start_hostd):
    # So long that libvirt's client, if it were asked to look for signs of life, would have given up (docs/adr/0011).
    hang = max(6 * INTERVAL, 30)
    daemon = start_hostd({"libvirt": {"call_deadline": "1s", "rescan_interval": "1s"}})
    guest = boot(bed, libvirt, "calm", Nova("tenant-a"))
    began = settled(daemon.operator_path()).newest()
    libvirt.pause()
    try:
        load = guest.background_vmio("vda", "write", 0, seconds=hang)
        time.sleep(hang)
        assert daemon.client("vms")
        shown = settled(daemon.operator_path())
        times = sorted({at for series in shown.find(OPERATIONS, vm=guest.uuid) for at in series.points if at >= began})
        assert times[-1] - times[0] >= hang * 1e9
        assert max(b - a for a, b in zip(times, times[1:])) < 3e9 * INTERVAL
    finally:
        libvirt.pause(False)
    said = load().json()
    wait_for("all writes", lambda: written(export_of(daemon.tenant_path("tenant-a")), guest) == said["writes"])
    assert daemon.stop() == 0
    guest.destroy()


def test_a_plugged_disk_is_counted_from_its_first_request(bed, libvirt, start_hostd):
    filesystem = Filesystem(bed, "plug")
    daemon = start_hostd()
    guest = boot(bed, libvirt, "plug", Nova("tenant-a"), FileDisk(bed, filesystem.folder, "first"))
    targets = [guest.attach(Disk(FileDisk(bed, filesystem.folder, f"more-{n}", 16))) for n in range(5)]
    assert targets == ["vdb", "vdc", "vdd", "vde", "vdf"]
    for number, target in enumerate(["vda", *targets]):
        guest.vmio(target, "write", 10 + number)
    settled(daemon.operator_path())
    assert daemon.stop() == 0
    export = export_of(daemon.tenant_path("tenant-a"))
    shown = {s.attrs["disk.device"]: s.last for s in export.find(OPERATIONS, vm=guest.uuid, direction="write")}
    assert {d: n for d, n in shown.items() if n} == {"vda": 10, "vdb": 11, "vdc": 12, "vdd": 13, "vde": 14, "vdf": 15}
    guest.destroy()
