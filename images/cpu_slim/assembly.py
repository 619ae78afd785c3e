"""Turns a planned stub into a shared library: x86-64 assembly, for GNU as and ld.

Assembly rather than C, because the symbols are mangled C++ names, and because thousands of functions can share one body: several labels on the
same instruction. There are three bodies, by what a caller does with the answer (no arguments are ever looked at):

* a C function of CUDA returns a status: 100, cudaErrorNoDevice, the truth on this machine;
* a C++ function whose name asks "how many" or "is there" returns 0 or false;
* any other C++ function may return a reference or a pointer that is read: it gets the address of 64 KiB of zeros.
"""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from cpu_slim.plan import Stub

NO_DEVICE, ZERO, ADDRESS_OF_ZEROS = "mov $100, %eax", "xor %eax, %eax", "lea .Lzeros(%rip), %rax"
COUNTS_OR_ASKS = re.compile(r"device_count|current_device|is_|has[A-Z_]|[Aa]vailable|[Ee]nabled")
TYPE_INFO = "_ZTI"
SYSTEM_LIBRARIES = "/usr/lib/x86_64-linux-gnu"
SMALLEST_OBJECT = 8


def build(soname: str, stub: Stub, directory: Path) -> Path:
    """Assembles and links directory/soname; raises CalledProcessError when as or ld refuses."""
    library, source, code, versions = (directory / f"{soname}{suffix}" for suffix in ("", ".s", ".o", ".map"))
    source.write_text(render(stub))
    subprocess.run(["as", "-o", code, source], check=True)
    command: list[str | Path] = ["ld", "-shared", "-soname", soname, "-o", library, code]
    if stub.versions:
        versions.write_text(version_script(stub.versions))
        command.append(f"--version-script={versions}")
    if any(name.startswith(TYPE_INFO) for name in stub.objects):
        command += [f"-L{SYSTEM_LIBRARIES}", "-l:libstdc++.so.6"]  # has the virtual table that type_info objects point to
    subprocess.run(command, check=True)
    return library


def version_script(versions: set[str]) -> str:
    """All symbols go to the first version: the loader checks that the version names exist, and finds a symbol without one too."""
    first, *others = sorted(versions)
    return f"{first} {{ global: *; }};\n" + "".join(f"{version} {{ }};\n" for version in others)


def render(stub: Stub) -> str:
    """The stub's assembly source."""
    lines = [".text", ".p2align 4"]
    for body in (NO_DEVICE, ZERO, ADDRESS_OF_ZEROS):
        for name in sorted(name for name in stub.functions if _body(name) == body):
            lines += [f".globl {name}", f".type {name},@function", f"{name}:"]
        lines += [body, "ret", ".p2align 4"]
    lines += [".bss", ".p2align 6", ".Lzeros: .zero 65536", ".data"]
    for number, (name, size) in enumerate(sorted(stub.objects.items())):
        lines += _object(name, max(size, SMALLEST_OBJECT), number)
    lines.append('.section .note.GNU-stack,"",@progbits')  # without it the loader would ask for an executable stack
    return "\n".join(lines) + "\n"


def _body(name: str) -> str:
    if not name.startswith("_Z"):
        return NO_DEVICE
    return ZERO if COUNTS_OR_ASKS.search(name) else ADDRESS_OF_ZEROS


def _object(name: str, size: int, number: int) -> Iterable[str]:
    yield from (f".globl {name}", f".type {name},@object", f".size {name},{size}", ".p2align 4", f"{name}:")
    if not name.startswith(TYPE_INFO):
        yield f".zero {size}"
        return
    # std::type_info is read while exceptions and casts are resolved, so it must be a valid one: of a class without bases, with the true name.
    yield from (".quad _ZTVN10__cxxabiv117__class_type_infoE+16", f".quad .Lname{number}")
    if size > 16:
        yield f".zero {size - 16}"
    yield from (".section .rodata", f'.Lname{number}: .asciz "{name.removeprefix(TYPE_INFO)}"', ".data")
