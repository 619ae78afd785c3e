"""What the dynamic sections of an ELF file say, read with binutils' readelf."""

import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Symbol:
    """One entry of the dynamic symbol table; version is "" for an unversioned symbol, size is in bytes."""

    name: str
    version: str
    is_function: bool
    size: int
    is_defined: bool


def _readelf(option: str, file: Path) -> str:
    return subprocess.run(["readelf", "--wide", option, file], capture_output=True, text=True, check=True).stdout


def needed(file: Path) -> list[str]:
    """The sonames of the libraries that the file links (DT_NEEDED)."""
    return re.findall(r"\(NEEDED\).*\[(.*?)\]", _readelf("--dynamic", file))


def symbols(file: Path) -> Iterator[Symbol]:
    """The file's dynamic symbols, both those it defines and those it asks for.

    A line reads: "12: 0000000000000000 0 FUNC GLOBAL DEFAULT UND cudaMalloc@libcudart.so.13 (7)".
    """
    for line in _readelf("--dyn-syms", file).splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdigit():
            continue
        name, _, version = fields[7].partition("@")
        yield Symbol(
            name=name,
            version=version.lstrip("@"),
            is_function=fields[3] in ("FUNC", "GNU_IFUNC"),
            size=int(fields[2], 0),
            is_defined=fields[6] != "UND",
        )


def required_versions(file: Path) -> dict[str, set[str]]:
    """Soname -> names of the symbol versions that the file requires of that library (DT_VERNEED)."""
    versions: dict[str, set[str]] = defaultdict(set)
    soname = ""
    for line in _readelf("--version-info", file).splitlines():
        if match := re.search(r"File: (\S+)", line):
            soname = match.group(1)
        elif soname and (match := re.search(r"Name: (\S+)\s+Flags", line)):
            versions[soname].add(match.group(1))
    return versions
