# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the host tests. Importing this moves the whole run into a session of its own (bed/session.py),
unless it runs on a system of its own."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bed import session  # noqa: E402
from bed.shell import SOURCE, SYSTEM, Resources  # noqa: E402

if not SYSTEM and os.environ.get("KVMSCOPE_IN_SESSION") != "1":
    session.enter()
    os.environ["KVMSCOPE_IN_SESSION"] = "1"

import pytest  # noqa: E402

from bed.daemon import INTERVAL, Hostd  # noqa: E402
from bed.libvirt import Libvirt, SystemLibvirt  # noqa: E402


def _known_skips():
    """Names of tests/known-skips.txt: "NAME  why", # for comments."""
    lines = (SOURCE / "tests/known-skips.txt").read_text(encoding="utf-8").splitlines()
    return {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}


_unknown_skips = []


def pytest_runtest_logreport(report):
    name = report.nodeid.split("::", 1)[-1].split("[")[0]
    if report.skipped and not hasattr(report, "wasxfail") and name not in _known_skips():
        _unknown_skips.append(report.nodeid)


def pytest_collectreport(report):
    if report.skipped and report.nodeid not in _known_skips():
        _unknown_skips.append(report.nodeid)


def pytest_sessionfinish(session, exitstatus):
    if _unknown_skips and exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    for nodeid in _unknown_skips:
        terminalreporter.write_line(f"skipped, but not named in tests/known-skips.txt: {nodeid}", red=True)


@pytest.fixture(scope="module")
def bed():
    """The list of what has to be undone, with a folder."""
    with Resources() as resources:
        yield resources


@pytest.fixture(scope="module")
def libvirt(bed):
    return SystemLibvirt(bed) if SYSTEM else Libvirt(bed)


@pytest.fixture
def start_hostd(bed):
    """start_hostd(changes, interval): a running daemon, ended after the test; its log is shown when the test fails."""
    started = []

    def start(changes=None, interval=f"{INTERVAL}s"):
        daemon = Hostd(bed, changes, interval)
        started.append(daemon)
        return daemon.start()

    yield start
    for daemon in started:
        daemon._end()
        print(f"--- {daemon.log_file.name} of {daemon.folder.name}, last lines\n{daemon.log()[-6000:]}")
