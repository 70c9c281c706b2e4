# SPDX-License-Identifier: Apache-2.0
"""skips.py JUNIT KNOWN: fails if CTest skipped, or did not run, a test that the list of known skips does not name."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def main(report, known_file):
    lines = Path(known_file).read_text(encoding="utf-8").splitlines()
    known = {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}
    skipped = [case.get("name") for case in ET.parse(report).iter("testcase")
               if case.get("status") in ("notrun", "disabled") or case.find("skipped") is not None]
    unknown = [name for name in skipped if name not in known]
    for name in unknown:
        print(f"skipped, but not named in {known_file}: {name}")
    return 1 if unknown else 0


sys.exit(main(*sys.argv[1:]))
