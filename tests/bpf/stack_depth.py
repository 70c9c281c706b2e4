# SPDX-License-Identifier: Apache-2.0
"""stack_depth.py LLVM_OBJDUMP OBJECT...: fails if a program's deepest chain of calls takes more than 512 bytes of stack.

Kernels since 6.13 give subprograms a stack of their own where they can, so that one of them says nothing about older
ones: those add up the chain, each function rounded up to 32 bytes (check_max_stack_depth(), kernel/bpf/verifier.c).
"""

import functools
import re
import subprocess
import sys

LIMIT = 512
FUNCTION = re.compile(r"^([0-9a-f]+) <(?!LBB)(\S+)>:$")
INSTRUCTION = re.compile(r"^\s*(\d+):\s+((?:[0-9a-f]{2}\s){8})\s*(.*)$")
RELOCATION = re.compile(r"^\s+[0-9a-f]+:\s+R_BPF_64_32\s+(\S+)$")


class Function:
    def __init__(self, name, section, start):
        self.name, self.section, self.start = name, section, start
        self.bytes, self.calls = 0, []


def read(objdump, path):
    """The functions, and for each call (section, first instruction) of what it calls."""
    text = subprocess.run([objdump, "-dr", path], check=True, capture_output=True, text=True).stdout
    functions, section, copy = [], "", None
    for line in text.splitlines():
        if line.startswith("Disassembly of section "):
            section = line.split()[-1].rstrip(":")
        elif found := FUNCTION.match(line):
            functions.append(Function(found.group(2), section, int(found.group(1), 16) // 8))
        elif found := RELOCATION.match(line):
            functions[-1].calls[-1][0] = found.group(1)
        elif found := INSTRUCTION.match(line):
            number, raw, what = int(found.group(1)), bytes.fromhex(found.group(2)), found.group(3)
            used = re.search(r"r10 - 0x([0-9a-f]+)\)", what) or (
                copy and re.fullmatch(rf"{copy} \+= -0x([0-9a-f]+)", what))
            if used:
                functions[-1].bytes = max(functions[-1].bytes, int(used.group(1), 16))
            made = re.fullmatch(r"(r\d) = r10", what)
            copy = made.group(1) if made else copy if what and not used else None
            if raw[0] == 0x85 and raw[1] >> 4 == 1:  # a call of a function of ours, relative to the next instruction
                functions[-1].calls.append([None, number, int.from_bytes(raw[4:], "little", signed=True)])
    return functions


def main(objdump, path):
    functions = read(objdump, path)
    by_name = {f.name: f for f in functions}
    by_place = {(f.section, f.start): f for f in functions}

    def target(function, symbol, number, offset):
        if symbol in by_name:
            return by_name[symbol]
        return by_place[(symbol, offset + 1) if symbol else (function.section, number + 1 + offset)]

    @functools.cache
    def deepest(function):
        below = max((deepest(target(function, *call)) for call in function.calls), default=(0, []), key=lambda d: d[0])
        own = (max(function.bytes, 1) + 31) // 32 * 32
        return own + below[0], [f"{function.name} {own}", *below[1]]

    failed = 0
    for program in (f for f in functions if f.section != ".text"):
        total, chain = deepest(program)
        print(f"{total:4} {' > '.join(chain)}")
        failed |= total > LIMIT
    return failed


sys.exit(max(main(sys.argv[1], path) for path in sys.argv[2:]))
