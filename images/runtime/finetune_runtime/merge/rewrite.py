"""Files of merged weights. A merged tensor has the type and shape of the base's, so a merged file is the base's with other bytes in some places."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from .adapter import Delta, invalid
from .arithmetic import Addend, check
from .tensors import Header, Tensor, encode_header

_CHUNK = 16 * 2**20  # bytes


def rewrite(source: Path, header: Header, deltas: Mapping[str, Delta], adapter: Path, target: Path) -> int:
    """Writes the merged file of `source`; returns how many tensors were merged. `adapter`: file of the adapter's weights. Raises StepError."""
    mine = sorted((tensor for tensor in header.tensors.values() if tensor.name in deltas), key=lambda tensor: tensor.start)
    for tensor in mine:
        if why := check(tensor, deltas[tensor.name]):
            raise invalid(why)
    with source.open("rb") as base, target.open("wb") as file:
        for tensor in mine:
            _copy(base, file, tensor.start)
            file.writelines(Addend(deltas[tensor.name], adapter).add(tensor, source))
            base.seek(tensor.end)
        _copy(base, file, source.stat().st_size)
    return len(mine)


def single(name: str, source: Path, tensor: Tensor, delta: Delta | None, adapter: Path, target: Path) -> int:
    """Writes a file with one tensor, `tensor` of `source` under another name and with the delta added; returns the tensor's bytes. Raises StepError."""
    if why := check(tensor, delta):
        raise invalid(why)
    with target.open("wb") as file:
        file.write(encode_header([(name, tensor.dtype, tensor.shape)]))
        file.writelines(Addend(delta, adapter).add(tensor, source) if delta else _read(source, tensor))
    return tensor.end - tensor.start


def _copy(base: BinaryIO, file: BinaryIO, until: int) -> None:
    while data := base.read(min(_CHUNK, until - base.tell())):
        file.write(data)


def _read(source: Path, tensor: Tensor) -> Iterator[bytes]:
    with source.open("rb") as base:
        base.seek(tensor.start)
        while data := base.read(min(_CHUNK, tensor.end - base.tell())):
            yield data
