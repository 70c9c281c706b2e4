# SPDX-License-Identifier: Apache-2.0
"""The real OpenTelemetry Collector: one receiver, authenticator and output file per tenant."""

import hashlib
import json
import socket
import subprocess

from .receiver import make_certificates
from .shell import CACHE, SOURCE, CommandFailed, end_process, wait_for


def binary():
    """The Collector that `./dev setup` built, or None."""
    manifest = (SOURCE / "tests/receiver/collector.yaml").read_bytes()
    path = CACHE / f"collector-{hashlib.sha256(manifest).hexdigest()[:16]}" / "otelcol"
    return path if path.exists() else None


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Collector:
    """tenants: {name: token}. endpoints[name] is where that tenant sends to, files[name] what was written."""

    def __init__(self, resources, tenants):
        self.ca, certificate, key = make_certificates(resources.folder / "collector-certificates")
        folder = resources.folder / "collector"
        folder.mkdir()
        self.endpoints = {name: f"localhost:{_free_port()}" for name in tenants}
        self.files = {name: folder / f"{name}.jsonl" for name in tenants}
        config = {
            "extensions": {f"bearertokenauth/{n}": {"scheme": "Bearer", "token": t} for n, t in tenants.items()},
            "receivers": {f"otlp/{n}": {"protocols": {"grpc": {
                "endpoint": self.endpoints[n].replace("localhost", "127.0.0.1"),
                "auth": {"authenticator": f"bearertokenauth/{n}"},
                "tls": {"cert_file": str(certificate), "key_file": str(key)}}}} for n in tenants},
            "exporters": {f"file/{n}": {"path": str(self.files[n]), "flush_interval": "200ms"} for n in tenants},
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "extensions": [f"bearertokenauth/{n}" for n in tenants],
                "pipelines": {f"{signal}/{n}": {"receivers": [f"otlp/{n}"], "exporters": [f"file/{n}"]}
                              for n in tenants for signal in ("metrics", "logs")},
            },
        }
        config_file = folder / "config.json"
        config_file.write_text(json.dumps(config), encoding="utf-8")
        log_path = folder / "otelcol.log"
        with open(log_path, "wb") as log:
            self._process = subprocess.Popen([binary(), "--config", config_file], stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=log)
        resources.push(self.stop)

        def ready():
            if self._process.poll() is not None:
                raise CommandFailed(log_path.read_text()[-3000:])
            return "Everything is ready" in log_path.read_text()

        wait_for("the Collector", ready, 30)

    def stop(self):
        """A clean end: all that was received is in the files."""
        end_process(self._process, 20)
