"""Volumes and ConfigMaps that the operator mounted into this pod."""

import os
from pathlib import Path, PurePosixPath

from finetune_runtime.contract.config import SOURCES_DIR, mounted_source
from finetune_runtime.contract.result import Exit, Reason, StepError


def mounted_path(uri: str) -> Path | None:
    """Path in this pod of a pvc:// or configmap:// source, which need not exist; None for sources that are read over the network.

    Raises StepError for a path that leads out of its volume.
    """
    mounted = mounted_source(uri)
    if mounted is None:
        return None
    kind, name, path = mounted
    root = Path(os.environ.get("FINETUNE_SOURCES", SOURCES_DIR))
    volume = root / kind / name
    target = root / PurePosixPath(path).relative_to(SOURCES_DIR)
    # Resolved, not compared as text: a symbolic link inside the volume leads out of it as well as "..".
    if not target.resolve().is_relative_to(volume.resolve()):
        raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"{uri} leads out of its volume: name a path inside it, without '..'.")
    return target
