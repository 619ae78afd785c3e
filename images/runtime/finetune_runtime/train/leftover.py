"""A checkpoint that storage did not take before its pod had to end, kept for the next pod where the scratch volume outlives pods.

Its manifest, with the digest of every file, is written last and proves to the next pod that all of it is there.
"""

import logging
import os
import shutil
from pathlib import Path

from pydantic import ValidationError

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import CHECKPOINTS_DIR, MANIFEST, Manifest
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.s3.store import Store

from . import report
from .checkpoints import Staged

log = logging.getLogger(__name__)


def keep(staged: Staged) -> None:
    """Makes a staged checkpoint one that `commit` can trust."""
    manifest = staged.manifest.model_copy(update={"files": artefacts.describe(staged.path)})
    for entry in manifest.files:
        _sync(staged.path / entry.path)
    partial = staged.path / f".{MANIFEST}"
    partial.write_bytes(manifest.encode())
    _sync(partial)
    partial.rename(staged.path / MANIFEST)
    log.info("checkpoint %d stays in the scratch volume for the next pod", manifest.step)


def commit(config: JobConfig, store: Store, staging: Path, metrics: Path) -> None:
    """Commits what an earlier pod of this job left in `staging`, and its metrics. Whatever cannot be trusted is passed over.

    Raises StepError when storage is down.
    """
    for path in sorted(staging.glob(f"*/{MANIFEST}")):
        manifest = _trusted(path, config)
        if manifest is None:
            continue
        uri = f"{config.prefix}/{CHECKPOINTS_DIR}/checkpoint-{manifest.step}"
        path.unlink()  # it is no part of the checkpoint; without it a second failure makes it anew
        staged = Staged(path.parent, manifest)
        try:
            report.upload(store, config.prefix, metrics, staging.parent / "output/runs")
            artefacts.commit(store, staged.path, uri, manifest, replace=True)
        except BaseException:
            keep(staged)
            raise
        log.info("checkpoint %d, left by an earlier pod, is committed", manifest.step)


def _trusted(path: Path, config: JobConfig) -> Manifest | None:
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        log.warning("ignoring %s: %s", path, error)
        return None
    files = [entry for entry in artefacts.describe(path.parent) if not entry.path.startswith(".")]
    if manifest.config_hash != config.config_hash() or files != manifest.files:
        log.warning("ignoring %s: it is not whole, or of another run", path.parent)
        shutil.rmtree(path.parent, ignore_errors=True)
        return None
    return manifest


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
