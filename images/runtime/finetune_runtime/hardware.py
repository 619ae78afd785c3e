"""What torch can compute on, found in a short-lived child: importing torch costs the asking process half a GiB and a CUDA context."""

import json
import subprocess
import sys
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
    "bfloat16": cuda and torch.cuda.is_bf16_supported(including_emulation=False),
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
    """What the pod can compute on. No GPUs: the CPU."""

    gpus: tuple[Gpu, ...] = ()
    bfloat16: bool = True
    liger: bool = False

    @property
    def cpu_only(self) -> bool:
        return not self.gpus

    def __str__(self) -> str:
        return ", ".join(f"{gpu.name} with {gpu.memory / 2**30:.1f} GiB" for gpu in self.gpus) or "the CPU"


def find(*, allow_cpu: bool) -> Hardware:
    """The visible GPUs. Raises StepError GPUNotVisible when there are none, unless `allow_cpu`."""
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    try:
        found = json.loads(probe.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise StepError(Exit.CRASH, Reason.INTERNAL_ERROR, f"torch cannot be imported: {_last_line(probe.stderr)}") from None
    hardware = Hardware(tuple(Gpu(name, memory, free) for name, memory, free in found["gpus"]), bool(found["bfloat16"]), bool(found["liger"]))
    if hardware.cpu_only and not allow_cpu:
        raise StepError(
            Exit.CRASH,
            Reason.GPU_NOT_VISIBLE,
            f"torch {found['torch']} sees no GPU ({_warning(probe.stderr) or 'no NVIDIA device in the pod'}). Check that the pod asks for the GPU resource "
            f"of the node's device plugin and runs with the NVIDIA container runtime, and that nvidia-smi on the node shows a driver for CUDA {found['cuda']} "
            "or newer.",
        )
    return hardware


def _warning(stderr: str) -> str:
    """Torch's own explanation, for example that the driver is too old."""
    lines = [line.partition("UserWarning:")[2] for line in stderr.splitlines() if "UserWarning:" in line and "CUDA" in line]
    return lines[-1].partition("(Triggered internally")[0].strip() if lines else ""


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
