# SPDX-License-Identifier: Apache-2.0
"""kvmscope-hostd under test: configured, started, asked, stopped."""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from .shell import BUILD, SLOWNESS, SYSTEM, CommandFailed, end_process, run

# Seconds between readings, unless a test says otherwise: an emulated machine takes long to judge a second's export.
INTERVAL = 3 if SYSTEM else 1
_KEEP = os.environ.get("KVMSCOPE_KEEP")  # a folder that outlives the bed, for what daemons wrote
# A leak at exit would hide the exit code that the tests are after; libraries keep memory till the end.
_SANITIZER = {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def default_config(folder, interval=f"{INTERVAL}s"):
    """The file exporter for everybody, in `folder`; quick deadlines."""
    folder = Path(folder)
    return {
        "host": {"id": "test-host", "region": "region-one"},
        "interval": interval,
        "log": {"level": "debug"},
        "state_dir": str(folder / "state"),
        "control": {"socket": str(folder / "control.sock")},
        "libvirt": {"uri": "qemu:///system", "rescan_interval": "5s"},
        "tenancy": {"unattributed_after": "60s", "linger": "2s"},
        "tenants": {"default": {"exporter": "file", "path": str(folder / "tenant-${tenant.id}.jsonl")}},
        "operator": {"exporter": "file", "path": str(folder / "operator.jsonl")},
    }


def merged(base, changes):
    """base with changes laid over it, key by key; None removes a key."""
    result = dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
            continue
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


class Hostd:
    """One run of the daemon in a folder of its own below the bed's."""

    _count = 0

    def __init__(self, resources, changes=None, interval=f"{INTERVAL}s", build=BUILD):
        Hostd._count += 1
        self.folder = resources.folder / f"hostd-{Hostd._count}"
        self.folder.mkdir()
        self.build = Path(build)
        self.config = merged(default_config(self.folder, interval), changes or {})
        self.config_file = self.folder / "kvmscope.yaml"
        self.config_file.write_text(json.dumps(self.config, indent=1), encoding="utf-8")  # YAML contains JSON
        self.log_file = self.folder / "hostd.log"
        Path(self.config["state_dir"]).mkdir(mode=0o700, exist_ok=True)
        self._process = None
        resources.push(self._end)

    def start(self, timeout=60):
        """Returns when the daemon has said READY=1 as systemd would hear it."""
        notify_path = str(self.folder / "notify")
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(notify_path)
        environment = {**os.environ, **_SANITIZER, "NOTIFY_SOCKET": notify_path}
        with open(self.log_file, "ab") as log:
            self._process = subprocess.Popen([self.build / "hostd/kvmscope-hostd", "--config", self.config_file],
                                             stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        end = time.monotonic() + timeout * SLOWNESS
        try:
            while True:
                if self._process.poll() is not None:
                    raise CommandFailed(f"kvmscope-hostd ended with {self._process.returncode}\n{self.log()[-4000:]}")
                if select.select([notify], [], [], 0.1)[0] and b"READY=1" in notify.recv(4096):
                    return self
                if time.monotonic() > end:
                    raise TimeoutError(f"kvmscope-hostd is not ready\n{self.log()[-4000:]}")
        finally:
            # The daemon may go on notifying (watchdog, STOPPING=1): to nobody.
            notify.close()

    @property
    def pid(self):
        return self._process.pid

    def log(self):
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def stop(self, timeout=60, number=signal.SIGTERM):
        """Returns the exit code. The last interval is in the files then."""
        self._process.send_signal(number)
        code = self._process.wait(timeout * SLOWNESS)
        assert "ERROR: AddressSanitizer" not in self.log() and "runtime error:" not in self.log(), self.log()[-6000:]
        return code

    def _end(self):
        if self._process is not None:
            end_process(self._process, 30)
            if _KEEP:
                for path in (self.config_file, *self.folder.glob("*.log"), *self.folder.glob("*.jsonl*")):
                    kept = Path(_KEEP, self.folder.parent.name, self.folder.name)
                    kept.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, kept)

    def client(self, *args, timeout=30):
        """The command line tool, against this daemon."""
        environment = {**os.environ, **_SANITIZER}
        return run(self.build / "hostd/kvmscope", "--socket", self.config["control"]["socket"], *args,
                   timeout=timeout, env=environment)

    def client_json(self, *args):
        return json.loads(self.client(*args, "--json"))

    def operator_path(self):
        return Path(self.config["operator"]["path"])

    def tenant_path(self, tenant):
        return Path(self.config["tenants"]["default"]["path"].replace("${tenant.id}", tenant))
