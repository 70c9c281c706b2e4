# SPDX-License-Identifier: Apache-2.0
"""Exactness on real guests: what a guest issued is what its tenant is shown, and nobody else is shown anything."""

import pytest

from bed.daemon import Hostd
from bed.libvirt import Disk, Domain, Nova, foreign_qemus
from bed.otlp import DURATION, IO, OPERATIONS, QUEUE_DURATION, difference, expected, export_of, grown, settled, unseen
from bed.shell import kernel_has
from bed.storage import FileDisk, Filesystem, LoopDisk

WAYS = ("threads", "native", "io_uring")
# Guest a: three files on one file system, three block devices, a file on the machine's own disk; each in another way.
DEVICES = {"vda": "file threads", "vdb": "file native", "vdc": "file io_uring", "vdd": "block threads",
           "vde": "block native", "vdf": "block io_uring", "vdg": "file on the root disk"}
# What hostd takes where it may choose, and what is left on kernels before 6.5.
IO_START = kernel_has("__traceiter_block_io_start")


@pytest.fixture(scope="module")
def guests(bed, libvirt):
    filesystem = Filesystem(bed, "shared", 512)
    disks_a = [Disk(FileDisk(bed, filesystem.folder, f"a-{way}"), way) for way in WAYS]
    disks_a += [Disk(LoopDisk(bed, f"a-block-{way}"), way, discard=True) for way in WAYS]
    disks_a += [Disk(FileDisk(bed, bed.folder, "a-root"), "native")]
    disks_b = [Disk(FileDisk(bed, filesystem.folder, "b"), "native"), Disk(FileDisk(bed, bed.folder, "b-root"), "native")]
    a = Domain(bed, libvirt, "a", disks_a, Nova("tenant-a", "web-a", "project a")).start()
    b = Domain(bed, libvirt, "b", disks_b, Nova("tenant-b", "db-b", "project b")).start()
    return a, b


@pytest.fixture(scope="module", params=["auto", "getrq"] if IO_START else ["auto"])
def hostd(request, bed, guests):
    """The daemon, started after the guests: it finds them."""
    daemon = Hostd(bed, {"bpf": {"identity_hook": request.param}}).start()
    daemon.hook = "io_start" if IO_START and request.param == "auto" else "getrq"
    yield daemon
    print(daemon.log()[-6000:])
    assert daemon.stop() == 0
    for path in [daemon.operator_path(), daemon.tenant_path("tenant-a"), daemon.tenant_path("tenant-b")]:
        export_of(path)  # every series of the whole run kept its rules


def totals(export, domains):
    """All counters but those of other sessions' guests on this machine, which nobody here can keep quiet."""
    everything = export.vm_totals()
    if not foreign_qemus(domains):
        return everything
    return {key: value for key, value in everything.items() if key[0] or key[1]}


@pytest.mark.parametrize("device", DEVICES, ids=[f"{d}-{w.replace(' ', '-')}" for d, w in DEVICES.items()])
def test_a_guests_requests_are_counted_exactly(guests, hostd, device):
    a, _ = guests
    before = settled(hostd.operator_path())
    a.vmio(device, "read", 1000)
    a.vmio(device, "write", 300)
    after = settled(hostd.operator_path())
    assert grown(totals(before, guests), totals(after, guests)) == expected(
        a, "tenant-a", device, read=(1000, 1000 * 4096), write=(300, 300 * 4096))
    for metric in (DURATION, QUEUE_DURATION):
        for direction, count in (("read", 1000), ("write", 300)):
            shown = difference(before, after, metric, vm=a.uuid, device=device, direction=direction).count
            assert count - unseen(before, after) <= shown <= count
    # The tenant's own stream says the same as the operator's.
    own = settled(hostd.tenant_path("tenant-a"))
    theirs = {k: v for k, v in totals(after, guests).items() if k[0] == "tenant-a"}
    assert own.vm_totals() == theirs


