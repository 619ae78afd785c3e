"""What torch can compute on, found in a short-lived child: importing torch costs the asking process half a GiB and a CUDA context."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

from .contract.result import Exit, Reason, StepError

_PROBE_SECONDS = 300  # the first import of torch from a cold disk takes minutes on slow nodes
_PROBE = """
import importlib.util, json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__,
    "cuda": torch.version.cuda or "none",
    "gpus": [
        [torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory, torch.cuda.mem_get_info(i)[0]]
        for i in range(torch.cuda.device_count())
    ] if cuda else [],
    "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False) if cuda
    else torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    "liger": importlib.util.find_spec("liger_kernel") is not None,
}))
"""


@dataclass(frozen=True)
class Gpu:
    """One visible GPU; memory in bytes. `free`: what is free to a process that has a CUDA context there."""

    name: str
    memory: int
    free: int = 0


@dataclass(frozen=True)
class Hardware:
    """What the pod can compute on. No GPUs: the CPU.

    `bfloat16`: it has instructions for it. Without them torch multiplies matrices on a CPU 27 times slower than in float32 (AMD EPYC with AVX2, torch 2.11).
    """

    gpus: tuple[Gpu, ...] = ()
    bfloat16: bool = True
    liger: bool = False
    only: str = ""  # CUDA_VISIBLE_DEVICES for the training, where more are visible than the job asks for; empty: as it is

    @property
    def cpu_only(self) -> bool:
        return not self.gpus

    def __str__(self) -> str:
        counted = Counter(f"{gpu.name} with {gpu.memory / 2**30:.1f} GiB" for gpu in self.gpus)
        return ", ".join(f"{count} x {gpu}" if count > 1 else gpu for gpu, count in counted.items()) or "the CPU"


def find(*, allow_cpu: bool, gpus: int | None = None) -> Hardware:
    """The first `gpus` visible GPUs, or all of them. Raises StepError GPUNotVisible when there are fewer; with `allow_cpu` there may be none."""
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    try:
        found = json.loads(probe.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise StepError(Exit.CRASH, Reason.INTERNAL_ERROR, f"torch cannot be imported: {_last_line(probe.stderr)}") from None
    visible = tuple(Gpu(name, memory, free) for name, memory, free in found["gpus"])
    wanted = gpus or len(visible)
    hardware = Hardware(visible[:wanted], bool(found["bfloat16"]), bool(found["liger"]), _only(wanted) if len(visible) > wanted else "")
    if 0 < len(visible) < wanted:
        raise StepError(
            Exit.CRASH,
            Reason.GPU_NOT_VISIBLE,
            f"torch sees {len(visible)} of the {wanted} GPUs that the job asks for ({hardware}). Check that spec.resources.gpuResource stands for whole GPUs.",
        )
    if hardware.cpu_only and not allow_cpu:
        raise StepError(
            Exit.CRASH,
            Reason.GPU_NOT_VISIBLE,
            f"torch {found['torch']} sees no GPU ({_warning(probe.stderr) or 'no NVIDIA device in the pod'}). Check that the pod asks for the GPU resource "
            f"of the node's device plugin and runs with the NVIDIA container runtime, and that nvidia-smi on the node shows a driver for CUDA {found['cuda']} "
            "or newer.",
        )
    return hardware


def _only(gpus: int) -> str:
    """The first of those that are visible; ms-swift would split the model over the others."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return ",".join(names[:gpus] if len(names) > gpus else map(str, range(gpus)))


def _warning(stderr: str) -> str:
    """Torch's own explanation, for example that the driver is too old."""
    lines = [line.partition("UserWarning:")[2] for line in stderr.splitlines() if "UserWarning:" in line and "CUDA" in line]
    return lines[-1].partition("(Triggered internally")[0].strip() if lines else ""


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
