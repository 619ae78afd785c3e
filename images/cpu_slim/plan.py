"""Decides which stub libraries are needed and what each must define."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cpu_slim import elf

TORCH_CUDA = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_nvshmem.so", "libtorch_cuda_linalg.so", "libcaffe2_nvrtc.so")
NVIDIA_SONAME = re.compile(
    r"lib(cuda|cudart|cublas|cublasLt|cudnn|cufft|cufile|cupti|curand|cusolver|cusparse|cusparseLt|nccl|nvrtc|nvshmem_host|nvJitLink)\.so"
)
NVIDIA_SYMBOL = re.compile(
    r"(cu[A-Z]|cuda|cublas|cudnn|cufft|cufile|cuFile|cupti|curand|cusolver|cusparse|nccl|nvrtc|nvshmem|__cuda|_ZN6cufile|_ZNK?\d*cufile)"
)
# What libstdc++, libgcc and libc provide: namespace std and its abbreviations, operator new and delete.
RUNTIME_SYMBOL = re.compile(r"_Z(N?K?|T.|GV|NK)S[a-z]|_Z(N|NK|T.|TI.)?St|_Zn|_Zd")
RUNTIME_VERSION = re.compile(r"GLIBC|CXXABI|GCC")


@dataclass
class Stub:
    """A library to generate: objects maps a data symbol to its size in bytes."""

    versions: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    objects: dict[str, int] = field(default_factory=dict)


def plan_stubs(kept: Iterable[Path], dropped: Iterable[Path]) -> dict[str, Stub]:
    """Soname -> stub, so that all that the kept files ask of the dropped and of NVIDIA's libraries is defined.

    NVIDIA's libraries need not be installed: their symbols are known from the files that ask for them.
    """
    stubs: dict[str, Stub] = {}
    defined: set[str] = set()
    asked: dict[str, str] = {}  # symbol -> version
    for file in kept:
        versions = elf.required_versions(file)
        for soname in elf.needed(file):
            if NVIDIA_SONAME.match(soname) or soname in TORCH_CUDA:
                stubs.setdefault(soname, Stub()).versions |= versions.get(soname, set())
        for symbol in elf.symbols(file):
            if symbol.is_defined:
                defined.add(symbol.name)
            else:
                asked[symbol.name] = symbol.version
    missing = {
        name: version for name, version in asked.items() if name not in defined and not RUNTIME_SYMBOL.match(name) and not RUNTIME_VERSION.match(version)
    }
    _place_torch_symbols(missing, dropped, stubs)
    _place_nvidia_symbols(missing, stubs)
    return stubs


def _place_torch_symbols(missing: dict[str, str], dropped: Iterable[Path], stubs: dict[str, Stub]) -> None:
    """Torch's own libraries are at hand, so each symbol gets its true kind and size; removes from missing what it places."""
    for file in dropped:
        stub = stubs[file.name if file.name in stubs else "libtorch_cuda.so"]
        for symbol in elf.symbols(file):
            if not symbol.is_defined or symbol.name not in missing:
                continue
            del missing[symbol.name]
            if symbol.is_function:
                stub.functions.add(symbol.name)
            else:
                stub.objects[symbol.name] = symbol.size


def _place_nvidia_symbols(missing: dict[str, str], stubs: dict[str, Stub]) -> None:
    """A versioned symbol belongs to the library of that version; the others go to libcudart, which everything loads."""
    cudart = next(stub for soname, stub in stubs.items() if soname.startswith("libcudart."))
    for name, version in missing.items():
        owner = next((stub for stub in stubs.values() if version in stub.versions), None)
        if owner is not None:
            owner.functions.add(name)
        elif NVIDIA_SYMBOL.match(name):
            cudart.functions.add(name)
