"""What is asked of the probe in a training process, and what it answers: plain values, for both sides."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REQUEST = "BENCH_REQUEST"  # environment variable: path of the request


@dataclass(frozen=True)
class Request:
    """`readings`: a file that gets a JSON line for each reading. Empty or 0: not asked for."""

    readings: str
    limit_bytes: int = 0  # the allocator's, set before the model is loaded
    seed: int = 0  # all adapters, A and B, get values of this seed, the same whatever the GPU and the type
    gradients: str = ""  # file for the adapters' gradients of each optimizer step, in float32
    adapters: str = ""  # file for the adapters at the end
    profile_step: int = 0  # its kernels are counted
    exact_base: bool = False  # 8-bit weights are multiplied in float32, activations unrounded

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: str) -> "Request":
        return cls(**json.loads(Path(path).read_text()))


Reading = Mapping[str, Any]


def readings(path: Path) -> list[Reading]:
    """All that were written; of a process that died, those before."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
