# SPDX-License-Identifier: Apache-2.0
"""tidy.py BUILD CACHE JOBS: clang-tidy over every source of ours in the build's compile_commands.json.

A file that was clean is not looked at again while it, our headers that it includes, its flags and .clang-tidy are the
same: the cache holds an empty file per clean state.
"""

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIDY = "clang-tidy-19"


def dependencies(build):
    """Object file -> our own files that it was made from, as ninja knows them."""
    listing = subprocess.run(["ninja", "-C", build, "-t", "deps"], check=True, capture_output=True, text=True).stdout
    found, target = {}, None
    for line in listing.splitlines():
        if line.startswith("    "):
            path = (Path(build) / line.strip()).resolve()
            if path.is_relative_to(ROOT):
                found[target].append(path)
        elif line:
            target = line.split(":")[0]
            found[target] = []
    return found


def state_of(entry, files, base):
    digest = hashlib.sha256(base)
    digest.update(entry["command"].encode())
    for path in sorted(set(files)):
        if path.exists():
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def main(build, cache, jobs):
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    version = subprocess.run([TIDY, "--version"], check=True, capture_output=True).stdout
    base = (ROOT / ".clang-tidy").read_bytes() + version
    known = dependencies(build)
    work = []
    for entry in json.loads((Path(build) / "compile_commands.json").read_text()):
        source = Path(entry["file"])
        if not source.is_relative_to(ROOT) or source.is_relative_to(ROOT / "build"):
            continue  # generated
        # Never built here: no dependencies are known, so no state can be trusted.
        files = known.get(entry.get("output", ""), [])
        mark = cache / state_of(entry, [source, *files], base) if files else None
        if mark is None or not mark.exists():
            work.append((source, mark))

    def check(item):
        source, mark = item
        # Catch2's REQUIRE(a == b) is a chained comparison to the check.
        extra = ["--checks=-bugprone-chained-comparison"] if source.is_relative_to(ROOT / "tests") else []
        done = subprocess.run([TIDY, "--quiet", *extra, "-p", build, source], capture_output=True, text=True, check=False)
        if done.returncode == 0 and mark is not None:
            mark.touch()
        return source, done

    failed = 0
    with ThreadPoolExecutor(int(jobs)) as pool:
        for source, done in pool.map(check, work):
            if done.returncode != 0:
                failed += 1
                print(f"{source.relative_to(ROOT)}:\n{done.stdout}{done.stderr}", flush=True)
    print(f"clang-tidy: {len(work)} files looked at, {failed} with findings")
    return 1 if failed else 0


sys.exit(main(*sys.argv[1:]))
