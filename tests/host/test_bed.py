# SPDX-License-Identifier: Apache-2.0
"""The test bed itself: what a guest says it did is what the host's block layer saw. Needs no kvmscope."""

import json

import grpc
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from bed.collector import Collector, binary
from bed.libvirt import Disk, Domain, Nova
from bed.otlp import DURATION, OPERATIONS, Export, export_of, parse_line
from bed.receiver import Receiver, send
from bed.shell import wait_for
from bed.storage import FailingDisk, FileDisk, Filesystem, LoopDisk, SlowDisk


@pytest.fixture(scope="module")
def filesystem(bed):
    return Filesystem(bed, "files")


@pytest.fixture(scope="module")
def guest(bed, libvirt, filesystem):
    disks = [Disk(LoopDisk(bed, io), io, discard=True) for io in ("threads", "native", "io_uring")]
    disks += [Disk(SlowDisk(bed, "slow", 20, 30)), Disk(FailingDisk(bed, "failing"))]
    return Domain(bed, libvirt, "bed", disks, Nova("project")).start()


@pytest.mark.parametrize("target", ["vda", "vdb", "vdc"])
def test_each_way_of_io_reaches_the_block_layer_one_to_one(guest, target):
    disk = guest.disks[ord(target[2]) - ord("a")].storage
    before = disk.stat()
    guest.vmio(target, "read", 500)
    guest.vmio(target, "write", 40, "64k")
    guest.vmio(target, "discard", 3, "1M")
    after = disk.stat()
    grown = {key: after[key] - before[key] for key in after}
    assert grown == {"reads": 500, "read_bytes": 500 * 4096, "writes": 40, "write_bytes": 40 * 65536, "discards": 3,
                     "discard_bytes": 3 << 20, "flushes": 0}


def test_depth_64_keeps_the_bytes(guest):
    disk = guest.disks[1].storage
    before = disk.stat()
    said = guest.vmio("vdb", "readwrite", 4000, depth=64, order="rand")
    after = disk.stat()
    assert after["read_bytes"] - before["read_bytes"] == said["read_bytes"] == 2000 * 4096
    assert after["write_bytes"] - before["write_bytes"] == said["write_bytes"] == 2000 * 4096


def test_the_slow_disk_is_exactly_so_slow(guest):
    assert 0.4 <= guest.vmio("vdd", "read", 20)["seconds"] < 0.8
    assert 0.6 <= guest.vmio("vdd", "write", 20)["seconds"] < 1.2


def test_the_failing_disk_fails_on_order(guest):
    disk = guest.disks[4].storage
    assert guest.vmio("vde", "read", 3)["read_errors"] == 0
    disk.fail(True)
    said = guest.vmio("vde", "readwrite", 6)
    disk.fail(False)
    assert (said["read_errors"], said["write_errors"]) == (3, 3)
    assert guest.vmio("vde", "write", 3)["write_errors"] == 0


def test_a_disk_can_be_plugged_in(bed, guest, filesystem):
    target = guest.attach(Disk(FileDisk(bed, filesystem.folder, "plugged", 32)))
    before = filesystem.device.stat()
    guest.vmio(target, "read", 100)
    assert filesystem.device.stat()["reads"] - before["reads"] == 100


def test_libvirtd_dies_and_the_guest_goes_on(libvirt, guest):
    job = guest.background_vmio("vda", "read", 0, seconds=2)
    libvirt.kill()
    assert not libvirt.alive()
    libvirt.start()
    assert guest.name in libvirt.virsh("list", "--name")
    assert job().json()["read_errors"] == 0


