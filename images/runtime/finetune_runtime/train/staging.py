"""Checkpoints set aside for upload. Standard library only: it runs in the training process."""

import os
import shutil
from pathlib import Path


def stage(checkpoint: Path, staging: Path) -> Path:
    """Hard-links a checkpoint into `staging` (same file system) and returns the new directory.

    It costs no copy, and the trainer's own rotation may remove the original while the upload is under way. The directory appears
    at once and whole.
    """
    target = staging / checkpoint.name
    partial = staging / f".{checkpoint.name}"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoint, partial, copy_function=os.link)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target
