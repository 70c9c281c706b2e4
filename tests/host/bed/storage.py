# SPDX-License-Identifier: Apache-2.0
"""Disks for guests: written files, loop devices, and devices that are exactly so slow or that really fail."""

import os
import subprocess

from .shell import end_process, run, wait_for

_MIB = 1 << 20


def written_file(path, size_mib):
    """A file without holes (holes never reach the block layer), contiguous where the file system allows it."""
    block = os.urandom(_MIB)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_mib * _MIB)
        for _ in range(size_mib):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def block_stat(device):
    """What the kernel counted at a block device: requests and bytes by direction."""
    words = open(f"/sys/class/block/{os.path.basename(os.path.realpath(device))}/stat").read().split()
    n = [int(word) for word in words] + [0] * 6
    return {"reads": n[0], "read_bytes": n[2] * 512, "writes": n[4], "write_bytes": n[6] * 512,
            "discards": n[11], "discard_bytes": n[13] * 512, "flushes": n[15]}


class FileDisk:
    """A raw image file."""

    def __init__(self, resources, folder, name, size_mib=64):
        self.path = str(written_file(os.path.join(folder, name + ".img"), size_mib))
        self.is_block = False
        resources.push(lambda: os.path.exists(self.path) and os.unlink(self.path))


class LoopDisk:
    """A block device of its own: a loop device over a written file, or over `backing`."""

    def __init__(self, resources, name, size_mib=64, backing=None):
        self.backing = backing or str(written_file(resources.folder / (name + ".back"), size_mib))
        self.path = run("losetup", "--find", "--show", "--direct-io=on", self.backing)
        self.is_block = True
        resources.push(self.detach)

    def detach(self):
        # A guest that was just killed may hold it for a moment more.
        wait_for(f"detach {self.path}", lambda: _succeeds("losetup", "--detach", self.path), timeout=10)

    def stat(self):
        return block_stat(self.path)


def _succeeds(*args):
    return subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


class Filesystem:
    """An ext4 of its own on a loop device: several images on one disk, and nobody else's traffic.

    Make it before the guests: QEMU lives in a mount namespace of its own and does not see later mounts.
    """

    def __init__(self, resources, name, size_mib=512):
        backing = resources.folder / (name + ".ext4")
        with open(backing, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size_mib * _MIB)
        self.device = LoopDisk(resources, name, backing=str(backing))
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.device.path)
        self.folder = resources.folder / (name + ".mnt")
        self.folder.mkdir()
        run("mount", "-o", "noatime", self.device.path, self.folder)
        resources.push(lambda: run("umount", self.folder))
        self.folder.chmod(0o755)


class NbdDisk(LoopDisk):
    """A loop device over a FUSE file that nbdkit serves through filters: delays and errors of the host's storage."""

    def __init__(self, resources, name, filters, parameters, size_mib=32):
        image = written_file(resources.folder / (name + ".nbd"), size_mib)
        folder = resources.folder / (name + ".fuse")
        folder.mkdir()
        served = folder / "disk"
        command = ["nbdfuse", str(served), "--command", "nbdkit", "-s", "--threads=64",
                   *[f"--filter={f}" for f in filters], "file", str(image), *parameters]
        log = open(resources.folder / (name + ".log"), "wb")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        resources.push(log.close)
        resources.push(lambda: end_process(process))
        resources.push(lambda: run("umount", "-l", folder, check=False))
        wait_for("nbdfuse", served.exists)
        super().__init__(resources, name, backing=str(served))


class SlowDisk(NbdDisk):
    """Each read and write takes this long in the host's storage, issue to complete."""

    def __init__(self, resources, name, read_ms, write_ms, size_mib=32):
        super().__init__(resources, name, ["delay"], [f"rdelay={read_ms}ms", f"wdelay={write_ms}ms"], size_mib)


class FailingDisk(NbdDisk):
    """Sound until fail(True); then each request gives EIO until fail(False)."""

    def __init__(self, resources, name, size_mib=32):
        self._trigger = resources.folder / (name + ".fails")
        super().__init__(resources, name, ["error"],
                         ["error=EIO", "error-rate=100%", f"error-file={self._trigger}"], size_mib)

    def fail(self, on):
        if on:
            self._trigger.touch()
        else:
            self._trigger.unlink(missing_ok=True)