def test_the_receiver_wants_the_right_token(bed):
    receiver = Receiver(bed, {"a": "token-a", "b": "token-b"})
    send(receiver.endpoint, receiver.ca, "a", "token-a")
    for tenant, token in (("a", "token-b"), ("b", "token-a"), ("c", "token-a"), ("a", "")):
        with pytest.raises(grpc.RpcError) as refusal:
            send(receiver.endpoint, receiver.ca, tenant, token)
        assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert (len(receiver.tenants["a"].arrivals), len(receiver.tenants["b"].arrivals), len(receiver.refused)) == (1, 0, 4)
    receiver.tenants["a"].hang.set()
    with pytest.raises(grpc.RpcError) as hung:
        send(receiver.endpoint, receiver.ca, "a", "token-a", timeout=0.5)
    assert hung.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    send(receiver.endpoint, receiver.ca, "b", "token-b")


@pytest.mark.skipif(binary() is None, reason="no Collector: Go >= 1.25 is not here")
def test_the_collector_wants_the_right_token(bed):
    collector = Collector(bed, {"a": "token-a", "b": "token-b"})
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.add(key="vm.id").value.string_value = "vm"
    metric = resource.scope_metrics.add().metrics.add(name="m", unit="1")
    metric.gauge.data_points.add(as_int=7, time_unix_nano=1)
    send(collector.endpoints["a"], collector.ca, "a", "token-a", request)
    with pytest.raises(grpc.RpcError) as refusal:
        send(collector.endpoints["b"], collector.ca, "b", "token-a", request)
    assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED
    wait_for("the collector's file", lambda: collector.files["a"].exists() and collector.files["a"].stat().st_size)
    assert export_of(collector.files["a"]).total("m", vm="vm") == 7


def request_of(points, metric=OPERATIONS, kind="sum", flags=0):
    """A request of one series; points are (start, time, value)."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    for key, value in (("vm.id", "vm"), ("service.instance.id", "epoch"), ("cloud.account.id", "a")):
        resource.resource.attributes.add(key=key).value.string_value = value
    data = getattr(resource.scope_metrics.add().metrics.add(name=metric), kind)
    data.aggregation_temporality = 2
    for start, time, value in points:
        point = data.data_points.add(start_time_unix_nano=start, time_unix_nano=time, flags=flags)
        if kind == "sum":
            point.as_int = value
        else:
            point.count, point.scale, point.positive.offset = sum(value), 2, -20
            point.positive.bucket_counts.extend(value)
    return request


@pytest.mark.parametrize("points, kind, fault", [
    ([(1, 5, 10), (2, 6, 11)], "sum", "a reset into the past"),
    ([(1, 5, 10), (1, 6, 9)], "sum", "fell"),
    ([(1, 6, 10), (1, 5, 10)], "sum", "out of order"),
    ([(5, 5, 10)], "sum", "times"),
    ([(1, 5, [3, 4]), (1, 6, [4, 3])], "exponential_histogram", "fell"),
])
def test_the_judge_refuses_what_breaks_a_series(points, kind, fault):
    metric = OPERATIONS if kind == "sum" else DURATION
    with pytest.raises(AssertionError, match=fault):
        Export().add(request_of(points, metric, kind))


def test_the_judge_reads_json_lines_and_adds_up():
    export = Export()
    export.add(parse_line(json.dumps(json_format.MessageToDict(request_of([(1, 5, 10), (1, 6, 12)])))))
    export.add(request_of([(1, 7, 0)], flags=1))  # NO_RECORDED_VALUE closes a series and keeps what it said
    export.add(request_of([(1, 6, [1, 2, 3])], DURATION, "exponential_histogram"))
    assert export.total(OPERATIONS, vm="vm", tenant="a") == 12
    export.add(request_of([(8, 9, 3)]))  # a true reset
    assert export.total(OPERATIONS, vm="vm", tenant="a") == 15
    histogram = export.histogram(DURATION, vm="vm")
    assert (histogram.count, histogram.buckets) == (6, {-20: 1, -19: 2, -18: 3})
    low, high = histogram.bounds(-20)
    assert (round(low, 9), round(high, 9)) == (0.03125, 0.037162722)
