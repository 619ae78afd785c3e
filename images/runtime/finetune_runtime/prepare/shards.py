"""Headers of safetensors files: what a file holds and how large it must be, without reading any weights."""

import json
import struct
from collections.abc import Callable
from typing import Any

Read = Callable[[int, int], bytes]  # read(start, length) gives bytes of a file, fewer where it ends
_HEAD = 128 * 2**10  # bytes of the first read: the header of most shards, so that one request each suffices
_MAX_HEADER = 100_000_000  # bytes; the format's own limit


def expected_size(read: Read) -> int:
    """Size in bytes by the header: what was cut short is smaller. 0 for a header that is broken."""
    try:
        header, end = _header(read)
        return int(end + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0))
    except (struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return 0


def tensors(read: Read) -> dict[str, Any]:
    """Each tensor's name and description: {"dtype": "BF16", "shape": [4096, 4096], ...}; none for a header that is broken."""
    try:
        return _header(read)[0]
    except (struct.error, ValueError, TypeError, AttributeError):
        return {}


def _header(read: Read) -> tuple[dict[str, Any], int]:
    """The header's tensors, and the offset at which the data begin.

    Source: the safetensors format: 8 bytes little-endian header length, JSON header with data_offsets, data.
    """
    head = read(0, _HEAD)
    (length,) = struct.unpack("<Q", head[:8])
    if not 0 < length <= _MAX_HEADER:
        raise ValueError(f"a header of {length} bytes")
    end = 8 + length
    if len(head) == _HEAD < end:
        head += read(_HEAD, end - _HEAD)
    header = json.loads(head[8:end])
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, end
