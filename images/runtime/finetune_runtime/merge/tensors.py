"""The safetensors format: 8 bytes with the length of a JSON header, the header, and the tensors' bytes one after another.

Of the format's own library only a whole file can be written, from tensors that are all in memory. Source: the format's description in huggingface/safetensors.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from finetune_runtime.contract.result import Exit, Reason, StepError

# Bytes of an element; what an adapter can be merged into.
FLOATS: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
_MAX_HEADER = 100 * 10**6  # bytes, the format's own limit


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file. `start` and `end`: place of its bytes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself. `size`: bytes before the first tensor."""

    size: int
    tensors: Mapping[str, Tensor]


def read_header(path: Path) -> Header:
    """Header of a local file. Raises StepError ModelInvalid when it is no safetensors file, or not a whole one."""
    with path.open("rb") as file:
        return _parse(path.name, file, path.stat().st_size)


def encode_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Beginning of a file with tensors of these names, types and shapes in this order; the tensors' bytes follow without gaps."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}  # without it transformers refuses the file
    at = 0
    for name, dtype, shape in tensors:
        end = at + prod(shape) * FLOATS[dtype]
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors aligned
    return len(text).to_bytes(8, "little") + text


def _parse(name: str, file: BinaryIO, size: int) -> Header:
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(_MAX_HEADER, size - 8):
        raise _invalid(name, "it has no header")
    try:
        fields = json.loads(file.read(length))
        found = [_tensor(key, value, 8 + length) for key, value in fields.items() if key != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _invalid(name, f"its header cannot be read ({type(error).__name__})") from error
    before = 8 + length
    for tensor in sorted(found, key=lambda tensor: (tensor.start, tensor.end)):
        if not before <= tensor.start <= tensor.end <= size:
            raise _invalid(name, f"tensor {tensor.name} lies outside of it, or upon another one")
        before = tensor.end
        if tensor.dtype in FLOATS and tensor.end - tensor.start != prod(tensor.shape) * FLOATS[tensor.dtype]:
            raise _invalid(name, f"tensor {tensor.name} has not as many bytes as its shape says")
    return Header(8 + length, {tensor.name: tensor for tensor in found})


def _tensor(name: str, value: Mapping[str, object], offset: int) -> Tensor:
    shape, places = value["shape"], value["data_offsets"]
    if not (isinstance(shape, list) and isinstance(places, list) and all(type(number) is int and number >= 0 for number in [*shape, *places])):
        raise ValueError("sizes are whole numbers")
    start, end = places
    return Tensor(name, str(value["dtype"]), tuple(shape), offset + start, offset + end)


def _invalid(name: str, why: str) -> StepError:
    return StepError(Exit.MODEL_INVALID, Reason.MODEL_INVALID, f"{name} is not a whole safetensors file: {why}. Upload it again, or correct spec.model.source.")
