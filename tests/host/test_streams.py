# SPDX-License-Identifier: Apache-2.0
"""One authenticated stream per tenant, against a receiver on the official schema."""

import time

import pytest

from bed.daemon import INTERVAL
from bed.libvirt import Disk, Domain, Nova
from bed.otlp import OPERATIONS, export_of, settled
from bed.receiver import Receiver
from bed.shell import wait_for
from bed.storage import LoopDisk

TENANTS = {"tenant-a": "secret-of-a", "tenant-b": "secret-of-b"}


@pytest.fixture(scope="module")
def guests(bed, libvirt):
    return {tenant: Domain(bed, libvirt, tenant, [Disk(LoopDisk(bed, tenant), "native")], Nova(tenant)).start()
            for tenant in TENANTS}


@pytest.fixture
def receiver(bed):
    made = Receiver(bed, TENANTS)
    yield made
    made.stop()


def write_token(folder, tenant, token):
    path = folder / f"{tenant}.token"
    path.touch(mode=0o600)
    path.write_text(token + "\n", encoding="ascii")


def grpc_config(receiver, folder):
    stream = {"exporter": "otlp_grpc", "endpoint": receiver.endpoint, "tls": {"ca_file": str(receiver.ca)},
              "token_file": str(folder / "${tenant.id}.token"), "timeout": "2s",
              "backoff": {"min": "100ms", "max": "500ms"}}
    return {"tenants": {"default": {"path": None, **stream}}}


@pytest.fixture
def start(bed, receiver, start_hostd):
    def begin(tokens):
        for tenant, token in tokens.items():
            write_token(bed.folder, tenant, token)
        return start_hostd(grpc_config(receiver, bed.folder))
    return begin


def writes(export, guest):
    return export.total(OPERATIONS, vm=guest.uuid, direction="write")


def test_each_tenant_gets_its_own_over_its_own_connection(guests, receiver, start):
    daemon = start(TENANTS)
    before = settled(daemon.operator_path())
    for number, guest in enumerate(guests.values()):
        guest.vmio("vda", "write", 100 + number)
    settled(daemon.operator_path())
    assert daemon.stop() == 0
    operators = export_of(daemon.operator_path())
    for number, (tenant, guest) in enumerate(guests.items()):
        got = receiver.tenants[tenant]
        assert {a.token for a in got.arrivals} == {"Bearer " + TENANTS[tenant]}
        export = got.export()
        assert export.tenants() == {tenant}
        assert writes(export, guest) == writes(operators, guest) == writes(before, guest) + 100 + number
        other = next(g for t, g in guests.items() if t != tenant)
        assert all(other.uuid.encode() not in a.request.SerializeToString() for a in got.arrivals)
        assert export.find("kvmscope.heartbeat")
    peers = [{a.peer for a in t.arrivals} for t in receiver.tenants.values()]
    assert not peers[0] & peers[1], "two tenants over one connection"
    assert not receiver.refused


def test_a_wrong_token_is_refused_counted_and_healed(bed, guests, receiver, start):
    daemon = start({**TENANTS, "tenant-b": "secret-of-a"})
    b = guests["tenant-b"]
    b.vmio("vda", "write", 50)
    wait_for("a refusal", lambda: ("tenant-b", "Bearer secret-of-a") in receiver.refused)
    operators = wait_for("the counted refusal", lambda: (lambda e: e if e.total(
        "kvmscope.stream.auth.failures") else None)(export_of(daemon.operator_path())))
    assert operators.total("kvmscope.stream.auth.failures") >= 1
    assert receiver.tenants["tenant-a"].arrivals and not receiver.tenants["tenant-b"].arrivals
    write_token(bed.folder, "tenant-b", TENANTS["tenant-b"])
    wait_for("b's data after its token was mended", lambda: receiver.tenants["tenant-b"].arrivals, 20)
    settled(daemon.operator_path())
    assert daemon.stop() == 0
    assert writes(receiver.tenants["tenant-b"].export(), b) == writes(export_of(daemon.operator_path()), b)
    assert "secret-of-a" not in daemon.log() and "secret-of-b" not in daemon.log()


def test_a_hanging_receiver_delays_only_its_own_tenant(guests, receiver, start):
    daemon = start(TENANTS)
    a, b = guests["tenant-a"], guests["tenant-b"]
    wait_for("first batches", lambda: all(t.arrivals for t in receiver.tenants.values()))
    receiver.tenants["tenant-a"].hang.set()
    began, count = time.monotonic(), len(receiver.tenants["tenant-a"].arrivals)
    a.vmio("vda", "write", 60)
    b.vmio("vda", "write", 60)
    time.sleep(8 * INTERVAL)
    arrivals = [x.at for x in receiver.tenants["tenant-b"].arrivals if x.at > began]
    gaps = [later - earlier for earlier, later in zip([began, *arrivals], arrivals)]
    assert len(arrivals) >= 6 and max(gaps) < 2 * INTERVAL, gaps  # an interval, at most one more
    assert len(receiver.tenants["tenant-a"].arrivals) <= count + 2  # what was under way when it began to hang
    receiver.tenants["tenant-a"].hang.clear()
    time.sleep(4 * INTERVAL)
    assert daemon.stop() == 0
    operators = export_of(daemon.operator_path())
    for tenant, guest in guests.items():
        assert writes(receiver.tenants[tenant].export(), guest) == writes(operators, guest)
