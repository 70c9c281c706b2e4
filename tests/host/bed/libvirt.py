# SPDX-License-Identifier: Apache-2.0
"""libvirtd and transient domains with an agent on the serial console: under TCG, or KVM where the bed is a system."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
import uuid as uuids
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import quoteattr, escape

from .shell import CACHE, SLOWNESS, SOURCE, SYSTEM, CommandFailed, end_process, run, wait_for

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_QEMU_XMLNS = "http://libvirt.org/schemas/domain/qemu/1.0"
OWN_URI = "https://kvmscope.dev/xmlns/vm/1.0"


class Libvirt:
    """qemu:///system: the one that answers already, or one that we start."""

    uri = "qemu:///system"

    def __init__(self, resources):
        self._processes = []
        if not self.alive():
            resources.push(self._stop)
            self._start("virtlogd")
            self.start()

    def alive(self):
        return subprocess.run(["virsh", "-q", "-c", self.uri, "version"], stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=60 * SLOWNESS, check=False).returncode == 0

    def _start(self, program, *args):
        log = open(f"/var/log/libvirt/{program}.log", "ab")
        process = subprocess.Popen([f"/usr/sbin/{program}", *args], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True)
        log.close()
        self._processes.append(process)
        return process

    def start(self):
        os.makedirs("/var/log/libvirt", exist_ok=True)
        process = self._start("libvirtd", "--pid-file", "/run/libvirt/libvirtd-kvmscope.pid")

        def ready():
            if process.poll() is not None:
                raise CommandFailed("libvirtd ended: " + open("/var/log/libvirt/libvirtd.log").read()[-2000:])
            return self.alive()

        wait_for("libvirtd", ready, timeout=60)

    def kill(self):
        """kill -9 of our libvirtd; the domains go on."""
        process = self._processes.pop()
        process.kill()
        process.wait()

    def pause(self, stop=True):
        """Hangs our libvirtd, or lets it go on."""
        self._processes[-1].send_signal(signal.SIGSTOP if stop else signal.SIGCONT)

    def _stop(self):
        for process in reversed(self._processes):
            process.send_signal(signal.SIGCONT)
            end_process(process)

    def virsh(self, *args, check=True, timeout=60):
        return run("virsh", "-q", "-c", self.uri, *args, check=check, timeout=timeout)


class SystemLibvirt(Libvirt):
    """The system's own libvirtd, as systemd runs it."""

    _DROP_IN = Path("/run/systemd/system/libvirtd.service.d/kvmscope.conf")
    _SOCKETS = ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")

    def __init__(self, resources):
        # Killed, it is to stay so until the test says otherwise.
        self._DROP_IN.parent.mkdir(parents=True, exist_ok=True)
        self._DROP_IN.write_text("[Service]\nRestart=no\n", encoding="ascii")
        run("systemctl", "daemon-reload")
        resources.push(self.start)
        self.start()

    def _main_pid(self):
        return int(run("systemctl", "show", "--property=MainPID", "--value", "libvirtd"))

    def start(self):
        run("systemctl", "reset-failed", "libvirtd", *self._SOCKETS)
        run("systemctl", "start", "libvirtd")
        wait_for("libvirtd", self.alive, timeout=60)

    def kill(self):
        run("systemctl", "stop", *self._SOCKETS)
        pid = self._main_pid()
        os.kill(pid, signal.SIGKILL)
        wait_for("libvirtd to be gone", lambda: not os.path.exists(f"/proc/{pid}"))

    def pause(self, stop=True):
        os.kill(self._main_pid(), signal.SIGSTOP if stop else signal.SIGCONT)


