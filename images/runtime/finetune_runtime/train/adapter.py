"""The final adapter: what serving needs of the last checkpoint, committed as the job's result."""

import json
import math
import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finetune_runtime.contract.artefact import CHAT_TEMPLATE_FILE, PARITY_FILE
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import Tuning

from .divergence import broken

_FILES = ("adapter_model.safetensors", "adapter_config.json", "args.json")
_OPTIONAL = ("additional_config.json",)
_PACKAGES = ("ms-swift", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")


def assemble(checkpoint: Path, dataset: Path, destination: Path, model_source: str) -> None:
    """Makes the adapter's directory from a whole checkpoint, without optimizer state, and from what prepare found out about prompts. Same file system."""
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    for name in (*_FILES, *_OPTIONAL):
        if name in _FILES or (checkpoint / name).exists():
            os.link(checkpoint / name, destination / name)
    for name in (CHAT_TEMPLATE_FILE, PARITY_FILE):
        if name == CHAT_TEMPLATE_FILE or (dataset / name).exists():  # data that an older release prepared have no parity samples
            shutil.copyfile(dataset / name, destination / name)
    _name_base_model(destination / "adapter_config.json", model_source)


def prove_end(checkpoint: Path, *, stopped_early: bool) -> None:
    """Proves that the checkpoint is the end of a training that went well. Raises StepError TrainingCrashed."""
    state = _state(checkpoint)
    step, total = state["global_step"], state["max_steps"]
    if step != total and not stopped_early:
        raise _crashed(f"The training stopped at step {step} of {total} without saying why.")
    newest = {name: value for entry in state["log_history"] for name, value in entry.items()}
    if what := broken(newest):
        raise _crashed(f"The training reached step {step}, but the {what}: lower training.learningRate.")


def last_loss(checkpoint: Path) -> float:
    """The last training loss before the checkpoint. Raises StepError TrainingCrashed when it is not a number."""
    state = _state(checkpoint)
    losses = [float(entry["loss"]) for entry in state["log_history"] if "loss" in entry]
    if not losses or not math.isfinite(losses[-1]):
        shown = losses[-1] if losses else "never reported"
        raise _crashed(f"The training reached step {state['global_step']} with the loss {shown}: lower training.learningRate.")
    return losses[-1]


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())
    return state


def quantization(tuning: Tuning) -> dict[str, str | int | bool] | None:
    """How the base was held in training, for the manifest; None: in 16 bits."""
    if tuning.method != "QLoRA":
        return None
    return {"method": "bnb", **tuning.quantization.dump()}


def versions() -> dict[str, str]:
    """Versions of the packages that decide what was trained."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _name_base_model(path: Path, source: str) -> None:
    """The trainer writes the directory that it read, which exists in its pod only; a hub's name means something elsewhere too."""
    if not source.startswith("hf://"):
        return
    config = json.loads(path.read_text()) | {"base_model_name_or_path": source.removeprefix("hf://")}
    path.unlink()  # a hard link: the checkpoint keeps its own
    path.write_text(json.dumps(config, indent=2))


def _crashed(message: str) -> StepError:
    return StepError(Exit.CRASH, Reason.TRAINING_CRASHED, message)
