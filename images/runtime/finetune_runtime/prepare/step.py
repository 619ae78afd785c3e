"""The prepare step: from sources to a committed dataset that training and serving can rely on. Needs a CPU only and loads no weights."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import CHAT_TEMPLATE_FILE, DATASET_DIR, PARITY_FILE, TRAIN_FILE, VALIDATION_FILE, Kind, Manifest
from finetune_runtime.contract.config import SCRATCH_DIR, JobConfig
from finetune_runtime.contract.result import DataSummary, Exit, Reason, StepError, StepResult
from finetune_runtime.contract.spec import DatasetSource, RowPolicy
from finetune_runtime.s3.store import Store
from finetune_runtime.sources.dataset import fetch_dataset
from finetune_runtime.sources.model import fetch_model, list_model, model_name, read_part

from . import page
from .collect import Collected, Source, collect
from .encode import Encoder
from .ending import find_ending
from .fast_path import check_fast_path
from .faults import InvalidRow
from .identify import identify, look_up
from .model_check import check_model, weight_files
from .report import Prepared, report, summarise, warn
from .sample import Sample
from .shape import find_shape
from .split import Digests, Mask, choose_validation
from .template import derive

log = logging.getLogger(__name__)

STEP = "prepare"
SHOWN_ROWS = 5


def run(config: JobConfig) -> StepResult:
    """Prepares the job's data. Raises StepError. Running it again after it succeeded changes nothing."""
    store = Store(config.storage)
    # Storage that cannot be written ends the job after hours of training if it is not found out now, within seconds.
    store.check_writable(config.prefix)
    uri = f"{config.prefix}/{DATASET_DIR}"
    if existing := artefacts.load(store, uri):
        return _done_before(existing, uri, config)
    scratch = Path(os.environ.get("FINETUNE_SCRATCH", SCRATCH_DIR)) / STEP
    shutil.rmtree(scratch, ignore_errors=True)  # a restarted container finds what its predecessor left
    output = scratch / "out"
    output.mkdir(parents=True)
    os.environ["HF_HUB_OFFLINE"] = "1"  # what a model directory lacks is named, not fetched from a hub behind the user's back
    prepared = _prepare(config, store, scratch)
    sha256 = _write_rows(prepared, output)
    summary = summarise(prepared, sha256, warn(prepared, config.gpus))
    (output / CHAT_TEMPLATE_FILE).write_text(prepared.template.text, encoding="utf-8")
    (output / PARITY_FILE).write_text(json.dumps({"samples": prepared.template.samples}, ensure_ascii=False), encoding="utf-8")
    content = report(prepared, config, summary)
    (output / "report.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    artefacts.commit(store, output, uri, _manifest(prepared, config, summary))
    page.upload(store, config, content)
    return _result(summary)


def _done_before(manifest: Manifest, uri: str, config: JobConfig) -> StepResult:
    if manifest.config_hash != config.config_hash():
        raise StepError(
            Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"{uri} was prepared for another configuration of this job. Create a new job for other inputs."
        )
    log.info("%s is complete already", uri)
    return _result(DataSummary.model_validate(manifest.details["summary"]))


def _prepare(config: JobConfig, store: Store, scratch: Path) -> Prepared:
    listing = list_model(config.model, store)
    directory = fetch_model(config.model, store, scratch / "model", metadata_only=True)
    read = cache(partial(read_part, config.model, store))  # the headers are looked at twice
    model_config = check_model(config.model, listing.files, directory, read)
    # A hub proves what it sends by its digest, and is not asked for parts of files.
    weights = [] if config.model.source.startswith("hf://") else weight_files(config.model, [file.path for file in listing.files], directory)
    shape = find_shape(model_config, weights, read)
    architecture = str((model_config.get("architectures") or [""])[0])
    fast_path = check_fast_path(config, model_config)
    identity = identify(config.model, architecture, look_up(model_name(config.model), architecture))
    encoder = Encoder(config.model.source, directory, identity, config.training.max_length)
    system = config.dataset.system
    if system and not encoder.template.template_meta.support_system:
        raise StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, f"The template {identity.template} takes no system prompt: remove spec.dataset.system.")
    sample = Sample(config.training.seed)

    def gather(name: str, sources: Sequence[DatasetSource], validation: Digests | None = None) -> Collected:
        found = _sources(sources, store, scratch / name)
        path, seed = scratch / f"{name}.jsonl", config.training.seed
        return collect(found, encoder.encode, path, system=system, sample=sample, seed=seed, validation=validation)

    # Validation first: a training row that is also in there is found when it is read.
    validation = gather("validation", config.dataset.validation.sources) if config.dataset.validation.sources else None
    train = gather("train", config.dataset.train, validation.digests if validation else None)
    _judge(config, [rows for rows in (train, validation) if rows])
    held_out = np.zeros(train.valid, dtype=bool) if validation else _hold_out(config, train)
    template = derive(encoder, sample.examples, system, reasons=train.reasoning * 2 > train.valid)
    prepared = Prepared(identity, listing.revision, template, find_ending(encoder, directory), train, validation, held_out, shape, fast_path)
    if prepared.train_rows < config.gpus:
        raise _invalid(
            f"{prepared.train_rows} training rows are fewer than the {config.gpus} GPUs that are to share them: set resources.gpus to 1 in a new job."
        )
    return prepared


