# SPDX-License-Identifier: Apache-2.0
"""vagrant/run and the verdicts, on a QEMU that is a script: each way to fail is told from the others."""

import os
import subprocess
import tempfile
import unittest
from unittest import mock
from pathlib import Path

import inside
from inside import suites

ROOT = Path(__file__).resolve().parents[2]
# The last two arguments are "-serial file:PROGRESS"; the console comes before, the results are the third drive.
QEMU = r"""#!/bin/bash
case "$*" in *kvmscope.try*) exit 0 ;; esac
echo boot >>"$BOOTS"
progress=${!#}; progress=${progress#file:}
results=$(grep -o 'file=[^, ]*results.tar' <<<"$*"); results=${results#file=}
console=$(grep -o 'file:[^ ]*console.log' <<<"$*"); console=${console#file:}
up() { echo "kvmscope: up after 1 s" >"$progress"; }
finish() {
  mkdir -p "$BOOTS.d"; echo "$1" >"$BOOTS.d/status"; tar -cf "$results" -C "$BOOTS.d" .
  echo "kvmscope: done with status $1 after 2 s" >>"$progress"
}
"""


class Runner(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.cache, self.results, self.boots = self.folder / "cache", self.folder / "results", self.folder / "boots"
        for image in ([], ["6.1"]):
            name = subprocess.run([ROOT / "vagrant/image.sh", "--name", *image], check=True, capture_output=True, text=True)
            (self.cache / name.stdout.strip()).mkdir(parents=True)
            (self.cache / name.stdout.strip() / "complete").touch()

    def run_with(self, script):
        (self.folder / "qemu-system-x86_64").write_text(QEMU + script + "\n", encoding="ascii")
        (self.folder / "qemu-system-x86_64").chmod(0o755)
        (self.folder / "payload.tar").touch()
        environment = {**os.environ, "KVMSCOPE_CACHE": str(self.cache), "BOOTS": str(self.boots),
                       "PATH": f"{self.folder}:{os.environ['PATH']}"}
        done = subprocess.run([ROOT / "vagrant/run", "--timeout", "3", self.folder / "payload.tar", self.results],
                              env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr, self.boots.read_text().count("boot")

    def test_a_payload_that_passes(self):
        self.assertEqual(self.run_with("up; finish 0")[::2], (0, 1))
        self.assertTrue((self.results / "console.log").exists())

    def test_a_payload_that_fails(self):
        self.assertEqual(self.run_with("up; finish 7")[::2], (1, 1))

    def test_a_boot_that_dies_is_tried_again(self):
        status, said, boots = self.run_with('[ "$(wc -l <"$BOOTS")" = 1 ] && { echo int3 >"$console"; exit; }; up; finish 0')
        self.assertEqual((status, boots), (0, 2))
        self.assertIn("int3", said)
        self.assertIn("did not boot", said)

    def test_one_that_never_boots(self):
        status, said, boots = self.run_with('echo int3 >"$console"')
        self.assertEqual((status, boots), (3, 3))
        self.assertIn("int3", said)

    def test_one_that_hangs(self):
        status, said, boots = self.run_with('up; echo "mapping ..." >>"$progress"; exec sleep 60')
        self.assertEqual((status, boots), (4, 1))
        self.assertIn("not done after 3 s", said)
        self.assertIn("mapping ...", said)

    def test_one_that_dies_at_work(self):
        self.assertEqual(self.run_with("up; finish 0; echo up >$progress")[::2], (5, 1))
        self.assertTrue((self.results / "status").exists(), "what it had kept")


class Table(unittest.TestCase):
    def test_suites_by_tier_and_by_name(self):
        names = [name for name, _, _ in suites(["hypervisor"])]
        self.assertIn("exits", names)
        self.assertNotIn("bench", names)
        self.assertEqual([name for name, _, _ in suites(["vmx", "mapping"])], ["mapping", "vmx"])
        self.assertEqual([name for name, _, _ in suites(["2", "vmx", "mapping"])], ["mapping", "vmx", "mapping.2", "vmx.2"])
        with self.assertRaisesRegex(SystemExit, "no-such"):
            suites(["mapping", "no-such"])


class Inside(unittest.TestCase):
    def test_a_suites_status_is_its_commands(self):
        with tempfile.TemporaryDirectory() as folder:
            udevadm = Path(folder, "udevadm")  # it is no business of this machine's
            udevadm.write_text("#!/bin/sh\n", encoding="ascii")
            udevadm.chmod(0o755)
            with mock.patch.object(inside, "RESULTS", Path(folder)), \
                    mock.patch.dict(os.environ, {"PATH": f"{folder}:{os.environ['PATH']}"}):
                self.assertEqual(inside.run("good", 20, ["/bin/true"]), 0)
                self.assertEqual(inside.run("bad", 20, ["/bin/false"]), 1)
                self.assertEqual(inside.run("long", 1, ["/bin/sleep", "20"]), 124)


class Verdict(unittest.TestCase):
    def verdict(self, log=None, status=None):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("mapping.log", log), ("mapping.status", status)):
                if text is not None:
                    Path(folder, name).write_text(text, encoding="utf-8")
            done = subprocess.run([ROOT / "tests/hypervisor/run.py", "verdict", folder, "mapping"], capture_output=True,
                                  text=True, check=False)
            return done.returncode, done.stdout

    def test_each_has_its_own(self):
        self.assertEqual(self.verdict("all well\n", "0 12\n")[0], 0)
        status, said = self.verdict("it broke\n", "1 12\n")
        self.assertEqual(status, 1)
        self.assertIn("it broke", said)
        status, said = self.verdict("half of\n")
        self.assertEqual(status, 1)
        self.assertIn("did not run to its end", said)


if __name__ == "__main__":
    unittest.main()
