# SPDX-License-Identifier: Apache-2.0
"""House rules that no compiler checks: licences, who may include whom, no test outside the build."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
APACHE = "SPDX-License-Identifier: Apache-2.0"
BPF = "SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0"
ROOMS = {"bpf", "virt", "tenancy", "exporters"}
# Which room alone may touch a library's headers.
LIBRARIES = {
    r"libvirt/": "virt",
    r"(grpc|grpcpp|google/protobuf)/": "exporters",
    r".*\.(grpc\.)?pb\.h$": "exporters",
    r"bpf/(bpf|libbpf|btf)\.h$": "bpf",
    r"sqlite3\.h$": "tenancy",
}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.M)
SPDX_SUFFIXES = {".cpp", ".h", ".c", ".py", ".sh", ".cmake", ".proto"}
SPDX_NAMES = {"CMakeLists.txt", "Vagrantfile", "dev", "guest", "init", "initrd-init", "run"}


def tracked_files():
    listing = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                             capture_output=True, text=True).stdout.split("\n")
    return [Path(name) for name in listing if name and (ROOT / name).is_file()]


def licence_problems(path, text):
    if path.suffix not in SPDX_SUFFIXES and path.name not in SPDX_NAMES:
        return
    head = "\n".join(text.split("\n")[:3])
    kernel_side = path.name.endswith((".bpf.c", ".bpf.h"))
    # A header that both sides compile may carry either.
    wanted = [BPF] if kernel_side else [APACHE, BPF] if path.parts[0] == "bpf" or "bpf" in path.parts else [APACHE]
    if not any(tag in head for tag in wanted):
        yield f"{path}: no \"{wanted[0]}\" in its first three lines"


def include_problems(path, text):
    room = path.parts[0]
    if path.suffix not in (".cpp", ".h", ".c") or room not in ROOMS | {"hostd"}:
        return
    for header in INCLUDE.findall(text):
        target = header.split("/")[0]
        ours = (ROOT / header).exists()
        if ours and room in ROOMS and target != room and not header.startswith("hostd/core/"):
            yield f"{path}: {room} includes {header}: only hostd/core and its own folder are allowed"
        if ours and path.parts[:2] == ("hostd", "core") and not header.startswith("hostd/core/"):
            yield f"{path}: core includes {header}: core includes nothing of ours but itself"
        if ours:
            continue
        for pattern, owner in LIBRARIES.items():
            if re.match(pattern, header) and room != owner:
                yield f"{path}: {header} belongs into {owner} alone"


def test_problems(path):
    if path.name.endswith("_test.cpp") and not (ROOT / path.parent / "CMakeLists.txt").exists():
        yield f"{path}: no CMakeLists.txt in its folder: it would never run"


def main():
    problems = []
    for path in tracked_files():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture, a binary seed
        problems += [*licence_problems(path, text), *include_problems(path, text), *test_problems(path)]
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


sys.exit(main())
