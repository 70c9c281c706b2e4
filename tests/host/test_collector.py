# SPDX-License-Identifier: Apache-2.0
"""The real OpenTelemetry Collector takes the tenants' streams, and writes what was sent."""

import pytest

from bed.collector import Collector, binary
from bed.libvirt import Disk, Domain, Nova
from bed.otlp import OPERATIONS, export_of, settled
from bed.storage import LoopDisk

TENANTS = {"tenant-a": "secret-of-a", "tenant-b": "secret-of-b"}


def vm_points(export, tenant):
    """{series: {time: value}} of the tenant's VMs."""
    return {key: series.points for key, series in export.series.items() if key[0] == "kvmscope.vm" and key[2] == tenant}


@pytest.mark.skipif(binary() is None, reason="no Collector: Go >= 1.25 is not here")
def test_collector_writes_what_was_sent(bed, libvirt, start_hostd):
    collector = Collector(bed, TENANTS)
    guests = {tenant: Domain(bed, libvirt, tenant, [Disk(LoopDisk(bed, tenant), "native")], Nova(tenant)).start()
              for tenant in TENANTS}
    for tenant, token in TENANTS.items():
        path = bed.folder / f"{tenant}.token"
        path.touch(mode=0o600)
        path.write_text(token, encoding="ascii")
    stream = {"exporter": "otlp_grpc", "endpoint": "localhost:1", "tls": {"ca_file": str(collector.ca)},
              "token_file": str(bed.folder / "${tenant.id}.token"), "path": None}
    overrides = {tenant: {"endpoint": collector.endpoints[tenant]} for tenant in TENANTS}
    daemon = start_hostd({"tenants": {"default": stream, "overrides": overrides}})
    settled(daemon.operator_path())
    for guest in guests.values():
        guest.vmio("vda", "readwrite", 400, depth=8, order="rand")
    settled(daemon.operator_path())
    assert daemon.stop() == 0
    collector.stop()
    operators = export_of(daemon.operator_path())
    for tenant, guest in guests.items():
        written = export_of(collector.files[tenant])
        assert written.tenants() == {tenant}
        assert written.total(OPERATIONS, vm=guest.uuid) >= 1
        assert vm_points(written, tenant) == vm_points(operators, tenant)
