"""Init container of a serving pod: base model and adapter, verified, where the engine looks for them."""

import os
import shutil
from pathlib import Path

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.contract.config import CACHE_DIR, SCRATCH_DIR, AdapterRef, ServeConfig
from finetune_runtime.contract.result import Exit, Reason, StepError, StepResult
from finetune_runtime.contract.spec import ModelSpec
from finetune_runtime.s3.store import Store
from finetune_runtime.sources.model import Local, obtain_model

from . import parity, ready
from .command import check_served, check_together

STEP = "fetch"
MODEL = "model"
ADAPTER = "adapter"
MANIFEST = "adapter-manifest.json"  # beside the adapter: the engine's container reads how it was trained


def run(config: ServeConfig) -> StepResult:
    """Fetches them. Cheap checks come before large downloads. Raises StepError."""
    scratch = Path(os.environ.get("FINETUNE_SCRATCH", SCRATCH_DIR))
    store = Store(config.storage)
    manifests = [artefacts.load_adapter(store, named.adapter.uri) for named in config.adapters]
    for named, found in zip(config.adapters, manifests, strict=True):
        check_served(config.model_copy(update={"served_name": named.name, "adapter": named.adapter}), found)
    check_together(config, manifests)
    for place, (named, found) in enumerate(zip(config.adapters, manifests, strict=True)):
        if config.live:
            fetch_live(scratch, store, named.adapter, found)
            continue
        shutil.rmtree(directory(scratch, place), ignore_errors=True)
        artefacts.fetch(store, named.adapter.uri, directory(scratch, place), named.adapter.manifest_sha256)
    if config.live:  # what they share is taken from the first one, as long as the pod lives
        directory(scratch, 0).unlink(missing_ok=True)
        directory(scratch, 0).symlink_to(live_directory(scratch, config.adapter))
    manifest = manifests[0]
    model = scratch / MODEL
    spec = _served(config, manifest, store)
    # Base models are few. Merged ones are as large, and there is a new one with every version: the cache would never be large enough.
    cache = Path(os.environ.get("FINETUNE_MODEL_CACHE", CACHE_DIR)) if config.cache and config.merged is None else None
    model_found = obtain_model(spec, store, model, cache=cache)
    if model_found.directory != model:  # a volume: the engine finds it at the same path as a download
        model.unlink(missing_ok=True)
        model.symlink_to(model_found.directory)
    for place, known in enumerate(manifests[:1] if config.live else manifests):
        manifest_file(scratch, place).write_bytes(known.encode())
    places = [live_directory(scratch, n.adapter) if config.live else directory(scratch, place) for place, n in enumerate(config.adapters)]
    samples = all(parity.samples(place) for place in places)
    return StepResult(step=STEP, reason=Reason.COMPLETED, message=_told(config, spec, model_found, samples=samples))


def directory(scratch: Path, place: int) -> Path:
    """Where the adapter at this place of config.adapters is."""
    return scratch / ready.adapter_directory(place)


def manifest_file(scratch: Path, place: int) -> Path:
    """Where its manifest is."""
    return scratch / (MANIFEST if place == 0 else f"{ready.adapter_directory(place)}-manifest.json")


def live_directory(scratch: Path, ref: AdapterRef) -> Path:
    """Where an adapter is in a pod in which adapters come and go."""
    return scratch / ready.live_directory(ref.manifest_sha256)


def live_manifest(scratch: Path, ref: AdapterRef) -> Path:
    """Its manifest, which is there once the adapter is there as a whole."""
    return live_directory(scratch, ref).with_suffix(".json")


def fetch_live(scratch: Path, store: Store, ref: AdapterRef, manifest: Manifest) -> None:
    """Fetches an adapter into a pod in which adapters come and go, and goes on where it was interrupted. Raises StepError."""
    artefacts.fetch(store, ref.uri, live_directory(scratch, ref), ref.manifest_sha256)
    part = live_manifest(scratch, ref).with_suffix(".part")
    part.write_bytes(manifest.encode())
    part.rename(live_manifest(scratch, ref))


def _served(config: ServeConfig, manifest: Manifest, store: Store) -> ModelSpec:
    """The model that the engine loads. Raises StepError for merged weights that are not what they were."""
    if config.quantization != "Merged":
        # The revision that the adapter was trained on, not what the branch has become since.
        return config.model.model_copy(update={"revision": manifest.base_revision or config.model.revision})
    if config.merged is None:
        raise StepError(Exit.CRASH, Reason.INTERNAL_ERROR, "The pod was made before its adapter was merged: delete the version's Deployment.")
    check_merged(store, config.merged)
    return config.model.model_copy(update={"source": config.merged.uri, "revision": ""})


def check_merged(store: Store, ref: AdapterRef) -> None:
    """Raises StepError for merged weights that are gone, or others than those that were merged. Fetching holds their files to their manifest."""
    found = artefacts.committed(store, ref.uri)
    if found is None:
        message = f"The merged weights at {ref.uri} are gone: name another version in spec.version and then this one again, which merges it anew."
        raise StepError(Exit.INVALID_CONFIG, Reason.MODEL_NOT_FOUND, message)
    if found[0].kind is not Kind.MERGED or found[1] != ref:
        raise artefacts.ArtefactCorruptError(f"{ref.uri} is not what was merged: the SHA-256 of its manifest is not {ref.manifest_sha256}.")


def _told(config: ServeConfig, spec: ModelSpec, model: Local, *, samples: bool) -> str:
    base = "in its volume" if model.figures is None else str(model.figures)
    note = "" if samples else " The adapter has no parity samples, as those of older releases: prompts are not compared with the training's."
    uris = [named.adapter.uri for named in config.adapters]
    return f"{', '.join(uris)} {'is' if len(uris) == 1 else 'are'} verified. {spec.source} is {base}.{note}"
