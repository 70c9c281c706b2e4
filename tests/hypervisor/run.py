#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The hypervisor VM as tests of CTest.

run.py boot KERNEL RESULTS [ROUNDS] SUITE|TIER...   boots it on that kernel, runs these inside so many times, fails only
                                                    if that does not work
run.py verdict RESULTS SUITE                        fails, with its log, if a suite failed in there or did not run
"""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from inside import suites as table

SOURCE = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("KVMSCOPE_CACHE", "/var/cache/kvmscope"))
BOOT_SECONDS = 300  # beside what suites.txt gives the suites
# Of the product: stripped, for an emulated machine has to read all of it.
PROGRAMS = ["hostd/kvmscope-hostd", "hostd/kvmscope", "tests/bpf/bpf-tracer", "tests/bpf/bpf-tap", "tests/bpf/bpf-threads",
            "tests/bpf/bpf-work", "tests/bench/exit-cost", "tests/bench/bench-kernel", "tests/bench/switches"]
OTHERS = ["bpf_objects/programs.bpf.o"]
SOURCES = ["tests/host", "tests/hypervisor", "tests/guest", "tests/support", "tests/receiver", "tests/unit/hostd/bad", "tests/known-skips.txt", "hostd/kvmscope.yaml"]


def cached():
    """What `./dev setup` has made: guest image, Python environment, Collector."""
    def key(*command):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout[:16]

    return [CACHE / ("guest-" + key(SOURCE / "tests/guest/build.sh", "--key")),
            CACHE / ("venv-" + key("sha256sum", SOURCE / "tests/host/requirements.txt"))]


def pack(payload, folder, suites):
    """Everything at the path that it has here, so that whatever names another file finds it."""
    build = SOURCE / "build/release"
    with tarfile.open(payload, "w") as archive:
        for path in [*(SOURCE / name for name in SOURCES), *(build / name for name in OTHERS), *cached()]:
            archive.add(path, filter=lambda info: None if "__pycache__" in info.name else info)
        for name in PROGRAMS:
            stripped = folder / Path(name).name
            subprocess.run(["strip", "-o", stripped, build / name], check=True)
            archive.add(stripped, build / name)
        script = folder / "run"
        script.write_text(f"#!/bin/sh\nexport KVMSCOPE_CACHE='{CACHE}'\nexec {SOURCE}/tests/hypervisor/inside.py {' '.join(suites)}\n",
                          encoding="utf-8")
        script.chmod(0o755)
        archive.add(script, "/srv/payload/run")


def boot(kernel, results, *suites):
    shutil.rmtree(results, ignore_errors=True)
    Path(results).mkdir(parents=True)
    seconds = BOOT_SECONDS + sum(limit for _, limit, _ in table(suites))
    with tempfile.TemporaryDirectory(prefix="kvmscope-payload-", dir="/var/tmp") as folder:
        payload = Path(folder) / "payload.tar"
        pack(payload, Path(folder), suites)
        return subprocess.run([SOURCE / "vagrant/run", "--kernel", kernel, "--timeout", str(seconds), payload, results],
                              stdin=subprocess.DEVNULL, check=False).returncode


def verdict(results, suite):
    log, status = Path(results, f"{suite}.log"), Path(results, f"{suite}.status")
    if log.exists():
        print(log.read_text(errors="replace"))
    if not status.exists():
        print(f"{suite} did not run to its end; see {results}/progress.log and console.log")
        return 1
    code, took = status.read_text(encoding="ascii").split()
    print(f"{suite}: status {code} after {took} s; more in {results}")
    return 0 if code == "0" else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the payload's folder goes
    sys.exit({"boot": boot, "verdict": verdict}[sys.argv[1]](*sys.argv[2:]))
