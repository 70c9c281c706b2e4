# SPDX-License-Identifier: Apache-2.0
"""install_test.py CMAKE BUILD: what `cmake --install` puts where, and whether the unit fits it."""

import os
import re
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

CMAKE, BUILD = sys.argv.pop(1), sys.argv.pop(1)
FILES = {
    "bin/kvmscope": 0o755,
    "bin/kvmscope-hostd": 0o755,
    "lib/systemd/system/kvmscope-hostd.service": 0o644,
    "share/doc/kvmscope/kvmscope.yaml": 0o644,
    "share/doc/kvmscope/operating.md": 0o644,
    "share/doc/kvmscope/metrics.md": 0o644,
    "share/doc/kvmscope/security.md": 0o644,
    "share/doc/kvmscope/LICENSE": 0o644,
}


def run(*command, **kwargs):
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False, **kwargs)
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}"
    return done.stdout


class Install(unittest.TestCase):
    def install(self, prefix="/usr"):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        run("sh", "-c", 'umask 022; exec "$@"', "-", CMAKE, "--install", BUILD, "--prefix", prefix,
            env={**os.environ, "DESTDIR": folder.name})
        return Path(folder.name)

    def test_everything_is_where_it_belongs(self):
        root = self.install()
        found = {str(path.relative_to(root / "usr")): stat.S_IMODE(path.stat().st_mode)
                 for path in root.rglob("*") if not path.is_dir()}
        self.assertEqual(found, FILES)
        self.assertRegex(run(root / "usr/bin/kvmscope-hostd", "--version"), r"^kvmscope-hostd \d")
        run(root / "usr/bin/kvmscope-hostd", "--check-config", "--config", root / "usr/share/doc/kvmscope/kvmscope.yaml")

    def test_the_unit_starts_what_is_installed(self):
        for prefix in ("/usr", "/opt/kvmscope"):
            root = self.install(prefix)
            unit = (root / prefix[1:] / "lib/systemd/system/kvmscope-hostd.service").read_text()
            commands = re.findall(r"^Exec\w+=(\S+) ", unit, re.M)
            self.assertEqual(commands, [f"{prefix}/bin/kvmscope-hostd"] * 2)
            page = re.search(r"^Documentation=file://(\S+)$", unit, re.M)[1]
            for path in [*commands, page]:
                self.assertTrue((root / path[1:]).is_file(), path)

    def test_systemd_takes_the_unit_as_it_is(self):
        root = self.install()
        unit = root / "usr/lib/systemd/system/kvmscope-hostd.service"
        # Nothing is installed on this machine: the programs are named where they are, all else stays.
        unit.write_text(unit.read_text().replace("/usr/bin/", f"{root}/usr/bin/"))
        said = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit)
        self.assertEqual([line for line in said.splitlines() if "kvmscope" in line], [])


if __name__ == "__main__":
    unittest.main()