def _sources(sources: Sequence[DatasetSource], store: Store, scratch: Path) -> Iterator[Source]:
    for number, source in enumerate(sources):
        yield Source(source.source, fetch_dataset(source.source, store, scratch / str(number)), source.samples)


def _judge(config: JobConfig, collected: list[Collected]) -> None:
    """Applies the policy for invalid rows."""
    policy, limit = config.dataset.invalid_rows.policy, config.dataset.invalid_rows.max
    invalid, read = (sum(getattr(rows, name) for rows in collected) for name in ("invalid", "read"))
    first = _named([row for rows in collected for row in rows.first_invalid][:SHOWN_ROWS])
    if invalid and policy is RowPolicy.REJECT:
        raise _invalid(f"{invalid} of {read} rows cannot be trained on: {first}. Correct them, or leave them out with dataset.invalidRows.policy: Drop.")
    if limit and invalid > limit:
        raise _invalid(f"{invalid} of {read} rows cannot be trained on, dataset.invalidRows.max allows {limit}: {first}.")
    if not all(rows.valid for rows in collected):
        raise StepError(Exit.DATA_INVALID, Reason.DATASET_EMPTY, f"No row of a data set can be trained on ({invalid} of {read} are invalid): {first}.")


def _named(rows: list[InvalidRow]) -> str:
    """source:row: cause; ... with a cause that repeats written once."""
    causes = [row.cause for row in rows]
    return "; ".join(str(row if row.cause not in causes[:number] else replace(row, cause="the same")) for number, row in enumerate(rows))


def _hold_out(config: JobConfig, train: Collected) -> Mask:
    try:
        return choose_validation(train.digests, float(config.dataset.validation.split_ratio), config.training.seed)
    except ValueError as error:
        raise _invalid(f'The training rows cannot be split: {error}. Add rows, or set dataset.validation.splitRatio to "0".') from error


def _write_rows(prepared: Prepared, output: Path) -> str:
    """Writes both data files; returns the SHA-256 over their bytes, training rows first."""
    train, validation = output / TRAIN_FILE, output / VALIDATION_FILE
    with prepared.train.path.open("rb") as rows, train.open("wb") as kept, validation.open("wb") as held_out:
        for line, is_held_out in zip(rows, prepared.held_out, strict=True):
            (held_out if is_held_out else kept).write(line)
    if prepared.validation:
        shutil.copyfile(prepared.validation.path, validation)
    digest = hashlib.sha256()
    for path in (train, validation):
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def _manifest(prepared: Prepared, config: JobConfig, summary: DataSummary) -> Manifest:
    return Manifest(
        kind=Kind.DATASET,
        files=[],
        config_hash=config.config_hash(),
        base_model=config.model.source,
        base_revision=prepared.revision or config.model.revision,
        dataset_sha256=summary.sha256,
        details={
            "modelType": prepared.identity.type,
            "template": prepared.identity.template,
            "reasons": prepared.template.reasons,
            "trainRows": summary.train_rows,
            "validationRows": summary.validation_rows,
            "summary": summary.dump(),
        },
    )


def _result(summary: DataSummary) -> StepResult:
    message = f"{summary.train_rows} training and {summary.validation_rows} validation rows, {summary.tokens} tokens, the longest row {summary.longest}."
    return StepResult(step=STEP, reason=Reason.COMPLETED, message=message, data=summary)


def _invalid(message: str) -> StepError:
    return StepError(Exit.DATA_INVALID, Reason.DATA_INVALID, message)
