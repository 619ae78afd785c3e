"""The size that a safetensors file must have, from its own header: what was cut short is found without reading any weights."""

import json
import struct
from collections.abc import Callable

_HEAD = 128 * 2**10  # bytes of the first read: the header of most shards, so that one request each suffices
_MAX_HEADER = 100_000_000  # bytes; the format's own limit


def expected_size(read: Callable[[int, int], bytes]) -> int:
    """Size in bytes by the header; 0 for a header that is broken. `read(start, length)` gives bytes of the file, fewer where it ends.

    Source: the safetensors format: 8 bytes little-endian header length, JSON header with data_offsets, data.
    """
    try:
        head = read(0, _HEAD)
        (length,) = struct.unpack("<Q", head[:8])
        if not 0 < length <= _MAX_HEADER:
            return 0
        end = 8 + length
        if len(head) == _HEAD < end:
            head += read(_HEAD, end - _HEAD)
        header = json.loads(head[8:end])
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        return int(end + max(ends, default=0))
    except (struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return 0
