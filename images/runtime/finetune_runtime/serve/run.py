"""Becomes the engine: after the checks this process is replaced, so that signals and the exit code are the engine's own."""

import logging
import os
import shutil
import socket
from pathlib import Path

from finetune_runtime.contract.artefact import CHAT_TEMPLATE_FILE, Manifest
from finetune_runtime.contract.config import SCRATCH_DIR, SERVING_PORT, ServeConfig
from finetune_runtime.contract.result import Exit, Reason, StepError, StepResult
from finetune_runtime.hardware import find

from . import command, drain, fetch, parity, ready

log = logging.getLogger(__name__)

STEP = "serve"
MODEL_INFOS = Path("/opt/vllm/modelinfos")  # of the inference image (images/inference/model_infos.py)


def run(config: ServeConfig) -> StepResult:
    """Does not return. Raises StepError for what keeps the engine from starting."""
    scratch = Path(os.environ.get("FINETUNE_SCRATCH", SCRATCH_DIR))
    adapter = scratch / fetch.ADAPTER
    manifest = _manifest(scratch / fetch.MANIFEST)
    command.check_served(config, manifest)
    others = others_of(config, scratch)
    if config.live is None:  # else the sidecar does, before it has the engine load one
        command.check_together(config, [manifest, *(other.manifest for other in others)])
    hardware = find(allow_cpu=config.allow_cpu)
    check_port(SERVING_PORT)
    ready.proof().unlink(missing_ok=True)  # it was for the engine before this one
    drain.marker().unlink(missing_ok=True)  # preStop hooks also run before the kubelet starts an engine anew
    (scratch / "home").mkdir(exist_ok=True)
    if config.engine == "vLLM":
        words = command.vllm(config, manifest, hardware, model=scratch / fetch.MODEL, adapter=adapter, others=others)
        _bring_model_infos(scratch / command.VLLM_CACHE / MODEL_INFOS.name)
    else:
        model = engine_model(scratch / fetch.MODEL, adapter / CHAT_TEMPLATE_FILE, scratch / "engine-model")
        words = command.swift(config, manifest, hardware, model=model, adapter=adapter)
    if not all(parity.samples(found) for found in (adapter, *(other.directory for other in others))):
        log.warning("the adapter has no parity samples, as those of older releases: prompts are not compared with the training's")
    log.info("serving on %s: %s", hardware, " ".join(words))
    os.chdir(scratch)
    os.execvpe(words[0], words, command.environment(os.environ, scratch, hardware, threads=config.cpu_threads))  # noqa: S606


def others_of(config: ServeConfig, scratch: Path) -> list[command.Adapter]:
    """Adapters beside the first one; where they come and go: those that are wanted and there. What was refused may lie beside them for a while."""
    if config.live:
        found = {fetch.live_manifest(scratch, named.adapter) for named in config.adapters}
        return [command.Adapter("", _manifest(path), path.with_suffix("")) for path in sorted(found) if path.exists()]
    return [
        command.Adapter(named.name, _manifest(fetch.manifest_file(scratch, place)), fetch.directory(scratch, place))
        for place, named in enumerate(config.others or (), 1)
    ]


def engine_model(model: Path, chat_template: Path, directory: Path) -> Path:
    """A view of the model's directory with another chat template; transformers prefers the file to what tokenizer_config.json says."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for path in model.iterdir():
        if path.name != CHAT_TEMPLATE_FILE and not path.name.startswith("."):
            (directory / path.name).symlink_to(path.resolve())
    shutil.copyfile(chat_template, directory / CHAT_TEMPLATE_FILE)
    return directory


def check_port(port: int) -> None:
    """Raises StepError when something listens there: ms-swift would silently take the next port, where nobody asks it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104  as the engine will
        except OSError as error:
            raise StepError(Exit.CRASH, Reason.INTERNAL_ERROR, f"Port {port} is taken in this pod: another container of it listens there.") from error


def _bring_model_infos(directory: Path) -> None:
    """Where vLLM looks for them. It does without: it only starts more slowly."""
    try:
        if MODEL_INFOS.is_dir():
            shutil.copytree(MODEL_INFOS, directory, copy_function=shutil.copyfile, dirs_exist_ok=True)
    except OSError as error:  # also shutil.Error
        log.warning("vLLM has to look at the model's class itself: %s", error)


def _manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StepError(Exit.CRASH, Reason.INTERNAL_ERROR, f"{path} is missing: the step fetch has to run first.") from error
