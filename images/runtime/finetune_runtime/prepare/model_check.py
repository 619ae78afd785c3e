"""Is the model directory whole and safe? Judged from its listing, its small files and the shards' headers, before a byte of weights is loaded."""

import json
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import ModelSpec
from finetune_runtime.sources.model import RemoteFile, is_pickle

from .shards import expected_size

INDEX = "model.safetensors.index.json"
_TOKENIZERS = frozenset({"tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model"})
_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
READERS = 16  # headers read at the same time: round trips to the storage are what takes long
ReadPart = Callable[[str, int, int], bytes]


def check_model(spec: ModelSpec, files: tuple[RemoteFile, ...], directory: Path, read_part: ReadPart) -> dict[str, Any]:
    """The model's config.json. `files` is the source's listing, `directory` a local copy of at least its small files.

    `read_part(path, start, length)` reads bytes of the source's files; hubs, which prove what they send by its digest, are not asked.
    Raises StepError ModelInvalid.
    """
    sizes = {file.path: file.size for file in files}
    config = _config(spec, directory)
    _check_tokenizer(spec, sizes)
    if not spec.trust_remote_code:
        _check_no_code(spec, sizes, directory)
    shards = weight_files(spec, sizes, directory)
    _check_sizes(spec, {path: sizes[path] for path in shards}, read_part)
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


def weight_files(spec: ModelSpec, paths: Collection[str], directory: Path) -> list[str]:
    """The safetensors files that hold the model; none for pickles that the user trusts."""
    shards = [path for path in paths if path.endswith(".safetensors") and "/" not in path]
    if not shards:
        pickles = [path for path in paths if is_pickle(path) and "/" not in path]
        if pickles and spec.trust_remote_code:
            return []
        if pickles:
            raise _invalid(
                f"{spec.source} holds its weights as pickles only ({_some(pickles)}), which can run any code when they are loaded. Convert them to "
                "safetensors, or set spec.model.trustRemoteCode: true if you trust their origin."
            )
        raise _invalid(f"{spec.source} holds no weights (*.safetensors). Formats such as GGUF, ONNX and TensorFlow are not supported.")
    return _indexed(spec, paths, directory) if INDEX in paths else shards


def _indexed(spec: ModelSpec, paths: Collection[str], directory: Path) -> list[str]:
    """The shards that the index lists. Its total size is not looked at: older indexes name that of another precision."""
    index = _json(spec, directory / INDEX)
    try:
        shards = sorted({str(shard) for shard in index["weight_map"].values()})
    except (TypeError, KeyError, AttributeError) as error:
        raise _invalid(f"{spec.source}/{INDEX} is not an index of weights: copy the model anew.") from error
    if missing := [shard for shard in shards if shard not in paths]:
        raise _invalid(f"{spec.source} lacks {len(missing)} of {len(shards)} weight files that its index lists: {_some(missing)}. Copy the model anew.")
    return shards


def _check_sizes(spec: ModelSpec, sizes: dict[str, int], read_part: ReadPart) -> None:
    """Each shard must be as large as its own header says."""

    def fault(path: str) -> str:
        if not sizes[path]:
            return f"{path} is empty"
        if spec.source.startswith("hf://"):
            return ""
        expected = expected_size(lambda start, length: read_part(path, start, length))
        if not expected:
            return f"{path} has {sizes[path]} bytes and no sound header"
        return "" if expected == sizes[path] else f"{path} has {sizes[path]} bytes instead of {expected}"

    with ThreadPoolExecutor(READERS) as pool:
        found = [text for text in pool.map(fault, sizes) if text]
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        raise _invalid(
            f"{len(found)} of {len(sizes)} weight files of {spec.source} are not whole: {'; '.join(found[:3])}{more}. The copy was cut short: copy them anew."
        )


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
