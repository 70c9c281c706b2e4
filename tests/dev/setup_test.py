# SPDX-License-Identifier: Apache-2.0
"""./dev setup on machines that are not this one: the commands that it calls are replaced, the cache is a folder."""

import hashlib
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING_IS_INSTALLED = 'shift 2; for p; do echo "ii $p"; done'  # dpkg-query -W -f=... PACKAGE...


def key_of(path):
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()[:16]


class Setup(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.cache, self.commands = Path(folder.name) / "cache", Path(folder.name) / "bin"
        self.cache.mkdir()
        self.commands.mkdir()
        # What takes long is there already.
        venv = self.cache / f"venv-{key_of('tests/host/requirements.txt')}"
        venv.mkdir()
        (venv / "complete").touch()
        guest = subprocess.run([ROOT / "tests/guest/build.sh", "--key"], check=True, capture_output=True, text=True)
        (self.cache / f"guest-{guest.stdout.strip()}").mkdir()
        (self.cache / f"guest-{guest.stdout.strip()}" / "initrd").touch()
        for image in ([], ["6.1"], ["6.12"]):
            name = subprocess.run([ROOT / "vagrant/image.sh", "--name", *image], check=True, capture_output=True, text=True)
            (self.cache / name.stdout.strip()).mkdir()
            (self.cache / name.stdout.strip() / "complete").touch()
        self.command("dpkg-query", EVERYTHING_IS_INSTALLED)

    def command(self, name, script):
        path = self.commands / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        path.chmod(0o755)

    def setup(self):
        environment = {**os.environ, "KVMSCOPE_CACHE": str(self.cache), "PATH": f"{self.commands}:{os.environ['PATH']}"}
        return subprocess.run([ROOT / "dev", "setup"], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=50, check=False)

    def test_without_go_the_collector_is_left_out(self):
        for go in ("exit 127", "echo go1.24.1"):
            self.command("go", go)
            done = self.setup()
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("no Collector, its tests will be skipped", done.stderr)

    def test_a_collector_that_cannot_be_built_is_an_error(self):
        self.command("go", '[ "$1" = env ] && echo go1.25.0 || { echo "proxy: no such host" >&2; exit 1; }')
        done = self.setup()
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("proxy: no such host", done.stderr)
        self.assertIn("collector.log", done.stderr)

    def test_a_collector_that_is_there_is_not_built(self):
        self.command("go", "echo called >&2; exit 1")
        folder = self.cache / f"collector-{key_of('tests/receiver/collector.yaml')}"
        folder.mkdir()
        (folder / "otelcol").touch(mode=0o755)
        done = self.setup()
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
        self.assertNotIn("called", done.stderr)

    def test_installing_packages_says_little_but_errors(self):
        self.command("go", "exit 127")
        self.command("dpkg-query", EVERYTHING_IS_INSTALLED + " | grep -v ninja")
        self.command("id", "[ \"$1\" = -u ] && echo 0 || echo root")
        for quiet in ("tee", "chmod"):  # no policy-rc.d on this machine
            self.command(quiet, "cat >/dev/null 2>&1 </dev/null")
        apt = 'case "$*" in *" install "*) {} ;; esac'
        self.command("apt-get", apt.format('echo "Unpacking ninja-build ..."; echo "asked for $*" >&2'))
        done = self.setup()
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
        self.assertRegex(done.stderr, "asked for .* ninja-build\n")
        self.command("apt-get", apt.format('echo "E: no space left" >&2; exit 100'))
        done = self.setup()
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("E: no space left", done.stderr)


if __name__ == "__main__":
    unittest.main()