@pytest.mark.parametrize("size", [65536, 524288])
def test_larger_requests_keep_count_and_bytes(guests, hostd, size):
    a, _ = guests
    before = settled(hostd.operator_path())
    a.vmio("vde", "read", 50, size)
    a.vmio("vde", "write", 30, size)
    after = settled(hostd.operator_path())
    assert grown(totals(before, guests), totals(after, guests)) == expected(
        a, "tenant-a", "vde", read=(50, 50 * size), write=(30, 30 * size))


@pytest.mark.parametrize("device_a, device_b", [("vdb", "vda"), ("vdg", "vdb")], ids=["loop", "root-disk"])
def test_two_tenants_at_depth_64_on_one_disk(guests, hostd, device_a, device_b):
    a, b = guests
    before = settled(hostd.operator_path())
    jobs = [a.background_vmio(device_a, "readwrite", 12000, depth=64, order="rand"),
            b.background_vmio(device_b, "readwrite", 8000, 8192, depth=64, order="rand")]
    said_a, said_b = (job(120).json() for job in jobs)
    after = settled(hostd.operator_path())
    changes = {k: v for k, v in grown(totals(before, guests), totals(after, guests)).items() if k[2] == IO}
    wanted = expected(a, "tenant-a", device_a, read=(0, said_a["read_bytes"]), write=(0, said_a["write_bytes"]))
    wanted |= expected(b, "tenant-b", device_b, read=(0, said_b["read_bytes"]), write=(0, said_b["write_bytes"]))
    assert changes == wanted
    assert said_a["read_bytes"] == 6000 * 4096 and said_b["write_bytes"] == 4000 * 8192


def test_flushes_and_discards(guests, hostd):
    a, _ = guests
    before = settled(hostd.operator_path())
    a.vmio("vdd", "write", 100, flush_every=10)
    a.vmio("vdd", "discard", 4, "1M")
    after = settled(hostd.operator_path())
    # Without io_start a flush has no bio to find its submitter by: it may be missing, but is nobody else's.
    flushes = 10 if hostd.hook == "io_start" else difference(
        before, after, OPERATIONS, vm=a.uuid, device="vdd", direction="flush")
    assert 0 <= flushes <= 10
    assert grown(totals(before, guests), totals(after, guests)) == expected(
        a, "tenant-a", "vdd", write=(100, 100 * 4096), flush=(flushes, 0), discard=(4, 4 << 20))


def test_a_tenants_stream_names_nobody_else(guests, hostd):
    a, b = guests
    settled(hostd.tenant_path("tenant-a"))
    texts = {"tenant-a": hostd.tenant_path("tenant-a").read_text(), "tenant-b": hostd.tenant_path("tenant-b").read_text()}
    secrets = {"tenant-a": [a.uuid, "tenant-a", "web-a"], "tenant-b": [b.uuid, "tenant-b", "db-b"]}
    for tenant, text in texts.items():
        other = "tenant-b" if tenant == "tenant-a" else "tenant-a"
        assert secrets[tenant][0] in text
        for word in [*secrets[other], "test-host", str(a.resources.folder)]:
            assert word not in text, (tenant, word)


def test_resources_are_described(guests, hostd):
    a, _ = guests
    series = settled(hostd.tenant_path("tenant-a")).find(OPERATIONS, vm=a.uuid)
    resource = series[0].resource
    assert {k: resource.get(k) for k in ("cloud.provider", "cloud.platform", "cloud.account.id", "cloud.region",
                                         "vm.id", "service.name")} == {
        "cloud.provider": "openstack", "cloud.platform": "openstack_nova", "cloud.account.id": "tenant-a",
        "cloud.region": "region-one", "vm.id": a.uuid, "service.name": "kvmscope.vm"}
    assert resource["vm.name"] and resource["service.instance.id"] and "host.id" not in resource
    operators = settled(hostd.operator_path()).find(OPERATIONS, vm=a.uuid)[0].resource
    assert operators["host.id"] == "test-host"


def test_the_command_line_shows_both(guests, hostd):
    a, b = guests
    vms, tenants, top = (hostd.client(*words) for words in (["vms", "--json"], ["tenants", "--json"], ["top", "--once", "--json"]))
    for domain in guests:
        assert domain.uuid in vms and domain.uuid in top
    assert "tenant-a" in tenants and "tenant-b" in tenants
    assert hostd.client("check")
