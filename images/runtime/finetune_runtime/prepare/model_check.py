"""Is the model directory whole and safe? Judged from its listing and its small files, before a byte of weights is loaded."""

import json
import struct
from pathlib import Path, PurePosixPath
from typing import Any

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import ModelSpec
from finetune_runtime.sources.model import RemoteFile, is_pickle

INDEX = "model.safetensors.index.json"
_TOKENIZERS = frozenset({"tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model"})
_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def check_model(spec: ModelSpec, files: tuple[RemoteFile, ...], directory: Path) -> dict[str, Any]:
    """The model's config.json. `files` is the source's listing, `directory` a local copy of at least its small files.

    Raises StepError ModelInvalid.
    """
    sizes = {file.path: file.size for file in files}
    config = _config(spec, directory)
    _check_tokenizer(spec, sizes)
    if not spec.trust_remote_code:
        _check_no_code(spec, sizes, directory)
    _check_weights(spec, sizes, directory)
    _check_precision(spec, config)
    return config


def _config(spec: ModelSpec, directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise _invalid(f"{spec.source} has no config.json: name the directory that holds config.json, the tokenizer and the safetensors files.")
    config = _json(spec, path)
    if not isinstance(config, dict):
        raise _invalid(f"{spec.source}/config.json is not a JSON object: copy the model anew.")
    return config


def _json(spec: ModelSpec, path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # JSON or UTF-8
        raise _invalid(f"{spec.source}/{path.name} cannot be read: {error}. Copy the model anew.") from error


def _check_tokenizer(spec: ModelSpec, sizes: dict[str, int]) -> None:
    if not any(path in _TOKENIZERS or path.endswith(".tiktoken") for path in sizes):
        raise _invalid(f"{spec.source} has no tokenizer (none of {', '.join(sorted(_TOKENIZERS))}): copy the tokenizer's files next to config.json.")


def _check_no_code(spec: ModelSpec, sizes: dict[str, int], directory: Path) -> None:
    """ms-swift loads every model with trust_remote_code=True, so that code must not even be there."""
    code = [path for path in sizes if path.endswith(".py")]
    code += [f"{name} (auto_map)" for name in _CONFIGS if (directory / name).is_file() and "auto_map" in str(_json(spec, directory / name))]
    if code:
        raise _invalid(
            f"{spec.source} brings Python code that would run in the pod: {_some(code)}. Use a model without it, or set spec.model.trustRemoteCode: true "
            "after you have read the code."
        )


def _check_weights(spec: ModelSpec, sizes: dict[str, int], directory: Path) -> None:
    shards = [path for path in sizes if path.endswith(".safetensors") and "/" not in path]
    if not shards:
        pickles = [path for path in sizes if is_pickle(path) and "/" not in path]
        if pickles and spec.trust_remote_code:
            return
        if pickles:
            raise _invalid(
                f"{spec.source} holds its weights as pickles only ({_some(pickles)}), which can run any code when they are loaded. Convert them to "
                "safetensors, or set spec.model.trustRemoteCode: true if you trust their origin."
            )
        raise _invalid(f"{spec.source} holds no weights (*.safetensors). Formats such as GGUF, ONNX and TensorFlow are not supported.")
    if INDEX in sizes:
        shards = _check_index(spec, sizes, directory)
    for path in shards:
        expected = _expected_size(directory / path)
        if not sizes[path] or (expected is not None and expected != sizes[path]):
            size = f"{sizes[path]} bytes instead of {expected}" if expected else "empty or cut off"
            raise _invalid(f"{spec.source}/{path} is {size}: the copy was cut short. Copy this file anew.")


def _check_index(spec: ModelSpec, sizes: dict[str, int], directory: Path) -> list[str]:
    """Names of the shards. Their sizes are compared with the index's total, for copies whose headers are not at hand."""
    index = _json(spec, directory / INDEX)
    try:
        shards = sorted(set(index["weight_map"].values()))
        total = int(index.get("metadata", {}).get("total_size", 0))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise _invalid(f"{spec.source}/{INDEX} is not an index of weights: copy the model anew.") from error
    if missing := [shard for shard in shards if shard not in sizes]:
        raise _invalid(f"{spec.source} lacks {len(missing)} of {len(shards)} weight files that its index lists: {_some(missing)}. Copy the model anew.")
    present = sum(sizes[shard] for shard in shards)
    # A hub checks sizes itself, and its older indexes name totals of another precision, which their readers cannot correct.
    if present < total and not spec.source.startswith("hf://"):
        raise _invalid(f"The weight files of {spec.source} have {present} bytes, {INDEX} says at least {total}: the copy was cut short. Copy the model anew.")
    return shards


def _expected_size(path: Path) -> int | None:
    """Size that a safetensors file must have by its own header; 0 for a broken header, None when the file is not here.

    Source: the safetensors format: 8 bytes little-endian header length, JSON header with data_offsets, data.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                return 0
            header = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
            return int(8 + length + max(ends, default=0))
        except (struct.error, ValueError, KeyError, TypeError, AttributeError):
            return 0


def _check_precision(spec: ModelSpec, config: dict[str, Any]) -> None:
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else None
    if method not in (None, "bitsandbytes"):
        raise _invalid(
            f"{spec.source} is quantised already ({method}); an adapter is trained on the 16-bit model, which the job quantises itself. Use that one."
        )


def _some(names: list[str]) -> str:
    """The first names of a list that may be long."""
    shown = ", ".join(str(PurePosixPath(name)) for name in sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _invalid(message: str) -> StepError:
    return StepError(Exit.MODEL_INVALID, Reason.MODEL_INVALID, message)