@dataclass
class Disk:
    """A disk as the domain sees it. `storage` has path and is_block."""
    storage: object
    io: str = "threads"
    target: str = ""
    discard: bool = False
    ioeventfd: bool = True  # off: requests are submitted by the vCPU's thread itself

    def xml(self):
        kind, key = ("block", "dev") if self.storage.is_block else ("file", "file")
        more = " discard='unmap'" if self.discard else ""
        more += "" if self.ioeventfd else " ioeventfd='off'"
        return (f"<disk type='{kind}' device='disk'><driver name='qemu' type='raw' cache='none' io='{self.io}'"
                f" error_policy='report' rerror_policy='report'{more}/>"
                f"<source {key}={quoteattr(self.storage.path)}/><target dev='{self.target}' bus='virtio'/></disk>")


@dataclass
class Nic:
    """A NIC on a tap, that libvirt makes and that is then up with an address, the guest's is the one after it."""
    tap: str
    mac: str
    address: str = ""
    driver: str = "qemu"

    def xml(self):
        return (f"<interface type='ethernet'><mac address='{self.mac}'/><target dev='{self.tap}'/>"
                f"<model type='virtio'/><driver name='{self.driver}'/></interface>")

    def set_up(self, guest, device="eth0"):
        network, _, last = self.address.rpartition(".")
        self.guest_address = f"{network}.{int(last) + 1}"
        run("ip", "address", "add", f"{self.address}/24", "dev", self.tap)
        run("ip", "link", "set", self.tap, "up")
        # No ARP while a guest is suspended.
        run("ip", "neighbour", "replace", self.guest_address, "lladdr", self.mac, "dev", self.tap)
        done = guest.run(f"ip addr add {self.guest_address}/24 dev {device} && ip link set {device} up")
        assert done.status == 0, done.output

    def stats(self):
        """The tap's own: its rx is what the guest sent."""
        return json.loads(run("ip", "-json", "-stats", "link", "show", "dev", self.tap))[0]["stats64"]


@dataclass
class Nova:
    """What nova writes into a domain."""
    project_id: str
    name: str = "instance"
    project_name: str = "project"
    flavor: str = "m1.tiny"

    def xml(self):
        return (f'<nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">'
                f'<nova:package version="25.0.0"/><nova:name>{escape(self.name)}</nova:name>'
                f'<nova:creationTime>2025-11-21 04:40:00</nova:creationTime>'
                f'<nova:flavor name={quoteattr(self.flavor)}><nova:memory>128</nova:memory><nova:disk>1</nova:disk>'
                f'<nova:swap>0</nova:swap><nova:ephemeral>0</nova:ephemeral><nova:vcpus>1</nova:vcpus></nova:flavor>'
                f'<nova:owner><nova:user uuid="{uuids.uuid5(uuids.NAMESPACE_DNS, self.project_id).hex}">admin'
                f'</nova:user><nova:project uuid={quoteattr(self.project_id)}>{escape(self.project_name)}'
                f'</nova:project></nova:owner></nova:instance>')


@dataclass
class Own:
    """kvmscope's own metadata, for hosts without nova."""
    tenant: str
    name: str = ""

    def xml(self):
        return (f'<kvmscope:vm xmlns:kvmscope="{OWN_URI}" tenant={quoteattr(self.tenant)} '
                f'name={quoteattr(self.name)}/>')


@dataclass
class Answer:
    status: int
    output: str

    def json(self):
        assert self.status == 0, f"status {self.status}: {self.output}"
        return json.loads(self.output)


