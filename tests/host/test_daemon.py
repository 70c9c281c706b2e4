# SPDX-License-Identifier: Apache-2.0
"""The daemon as a service: what it tells systemd, how it ends, what it refuses, what it says of its host."""

import contextlib
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import time

import pytest

from bed.daemon import Hostd
from bed.libvirt import Disk, Domain, Nova
from bed.otlp import OPERATIONS, export_of, settled
from bed.shell import BUILD, SOURCE, end_process, wait_for
from bed.storage import LoopDisk

HEARTBEAT = "kvmscope.heartbeat"


class Manager:
    """The other end of NOTIFY_SOCKET, as systemd holds it."""

    def __init__(self, folder):
        self.path = str(folder / "manager")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self.heard = []

    def listen(self, seconds, until=None):
        """What is said from now on, for so long or until a word of it begins with `until`."""
        said, end = [], time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not any(until and word.startswith(until) for word in said):
            if select.select([self._socket], [], [], left)[0]:
                said += self._socket.recv(4096).decode().split("\n")
        self.heard += said
        return said


class Service:
    """The daemon started as systemd would start it, with a watchdog and its log in a pipe."""

    def __init__(self, bed, changes=None, watchdog_seconds=1.0):
        self.daemon = Hostd(bed, changes)
        self.manager = Manager(self.daemon.folder)
        self.log, self._log_end = os.pipe()
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "NOTIFY_SOCKET": self.manager.path,
                       "WATCHDOG_USEC": str(int(watchdog_seconds * 1e6))}
        self.process = subprocess.Popen([BUILD / "hostd/kvmscope-hostd", "--config", self.daemon.config_file],
                                        stdin=subprocess.DEVNULL, stdout=self._log_end, stderr=self._log_end,
                                        env=environment)
        bed.push(lambda: end_process(self.process))

    def fill_log(self):
        """From here on nobody reads the log: who writes a line waits."""
        # A description of our own, or the daemon's end would not block either.
        fd = os.open(f"/proc/self/fd/{self._log_end}", os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(fd, b"x" * 4096)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(fd, b"x")
        os.close(fd)

    def read_log(self):
        """What is in the pipe just now."""
        text = b""
        while select.select([self.log], [], [], 0)[0]:
            text += os.read(self.log, 65536)
        return text.decode(errors="replace")

    def close_log(self):
        os.close(self.log)
        os.close(self._log_end)


@pytest.fixture
def sleepers(bed):
    """start(n): processes that count as QEMUs where qemu_names is ["kvmscope-sleeper"]."""
    program = bed.folder / "kvmscope-sleeper"
    shutil.copy("/usr/bin/sleep", program)
    started = []

    def start(number):
        started.extend(subprocess.Popen([program, "120"]) for _ in range(number))

    yield start
    for process in started:
        end_process(process)


def slots(total, spare):
    """So many slots beside the host's."""
    return {"bpf": {"max_slots": total + 1, "spare_slots": spare, "qemu_names": ["kvmscope-sleeper"]},
            "tenancy": {"quota": {"slots": total}}}


def test_systemd_hears_ready_pings_and_the_end(bed):
    service = Service(bed)
    said = service.manager.listen(60, until="READY=1")
    assert "READY=1" in said
    assert service.manager.listen(2.2).count("WATCHDOG=1") in (3, 4, 5)  # twice within what systemd allows
    service.process.terminate()
    assert "STOPPING=1" in service.manager.listen(30, until="STOPPING=1")
    assert service.process.wait(30) == 0
    assert service.manager.heard.count("READY=1") == service.manager.heard.count("STOPPING=1") == 1


def test_no_ping_when_the_loop_stands_still(bed, sleepers):
    service = Service(bed, slots(total=1, spare=1))
    assert "READY=1" in service.manager.listen(60, until="READY=1")
    sleepers(1)
    wait_for("the only slot to be taken", lambda: service.daemon.client_json("vms"))
    service.read_log()
    service.fill_log()
    sleepers(1)  # finds no slot, which is worth a line in the log
    time.sleep(1)
    service.manager.listen(0.1)
    assert "WATCHDOG=1" not in service.manager.listen(2.5)
    assert service.process.poll() is None
    service.read_log()
    assert "WATCHDOG=1" in service.manager.listen(5, until="WATCHDOG=1")
    service.process.terminate()
    assert service.process.wait(30) == 0


def test_ready_although_the_slots_run_short(bed, sleepers):
    sleepers(3)
    service = Service(bed, slots(total=5, spare=4))
    assert "READY=1" in service.manager.listen(50, until="READY=1")
    log = wait_for("the warning", service.read_log)
    # Not the warning of who has waited: it did not wait for what cannot come.
    assert "all slots are taken" in log and "raise bpf.max_slots" in log
    assert len(service.daemon.client_json("vms")) == 3
    service.process.terminate()
    assert service.process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_each_way_to_end_exports_the_last_interval(start_hostd, number):
    daemon = start_hostd(interval="1h")
    assert daemon.stop(number=number) == 0
    assert export_of(daemon.operator_path()).find(HEARTBEAT)


def test_who_stops_reading_the_log_does_not_end_the_daemon(bed):
    service = Service(bed)
    assert "READY=1" in service.manager.listen(60, until="READY=1")
    service.close_log()
    before = settled(service.daemon.operator_path())
    service.process.send_signal(signal.SIGTERM)  # writes to the log
    assert service.process.wait(30) == 0
    assert export_of(service.daemon.operator_path()).newest() > before.newest()


def check_config(path, *more):
    return subprocess.run([BUILD / "hostd/kvmscope-hostd", "--check-config", "--config", path, *more],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


def test_check_config_says_ok_and_starts_nothing():
    sample = SOURCE / "hostd/kvmscope.yaml"
    done = check_config(sample)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sample}: ok\n", "")


@pytest.mark.parametrize("name", ["many_at_once", "secret_in_header", "not_yaml"])
def test_check_config_says_what_is_wrong(name):
    folder = SOURCE / "tests/unit/hostd/bad"
    done = check_config(folder / f"{name}.yaml")
    errors = (folder / f"{name}.err").read_text().replace(f"{name}.yaml:", f"{folder / name}.yaml:")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", errors)
    # Nor does the daemon start with it.
    started = subprocess.run([BUILD / "hostd/kvmscope-hostd", "--config", folder / f"{name}.yaml"],
                             stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    assert (started.returncode, started.stderr) == (2, errors)


@pytest.fixture(scope="module")
def guests(bed, libvirt):
    """One of a tenant who may see the host, two of one who may not and has a single slot. All idle: what a VM does
    before it is known to be beyond its tenant's quota counts."""
    domains = [Domain(bed, libvirt, name, [Disk(LoopDisk(bed, name), "native")], Nova(tenant)).start(wait=False)
               for name, tenant in (("shown", "tenant-shown"), ("small-1", "tenant-small"), ("small-2", "tenant-small"))]
    for domain in domains:
        domain.wait_booted()
    return domains


def test_tenants_differ_in_what_they_see_and_in_how_much_is_traced(guests, start_hostd):
    overrides = {"tenant-shown": {"show_host": True}, "tenant-small": {"quota": {"slots": 1}}}
    daemon = start_hostd({"tenants": {"overrides": overrides}})

    def vms():
        found = {vm["uuid"]: vm for vm in daemon.client_json("vms")}
        return found if all(guest.uuid in found for guest in guests) else None

    found = wait_for("all three VMs", vms)
    states = [found[guest.uuid]["state"] for guest in guests]
    assert states[0] == "attributed" and sorted(states[1:]) == ["attributed", "over_quota"]
    traced, beyond = sorted(guests[1:], key=lambda guest: found[guest.uuid]["state"])
    assert found[beyond.uuid]["coverage_reason"] == "the tenant's slots are used up"
    assert (found[traced.uuid]["slot"] > 0, found[beyond.uuid]["slot"]) == (True, 0)
    assert "the tenant's slots are used up" in daemon.client("vms")

    for guest in guests:
        guest.vmio("vda", "write", 20)
    operators = settled(daemon.operator_path())
    assert daemon.stop() == 0
    assert [operators.total(OPERATIONS, vm=guest.uuid, direction="write") for guest in (guests[0], traced, beyond)] == [
        20, 20, 0]
    untraced = [s for s in operators.find("kvmscope.coverage.domains") if s.attrs.get("state") == "untraced"]
    assert {s.attrs["reason"]: s.last for s in untraced if s.last} == {"the tenant's slots are used up": 1}
    assert operators.total("kvmscope.vms.over_quota") == 1

    # Both streams name their VMs; only one says where they run.
    # What the one beyond did before that was known is its tenant's: nothing, if its guest was quick to boot.
    for guest, tenant, host, perhaps in ((guests[0], "tenant-shown", "test-host", set()),
                                         (traced, "tenant-small", None, {beyond.uuid})):
        own = export_of(daemon.tenant_path(tenant))
        assert {s.resource.get("vm.id") for s in own.find(OPERATIONS)} - perhaps == {guest.uuid}
        assert {s.resource.get("host.id") for s in own.series.values()} == {host}


def lines_of(daemon):
    return {line["name"]: line for line in daemon.client_json("check")}


def test_check_tells_what_this_machine_has(libvirt, start_hostd):
    daemon = start_hostd()
    lines = wait_for("the look at the host", lambda: (lambda found: found if "kernel" in found else None)(
        lines_of(daemon)))
    assert lines["kernel"]["ok"] and lines["kernel"]["detail"] == f"{platform.release()} {platform.machine()}"
    assert lines["btf"]["ok"] == os.path.exists("/sys/kernel/btf/vmlinux")
    connected = wait_for("libvirt", lambda: (lambda line: line if line["ok"] else None)(
        lines_of(daemon)["libvirt connection"]))
    assert libvirt.uri in connected["detail"] and connected["effect"] == ""
    assert lines["libvirt"]["ok"]
    # What is attached is what the kernel says it is.
    shown = subprocess.run(["bpftool", "-j", "prog"], capture_output=True, text=True, check=True).stdout
    for name in ("kv_rq_issue", "kv_rq_complete", "kv_exec"):
        assert lines[f"program {name}"] == {"name": f"program {name}", "ok": True, "detail": "attached", "effect": ""}
        assert f'"name":"{name}"' in shown
    text = daemon.client("check")
    assert platform.release() in text and "libvirt connection" in text


def test_check_tells_that_libvirt_is_away(start_hostd):
    daemon = start_hostd({"libvirt": {"uri": "qemu+unix:///system?socket=/nonexistent/libvirt-sock"}})
    lines = wait_for("the look at the host", lambda: (lambda found: found if "libvirt" in found else None)(
        lines_of(daemon)), 30)
    for name in ("libvirt", "libvirt connection"):
        assert not lines[name]["ok"] and lines[name]["effect"], lines[name]
    assert "/nonexistent/libvirt-sock" in lines["libvirt"]["detail"]
    connected, = settled(daemon.operator_path()).find("kvmscope.libvirt.connected")
    assert connected.last == 0
