# SPDX-License-Identifier: Apache-2.0
"""Commands, waiting, and the one list of what has to be undone."""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[3]
CACHE = Path(os.environ.get("KVMSCOPE_CACHE", "/var/cache/kvmscope"))
BUILD = Path(os.environ.get("KVMSCOPE_BUILD", SOURCE / "build" / "asan"))
# "system": this machine is a hypervisor of its own, under systemd, whose libvirtd and KVM serve (tests/hypervisor).
SYSTEM = os.environ.get("KVMSCOPE_BED") == "system"
# How many times slower than the machine that the tests' patience was written for.
SLOWNESS = float(os.environ.get("KVMSCOPE_SLOWNESS", "1"))


def kernel_has(symbol):
    """Whether the running kernel has this symbol."""
    with open("/proc/kallsyms", encoding="ascii") as symbols:
        return any(line.split()[2] == symbol for line in symbols)


class CommandFailed(Exception):
    pass


def run(*args, timeout=60, check=True, **kwargs):
    """Runs a command and returns what it printed; raises with its last words if it fails."""
    done = subprocess.run([str(a) for a in args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=timeout * SLOWNESS, text=True, errors="replace", **kwargs)
    if check and done.returncode != 0:
        raise CommandFailed(f"{' '.join(map(str, args))}: status {done.returncode}\n{done.stdout[-2000:]}")
    return done.stdout.strip()


def wait_for(what, condition, timeout=20.0, pause=0.1):
    """Waits until condition() is true and returns its value."""
    timeout *= SLOWNESS
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout:.0f} s")
        time.sleep(pause)


def end_process(process, timeout=10):
    """SIGTERM, then SIGKILL; for processes that this session started."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout * SLOWNESS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Resources:
    """Undo steps, carried out in reverse order exactly once: by close(), or when the interpreter ends."""

    def __init__(self, prefix="kvmscope-test-"):
        self._steps = []
        # Not /tmp: that may be a tmpfs, which takes no direct I/O. Readable for the user that runs QEMU.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir="/var/tmp"))
        self.folder.chmod(0o755)
        self.prefix = prefix
        self.push(lambda: shutil.rmtree(self.folder, ignore_errors=True))
        atexit.register(self.close)

    def push(self, step):
        self._steps.append(step)

    def close(self):
        """A second Ctrl-C must not stop the cleaning up."""
        try:
            previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        except ValueError:  # not the main thread
            previous = None
        while self._steps:
            step = self._steps.pop()
            try:
                step()
            except Exception as error:  # the other steps must run, whatever this one met
                print(f"cleaning up: {error}", flush=True)
        if previous is not None:
            signal.signal(signal.SIGINT, previous)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
