#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""inside.py [ROUNDS] SUITE|TIER...: the hypervisor VM's side. Runs those suites of suites.txt one after the other and
leaves in /srv/results, for each: SUITE.log, SUITE.xml where pytest writes one, SUITE/ with what the daemons exported,
SUITE.status. In the second round and later ones SUITE is SUITE.2, SUITE.3, ...
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1]
RESULTS = Path("/srv/results")
# Patience of the host tests: an emulated processor is about that much slower. The one place to say so.
SLOWNESS = 12
# The tests' disks: kernels load these on first use of a device that only appears with them.
MODULES = ("loop", "zram", "null_blk nr_devices=0")
# Tests compare with what a loop device (or any but dm) has counted: udev, which reads every new one, must not.
UNREAD = Path("/run/udev/rules.d/00-kvmscope-tests.rules")


def suites(wanted):
    """[(name, seconds, [command ...])] of the suites and tiers that are wanted, in the table's order, each round of them."""
    rounds, wanted = (int(wanted[0]), wanted[1:]) if wanted[0].isdigit() else (1, wanted)
    found, unknown = [], set(wanted)
    for line in (HERE / "suites.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            tier, name, seconds, *command = line.split()
            if {tier, name} & set(wanted):
                found.append((name, int(seconds), command))
            unknown -= {tier, name}
    if unknown:
        raise SystemExit(f"not in {HERE / 'suites.txt'}: {' '.join(sorted(unknown))}")
    return [(name if number == 1 else f"{name}.{number}", *rest) for number in range(1, rounds + 1) for name, *rest in found]


def run(name, seconds, command):
    kept = RESULTS / name
    kept.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "KVMSCOPE_BED": "system", "KVMSCOPE_SLOWNESS": str(SLOWNESS), "KVMSCOPE_KEEP": str(kept),
                   "KVMSCOPE_BUILD": str(SOURCE / "build/release"), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    pytest = command[0].endswith("run.sh")
    if pytest:
        command = [*command, "-v", f"--junitxml={RESULTS / name}.xml"]
    log = RESULTS / f"{name}.log"
    with open(log, "wb") as out, open(log, encoding="utf-8", errors="replace") as said:
        # A suite that hangs is interrupted so that it can say where and clean up; then killed.
        suite = subprocess.Popen(["timeout", "--kill-after=30", "--signal=INT", str(seconds), str(SOURCE / command[0]), *command[1:]],
                                 cwd=SOURCE, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        began = time.monotonic()
        while suite.poll() is None:
            time.sleep(2)
            for line in said:
                if re.search("PASSED|FAILED|ERROR", line):
                    print(f"  {time.monotonic() - began:5.0f} s {line.strip()}", flush=True)
        return suite.returncode


def main(wanted):
    UNREAD.parent.mkdir(parents=True, exist_ok=True)
    UNREAD.write_text('SUBSYSTEM=="block", ENV{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1"\n', encoding="ascii")
    subprocess.run(["udevadm", "control", "--reload"], check=False)
    for module in MODULES:
        subprocess.run(["modprobe", *module.split()], check=False)
    for name, seconds, command in suites(wanted):
        print(f"{name} ...", flush=True)
        began = time.monotonic()
        status = run(name, seconds, command)
        took = time.monotonic() - began
        (RESULTS / f"{name}.status").write_text(f"{status} {took:.0f}\n", encoding="ascii")
        subprocess.run(["guest", "keep"], check=False)
        lines = (RESULTS / f"{name}.log").read_text(errors="replace").strip().splitlines()
        print(f"{name}: status {status} after {took:.0f} s: {re.sub('=+', '', lines[-1]) if lines else ''}", flush=True)
    # A suite that fails is a test of its own outside: this machine has done its work.
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
