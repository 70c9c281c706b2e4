# SPDX-License-Identifier: Apache-2.0
"""Not a test: what tracing costs where guests run under KVM, printed (./dev bench hypervisor)."""

import re
import time

from bed.libvirt import Disk, Domain, Nova
from bed.shell import BUILD, run
from bed.storage import LoopDisk

SECONDS = 20


def test_print_the_cost_of_exits_and_switches(bed, libvirt, start_hostd, capsys):
    guest = Domain(bed, libvirt, "bench", [Disk(LoopDisk(bed, "bench", 16), "native")], Nova("tenant-a")).start()
    config = "/sys/bus/pci/devices/0000:00:00.0/config"
    guest.background(f"timeout {SECONDS * 20} sh -c 'while :; do cat {config}; done >/dev/null'")
    time.sleep(5)
    alone = run(BUILD / "tests/bench/exit-cost", SECONDS)
    start_hostd()
    time.sleep(5)
    exits = run(BUILD / "tests/bench/exit-cost", SECONDS, re.search(r"alone: (\d+) ns", alone).group(1))
    guest.destroy()
    with capsys.disabled():
        print("\n" + alone + exits)
        print(run(BUILD / "tests/bench/bench-kernel", "cost of a switch", timeout=400))
