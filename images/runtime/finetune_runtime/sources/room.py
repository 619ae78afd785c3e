"""How much a source may bring: scratch volumes are finite, and a pod that overfills its own is evicted and would begin anew for ever."""

import shutil
from pathlib import Path

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import MAX_DOWNLOAD_GIB

MAX_BYTES = MAX_DOWNLOAD_GIB * 2**30


def room(directory: Path) -> int:
    """Bytes that one source may bring into `directory`, which exists."""
    return min(MAX_BYTES, shutil.disk_usage(directory).free)


def check_size(uri: str, size: int, limit: int) -> None:
    """Raises StepError DataInvalid when `size` bytes are more than `limit`."""
    if size > limit:
        raise StepError(
            Exit.DATA_INVALID,
            Reason.DATA_INVALID,
            f"{uri} has more than {limit / 2**30:.1f} GiB, which is what the scratch volume of the prepare step takes of one source. Compress it (gzip, "
            "parquet), name a part of it, or put it on a volume: pvc:// sources are read in place.",
        )
