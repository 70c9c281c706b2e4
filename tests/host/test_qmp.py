# SPDX-License-Identifier: Apache-2.0
"""What QEMU says of a VM arrives as log records, by a monitor of our own."""

import os
import socket
import time

import pytest

from bed.libvirt import Disk, Domain, Nova
from bed.otlp import attributes, export_of, settled
from bed.shell import wait_for
from bed.storage import FailingDisk, LoopDisk


def boot(bed, libvirt, name, tenant, disk=None):
    """A guest whose QEMU has a monitor for us where hostd looks for it."""
    folder = bed.folder / "qmp"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    guest = Domain(bed, libvirt, name, [Disk(disk or LoopDisk(bed, name, 16), "native")], Nova(tenant))
    guest.monitor = folder / f"{guest.uuid}.sock"
    guest.arguments = ("-qmp", f"unix:{guest.monitor},server=on,wait=off")
    return guest.start()


def config(bed):
    return {"qmp": {"socket": f"{bed.folder}/qmp/${{vm.uuid}}.sock"}}


def said(export, guest):
    """[(event, its attributes)] in order, without its start: libvirt starts it suspended, and who is quick sees it resume."""
    events = [(record.event_name.removeprefix("kvmscope.vm.qemu."), attributes(record.attributes))
            for resource, record in sorted(export.logs, key=lambda entry: entry[1].time_unix_nano)
            if resource.get("vm.id") == guest.uuid and record.event_name.startswith("kvmscope.vm.qemu.")]
    return events[1:] if events and events[0][0] == "resume" else events


def connected(daemon, number):
    wait_for(f"{number} monitors", lambda: settled(daemon.operator_path()).total("kvmscope.qmp.connected") == number)


def test_events_are_records_of_their_owner(bed, libvirt, start_hostd):
    daemon = start_hostd(config(bed))
    failing = FailingDisk(bed, "qmp-failing")
    a, b = boot(bed, libvirt, "qmp-a", "tenant-a", failing), boot(bed, libvirt, "qmp-b", "tenant-b")
    plain = Domain(bed, libvirt, "qmp-none", [Disk(LoopDisk(bed, "qmp-none", 16), "native")], Nova("tenant-b")).start()
    connected(daemon, 2)
    for guest in (a, b, plain):
        libvirt.virsh("suspend", guest.name)
        libvirt.virsh("resume", guest.name)
    failing.fail(True)
    a.vmio("vda", "write", 2)
    failing.fail(False)
    libvirt.virsh("reset", b.name)

    def all_said():
        export = export_of(daemon.operator_path())
        return [event for event, _ in said(export, b)][:3] == ["stop", "resume", "reset"]  # the BIOS resets once more

    wait_for("the reset", all_said)
    assert daemon.stop() == 0
    operators = export_of(daemon.operator_path())
    assert [event for event, _ in said(operators, a)] == ["stop", "resume", "block_io_error", "block_io_error"]
    error = said(operators, a)[2][1]
    assert error["qemu.operation"] == "write" and error["qemu.node.name"] and error["qemu.reason"] == "Input/output error"
    assert said(operators, b)[2][1] == {"qemu.guest": False, "qemu.reason": "host-qmp-system-reset"}
    assert not said(operators, plain)
    for guest, tenant in ((a, "tenant-a"), (b, "tenant-b")):
        export = export_of(daemon.tenant_path(tenant))
        assert [event for event, _ in said(export, guest)] == [event for event, _ in said(operators, guest)]
        assert {resource["cloud.account.id"] for resource, _ in export.logs} == {tenant}
        assert all("qemu.node.name" not in values for _, values in said(export, guest))
    for guest in (a, b, plain):
        guest.destroy()


def test_a_monitor_that_others_have_is_ours_when_they_leave_and_a_later_daemons_too(bed, libvirt, start_hostd):
    guest = boot(bed, libvirt, "qmp-shared", "tenant-c")
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(guest.monitor))
        assert b"QMP" in other.recv(4096)
        daemon = start_hostd(config(bed))
        wait_for("the reason", lambda: "another client may be connected" in daemon.log(), 30)
        assert settled(daemon.operator_path()).total("kvmscope.qmp.connected") == 0
    connected(daemon, 1)
    assert daemon.stop() == 0
    later = start_hostd(config(bed))
    connected(later, 1)
    # libvirt's own monitor was never ours.
    assert libvirt.virsh("qemu-monitor-command", guest.name, "--hmp", "info status").startswith("VM status")
    guest.destroy()
    time.sleep(2)
    connected(later, 0)
    assert later.stop() == 0


@pytest.mark.parametrize("how", ["symbolic", "hard"])
def test_a_socket_that_leads_to_another_is_refused(bed, libvirt, start_hostd, how):
    a, b = boot(bed, libvirt, f"qmp-thief-{how}", "tenant-a"), boot(bed, libvirt, f"qmp-robbed-{how}", "tenant-b")
    a.monitor.unlink()
    if how == "symbolic":
        a.monitor.symlink_to(b.monitor)
    else:
        os.link(b.monitor, a.monitor)
    daemon = start_hostd(config(bed))
    why = "is no socket" if how == "symbolic" else "listens there, not QEMU"
    wait_for("the refusal", lambda: why in daemon.log())
    connected(daemon, 1)
    libvirt.virsh("suspend", b.name)
    libvirt.virsh("resume", b.name)
    wait_for("b's events", lambda: len(said(export_of(daemon.operator_path()), b)) == 2)
    assert daemon.stop() == 0
    assert not said(export_of(daemon.operator_path()), a)
    for guest in (a, b):
        guest.destroy()
