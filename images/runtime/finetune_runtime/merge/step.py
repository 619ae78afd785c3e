"""The step merge: an adapter becomes part of its base, and both together an artefact that every engine serves without knowing of adapters.

One file of the base is here at a time. What one pod has uploaded the next one need not make; a merged model that is complete is never made again.
SIGTERM keeps its default action: all that is lost is the file that was being made.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import MANIFEST, FileEntry, Kind, Manifest
from finetune_runtime.contract.config import SCRATCH_DIR, AdapterRef, MergeConfig
from finetune_runtime.contract.result import Exit, Reason, StepError, StepResult
from finetune_runtime.contract.spec import ModelSpec
from finetune_runtime.s3.store import Store
from finetune_runtime.sources import content
from finetune_runtime.sources.model import Listing, RemoteFile, fetch_files, list_model, needed, obtain_model, with_digests

from . import adapter, plan, rewrite
from .parts import Part, Parts
from .tensors import Header, read_header

log = logging.getLogger(__name__)

STEP = "merge"
FORMAT = 1  # changes when merging would make other bytes of the same adapter and base


def run(config: MergeConfig) -> StepResult:
    """Merges, unless that was done before. Cheap checks come before large downloads. Raises StepError."""
    torch.set_num_threads(config.cpu_threads)
    scratch = Path(os.environ.get("FINETUNE_SCRATCH", SCRATCH_DIR)) / STEP
    shutil.rmtree(scratch, ignore_errors=True)  # a restarted container finds what its predecessor left
    store = Store(config.storage)
    trained = _trained(config, store)
    base = _Base.look(config, trained, store, scratch)
    artefacts.fetch(store, config.adapter.uri, scratch / "adapter", config.adapter.manifest_sha256)
    weights = scratch / "adapter" / adapter.WEIGHTS_FILE
    found = adapter.deltas((scratch / "adapter" / adapter.CONFIG_FILE).read_bytes(), read_header(weights).tensors)
    plan.check_base(base.config)
    uri = f"{config.uri.rstrip('/')}/{base.fingerprint(config.adapter)}"
    if known := artefacts.committed(store, uri):
        return _result(known[1], f"{uri} holds this adapter merged into this base already.")
    store.check_writable(uri)  # before large downloads
    store.abort_uploads(f"{uri}/")
    ref, merged = _merge(base, store, uri, found, weights, config.adapter, trained)
    return _result(ref, f"{len(found)} tensors of {trained.base_model} are merged, {merged / 2**30:.2f} GiB in {uri}.")


@dataclass(frozen=True)
class _Base:
    """The base model. `metadata`: local directory with all but the weights; `files`: of weights, with their digests."""

    spec: ModelSpec
    listing: Listing
    store: Store
    metadata: Path
    files: tuple[RemoteFile, ...]
    config: Mapping[str, Any]
    index: Mapping[str, Any] | None
    scratch: Path

    @classmethod
    def look(cls, config: MergeConfig, trained: Manifest, store: Store, scratch: Path) -> "_Base":
        # The revision that the adapter was trained on, not what the branch has become since.
        spec = config.model.model_copy(update={"revision": trained.base_revision or config.model.revision})
        listing = list_model(spec, store)
        metadata = obtain_model(spec, store, scratch / "metadata", metadata_only=True).directory
        index = _json(metadata / plan.INDEX_FILE) if (metadata / plan.INDEX_FILE).is_file() else None
        names = plan.shards((file.path for file in listing.files), index)
        files = with_digests(spec, store, listing.files, [file for file in listing.files if file.path in names])
        ordered = sorted(files, key=lambda file: file.path)
        return cls(spec, listing, store, metadata, tuple(ordered), _json(metadata / plan.CONFIG_FILE), index, scratch / "base")

    def kept(self) -> list[str]:
        """Metadata that the merged model has as it is."""
        files = needed(self.listing.files, metadata_only=True, trust_remote_code=self.spec.trust_remote_code)
        ours = {plan.CONFIG_FILE, MANIFEST}
        return [file.path for file in files if file.path not in ours and not file.path.endswith(".index.json")]

    def fingerprint(self, ref: AdapterRef) -> str:
        """Name of what comes of this base and an adapter."""
        told = [(file.path, file.size, file.digest or file.etag or self._digest(file)) for file in self.files]
        others = [(path, content.digest(self.metadata / path, content.SHA256)) for path in sorted([plan.CONFIG_FILE, *self.kept()])]
        return hashlib.sha256(json.dumps([FORMAT, ref.manifest_sha256, told, others]).encode()).hexdigest()[:32]

    def _digest(self, file: RemoteFile) -> str:
        """Of a mounted file, of which nobody tells anything."""
        return content.digest(self.local(file), content.SHA256)

    def local(self, file: RemoteFile) -> Path:
        """A file of weights, fetched and verified."""
        return fetch_files(self.spec, self.store, self.listing, [file], self.scratch).directory / file.path

    def drop(self, file: RemoteFile) -> None:
        """The file is needed no more; a mounted one stays where it is."""
        (self.scratch / file.path).unlink(missing_ok=True)


def _merge(
    base: _Base, store: Store, uri: str, found: Mapping[str, adapter.Delta], weights: Path, ref: AdapterRef, trained: Manifest
) -> tuple[AdapterRef, int]:
    """The committed merged model, and its size in bytes."""
    headers: dict[str, Header] = {}
    if base.index is None:  # one file, as a rule: only its header tells what is in it
        headers = {file.path: read_header(base.local(file)) for file in base.files}
    tensors: Mapping[str, str] = base.index["weight_map"] if base.index else {name: path for path, header in headers.items() for name in header.tensors}
    made = plan.make(found, tensors, tuple(file.path for file in base.files), base.config)
    parts, output = Parts(store, uri), base.scratch.with_name("merged")
    output.mkdir()
    done: list[Part] = []
    for number, file in enumerate(base.files, 1):
        part = parts.find(file.path)
        if part is None:
            source = base.local(file)
            part = _shard(file.path, source, headers.get(file.path) or read_header(source), made, weights, store, uri, output)
            parts.keep(file.path, part)
        base.drop(file)
        log.info("file %d of %d: %d tensors merged", number, len(base.files), part.merged)
        done.append(part)
    merged = sum(part.merged for part in done)
    wanted = len(made.deltas) + bool(made.untied and made.untied.delta)
    if merged != wanted:  # an index that names tensors which their file does not have
        raise adapter.invalid(f"{wanted - merged} of the {wanted} tensors that the adapter changes are not in the base model's files")
    files = [entry for part in done for entry in part.files]
    files += _metadata(base, made, tensors, sum(part.size for part in done), store, uri, output)
    details = {"adapter": ref.dump(), "format": FORMAT, "tensors": merged, "parted": made.parted}
    manifest = trained.model_copy(update={"kind": Kind.MERGED, "files": sorted(files, key=lambda entry: entry.path), "details": details})
    sealed = artefacts.seal(store, uri, manifest)
    parts.forget()
    return sealed, sum(entry.size for entry in files)


def _shard(path: str, source: Path, header: Header, made: plan.Plan, weights: Path, store: Store, uri: str, output: Path) -> Part:
    """One file of the base, merged and uploaded; with it the output layer, where that is made of a tensor of this file."""
    target = output / made.name(path)
    merged = rewrite.rewrite(source, header, made.deltas, weights, target)
    files = [_upload(store, target, uri)]
    size = sum(tensor.end - tensor.start for tensor in header.tensors.values())
    if (untied := made.untied) and untied.source in header.tensors:
        extra = output / untied.name
        size += rewrite.single(plan.OUTPUT, source, header.tensors[untied.source], untied.delta, weights, extra)
        files.append(_upload(store, extra, uri))
        merged += untied.delta is not None
    return Part(files=files, size=size, merged=merged)


def _metadata(base: _Base, made: plan.Plan, tensors: Mapping[str, str], size: int, store: Store, uri: str, output: Path) -> list[FileEntry]:
    """Configuration, index, tokenizer and the like."""
    for path in base.kept():
        shutil.copyfile(base.metadata / path, output / path)
    (output / plan.CONFIG_FILE).write_bytes(plan.merged_config((base.metadata / plan.CONFIG_FILE).read_bytes(), made))
    there = {name: made.name(path) for name, path in tensors.items()} | ({plan.OUTPUT: made.untied.name} if made.untied else {})
    if index := plan.merged_index(base.index, made, there, size):
        (output / plan.INDEX_FILE).write_bytes(index)
    return [_upload(store, path, uri) for path in sorted(output.iterdir())]


def _upload(store: Store, path: Path, uri: str) -> FileEntry:
    sent = store.upload(path, f"{uri}/{path.name}")
    path.unlink()
    return FileEntry(path=path.name, size=sent.size, sha256=sent.sha256)


def _trained(config: MergeConfig, store: Store) -> Manifest:
    """The adapter's manifest. Raises StepError InvalidConfig for what is no adapter of this base."""
    trained = artefacts.load_adapter(store, config.adapter.uri)
    if trained.base_model != config.model.source:
        raise StepError(
            Exit.INVALID_CONFIG,
            Reason.INVALID_CONFIG,
            f"{config.adapter.uri} was trained on {trained.base_model}, the endpoint serves {config.model.source}: it is merged into its own base only. "
            "Set the endpoint's model to it, or create another endpoint.",
        )
    return trained


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        message = f"{path.name} of the base model cannot be read ({type(error).__name__}): correct spec.model.source, or upload the model again."
        raise StepError(Exit.MODEL_INVALID, Reason.MODEL_INVALID, message) from error
    return dict(found)


def _result(ref: AdapterRef, message: str) -> StepResult:
    return StepResult(step=STEP, reason=Reason.COMPLETED, message=message, merged=ref)