@dataclass(eq=False)  # two of one name are two
class Domain:
    """A transient guest. Its name gets the prefix of the bed; a domain that is left over is destroyed at the end."""
    resources: object
    libvirt: Libvirt
    name: str
    disks: list
    metadata: object = None
    memory_mib: int = 128
    vcpus: int = 1
    max_vcpus: int = 1
    partition: str = ""
    topology: str = ""  # of the processor, XML
    devices: str = ""  # more of them, XML
    arguments: tuple = ()  # QEMU's own
    uuid: str = field(default_factory=lambda: str(uuids.uuid4()))

    def __post_init__(self):
        self.name = self.resources.prefix + self.name
        for disk, letter in zip(self.disks, _LETTERS):
            disk.target = "vd" + letter
        self._console = None
        self._sequence = 0
        self._socket_path = str(self.resources.folder / (self.uuid[:8] + ".sock"))
        self.boot_seconds = 0.0

    def xml(self):
        guest = run(SOURCE / "tests/guest/build.sh", CACHE, timeout=300)
        disks = "".join(disk.xml() for disk in self.disks)
        metadata = f"<metadata>{self.metadata.xml()}</metadata>" if self.metadata else ""
        resource = f"<resource><partition>{self.partition}</partition></resource>" if self.partition else ""
        words = "".join(f"<qemu:arg value={quoteattr(word)}/>" for word in self.arguments)
        arguments = f"<qemu:commandline xmlns:qemu='{_QEMU_XMLNS}'>{words}</qemu:commandline>" if words else ""
        return f"""<domain type='{'kvm' if SYSTEM else 'qemu'}'><name>{escape(self.name)}</name><uuid>{self.uuid}</uuid>{metadata}
<memory unit='MiB'>{self.memory_mib}</memory><vcpu current='{self.vcpus}'>{max(self.vcpus, self.max_vcpus)}</vcpu>{resource}
<os><type arch='x86_64' machine='pc'>hvm</type><kernel>{guest}/vmlinuz</kernel><initrd>{guest}/initrd</initrd>
<cmdline>console=ttyS0 quiet panic=-1 no_timer_check nokaslr</cmdline></os>
<features><acpi/></features><cpu mode='maximum'>{self.topology}</cpu><on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}
<controller type='usb' model='none'/><memballoon model='none'/>
<serial type='null'><target port='0'/></serial>
<serial type='unix'><source mode='bind' path='{self._socket_path}'/><target port='1'/></serial>
{self.devices}</devices>{arguments}</domain>"""

    def start(self, wait=True, paused=False):
        began = time.monotonic()
        path = self.resources.folder / (self.uuid + ".xml")
        path.write_text(self.xml(), encoding="utf-8")
        self.resources.push(self.destroy)
        self.libvirt.virsh("create", path, *(["--paused"] if paused else []), timeout=120)
        self._console = socket.socket(socket.AF_UNIX)
        self._console.settimeout(60 * SLOWNESS)
        self._console.connect(self._socket_path)
        self._buffer = b""
        if wait and not paused:
            self.wait_booted()
        self.boot_seconds = time.monotonic() - began
        return self

    def wait_booted(self):
        self._answer("ready", 90)

    def _answer(self, ident, timeout):
        self._console.settimeout(timeout * SLOWNESS)
        mark = re.compile(rb"<<<" + ident.encode() + rb" (\d+)>>>\r?\n")
        while True:
            found = mark.search(self._buffer)
            if found:
                output = self._buffer[:found.start()].decode(errors="replace").replace("\r", "")
                self._buffer = self._buffer[found.end():]
                return Answer(int(found.group(1)), output)
            data = self._console.recv(65536)
            if not data:
                raise ConnectionError(f"{self.name}: the console closed; it said {self._buffer[-500:]!r}")
            self._buffer += data

    def run(self, command, timeout=60):
        """Runs a shell command in the guest."""
        self._sequence += 1
        ident = f"c{self._sequence}"
        self._console.sendall(f"{ident} {command}\n".encode())
        return self._answer(ident, timeout)

    def vmio(self, target, operation, count, size=4096, timeout=120, **options):
        """Exactly so much I/O at /dev/<target>; returns what was issued."""
        words = " ".join(f"{key}={value}" for key, value in options.items())
        return self.run(f"vmio /dev/{target} {operation} {count} {size} {words}", timeout).json()

    def background(self, command):
        """Starts a command and returns a function that waits for its answer."""
        self._sequence += 1
        out = f"/tmp/job{self._sequence}"
        self.run(f"(sh -c {shlex.quote(command)} >{out} 2>&1 </dev/null; echo $? >{out}.rc) >/dev/null 2>&1 &")

        def wait(timeout=60):
            wait_for(f"{command} in {self.name}", lambda: self.run(f"test -s {out}.rc").status == 0, timeout, 0.2)
            return Answer(int(self.run(f"cat {out}.rc").output), self.run(f"cat {out}").output)

        return wait

    def background_vmio(self, target, operation, count, size=4096, **options):
        words = " ".join(f"{key}={value}" for key, value in options.items())
        return self.background(f"vmio /dev/{target} {operation} {count} {size} {words}")

    def pid(self):
        status = Path(f"/run/libvirt/qemu/{self.name}.xml")
        found = re.search(r"<domstatus [^>]*pid='(\d+)'", status.read_text()) if status.exists() else None
        if not found:
            raise ProcessLookupError(self.name)
        return int(found.group(1))

    def cpu_seconds(self):
        """What QEMU has used, all of its threads, dead ones too: the process's CPU clock."""
        return time.clock_gettime((~self.pid() << 3) | 2)

    def kill(self):
        """SIGKILL of our guest's QEMU."""
        os.kill(self.pid(), signal.SIGKILL)

    def attach(self, disk):
        """Plugs a disk in while the guest runs; returns its target."""
        disk.target = "vd" + _LETTERS[len(self.disks)]
        path = self.resources.folder / f"{self.uuid}-{disk.target}.xml"
        path.write_text(disk.xml(), encoding="utf-8")
        self.libvirt.virsh("attach-device", self.name, path, "--live")
        wait_for(f"{disk.target} in the guest", lambda: self.run(f"test -b /dev/{disk.target}").status == 0)
        self.run(f"echo none >/sys/block/{disk.target}/queue/scheduler; echo 0 >/sys/block/{disk.target}/queue/read_ahead_kb")
        self.disks.append(disk)
        return disk.target

    def detach(self, disk):
        """Unplugs a disk that attach() plugged in."""
        self.libvirt.virsh("detach-device", self.name, self.resources.folder / f"{self.uuid}-{disk.target}.xml", "--live")
        wait_for(f"{disk.target} to go", lambda: self.run(f"test -b /dev/{disk.target}").status != 0)
        wait_for("libvirt to notice", lambda: disk.target not in self.libvirt.virsh("domblklist", self.name))
        self.disks.remove(disk)

    def _device_file(self, nic):
        path = self.resources.folder / f"{self.uuid}-{nic.tap}.xml"
        path.write_text(nic.xml(), encoding="utf-8")
        return path

    def attach_nic(self, nic, device):
        """Plugs a NIC in while the guest runs, where it becomes `device`."""
        self.libvirt.virsh("attach-device", self.name, self._device_file(nic), "--live")
        wait_for(f"{device} in the guest", lambda: self.run(f"test -e /sys/class/net/{device}").status == 0)
        nic.set_up(self, device)

    def detach_nic(self, nic, device):
        self.libvirt.virsh("detach-device", self.name, self._device_file(nic), "--live")
        wait_for(f"{device} to go", lambda: self.run(f"test -e /sys/class/net/{device}").status != 0)
        wait_for("libvirt to notice", lambda: nic.mac not in self.libvirt.virsh("domiflist", self.name))

    def set_own_metadata(self, tenant, name=""):
        element = f"<vm tenant={quoteattr(tenant)} name={quoteattr(name)}/>"
        self.libvirt.virsh("metadata", self.name, "--uri", OWN_URI, "--key", "kvmscope", "--set", element, "--live")

    def destroy(self):
        if self._console is not None:
            self._console.close()
            self._console = None
            self.libvirt.virsh("destroy", self.name, check=False)


def foreign_qemus(domains):
    """QEMU processes on this host that are none of these domains': other sessions' guests."""
    ours = {domain.pid() for domain in domains}
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            name = open(f"/proc/{entry}/comm").read()
        except OSError:
            continue  # gone meanwhile
        if name.startswith("qemu-system") and int(entry) not in ours:
            found.append(int(entry))
    return found
