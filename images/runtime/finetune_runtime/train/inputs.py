"""Everything a run needs before the training process starts, fetched and verified."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import ADAPTER_DIR, CHECKPOINTS_DIR, DATASET_DIR, VALIDATION_FILE, Manifest
from finetune_runtime.contract.config import AdapterRef, JobConfig
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.hardware import Hardware, find
from finetune_runtime.s3.store import ObjectNotFound, Store
from finetune_runtime.sources.model import fetch_model

from .command import Inputs
from .report import METRICS_FILE
from .resume import Candidate, candidates

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a run begins: its inputs, and the checkpoint that it goes on from, if any, with its local directory."""

    hardware: Hardware
    inputs: Inputs
    dataset: Manifest
    resume: tuple[Candidate, Path] | None
    metrics: str  # metrics.jsonl of earlier attempts, empty if there were none


def committed_adapter(config: JobConfig, store: Store) -> tuple[Manifest, AdapterRef] | None:
    """The adapter that an earlier attempt completed. Raises StepError CheckpointMismatch for one of another configuration."""
    uri = f"{config.prefix}/{ADAPTER_DIR}"
    found = artefacts.committed(store, uri)
    if found and found[0].config_hash != config.config_hash():
        raise StepError(
            Exit.INVALID_CONFIG, Reason.CHECKPOINT_MISMATCH, f"{uri} was written by a run with another configuration. Create a new FineTuneJob for this one."
        )
    return found


def gather(config: JobConfig, store: Store, scratch: Path) -> Start:
    """Fetches dataset, model and the newest usable checkpoint. Cheap checks come first. Raises StepError."""
    hardware = find(allow_cpu=config.allow_cpu, gpus=config.gpus)
    log.info("training on %s", hardware)
    if aborted := store.abort_uploads(f"{config.prefix}/"):
        log.info("dropped %d unfinished uploads of an earlier pod", aborted)
    dataset = _dataset(config, store, scratch / "dataset")
    tried = candidates(artefacts.checkpoints(store, config.prefix), config.config_hash(), dataset.dataset_sha256)
    # prepare has pinned what the source's revision meant when the rows were measured.
    model = fetch_model(config.model.model_copy(update={"revision": dataset.base_revision or config.model.revision}), store, scratch / "model")
    inputs = Inputs(
        model=model,
        dataset=scratch / "dataset",
        model_type=dataset.details["modelType"],
        template=dataset.details["template"],
        validation=(scratch / "dataset" / VALIDATION_FILE).stat().st_size > 0,
    )
    resume = _resume(store, tried, scratch / "resume")
    return Start(hardware, inputs, dataset, resume, _metrics(config, store) if resume else "")


def _dataset(config: JobConfig, store: Store, directory: Path) -> Manifest:
    uri = f"{config.prefix}/{DATASET_DIR}"
    try:
        manifest = artefacts.fetch(store, uri, directory)
    except ObjectNotFound as error:
        raise StepError(Exit.DATA_INVALID, Reason.DATASET_NOT_FOUND, f"{uri} is not complete: the prepare step has to run first.") from error
    if manifest.config_hash != config.config_hash():
        raise StepError(Exit.DATA_INVALID, Reason.DATA_INVALID, f"{uri} was prepared for another configuration. Create a new FineTuneJob.")
    return manifest


def _resume(store: Store, tried: list[Candidate], directory: Path) -> tuple[Candidate, Path] | None:
    for candidate in tried:
        path = directory / candidate.uri.rpartition("/")[2]
        try:
            artefacts.fetch(store, candidate.uri, path)
        except (artefacts.ArtefactCorruptError, ObjectNotFound) as error:
            log.warning("%s is damaged, trying the one before it: %s", candidate.uri, error.message)
            shutil.rmtree(path, ignore_errors=True)
            continue
        log.info("going on from step %d", candidate.step)
        return candidate, path
    if tried:
        log.warning("no checkpoint below %s is whole: starting over", f"{tried[0].uri.rpartition(f'/{CHECKPOINTS_DIR}/')[0]}/{CHECKPOINTS_DIR}/")
    return None


def _metrics(config: JobConfig, store: Store) -> str:
    try:
        return store.read(f"{config.prefix}/{METRICS_FILE}").decode()
    except ObjectNotFound:
        return ""
