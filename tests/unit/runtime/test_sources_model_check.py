"""A model directory is refused before training when it is incomplete or could run code."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import ModelSpec
from finetune_runtime.prepare.model_check import INDEX, check_model
from finetune_runtime.sources.model import RemoteFile

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def safetensors(bytes_of_data: int) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [bytes_of_data], "data_offsets": [0, bytes_of_data]}, "__metadata__": {"format": "pt"}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(bytes_of_data)


SIZE = len(safetensors(100))


def edit(directory: Path, name: str, **changes: Any) -> None:
    path = directory / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(directory: Path, name: str) -> None:
    path = directory / name
    path.write_bytes(path.read_bytes()[:-1])


def no_weights(directory: Path) -> None:
    for path in directory.glob("model*"):
        path.unlink()


def only_pickles(directory: Path) -> None:
    no_weights(directory)
    (directory / "pytorch_model.bin").write_bytes(b"pickle")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A sound model of two shards."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    for shard in SHARDS:
        (tmp_path / shard).write_bytes(safetensors(100))
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 200}, "weight_map": dict(zip("abc", [*SHARDS, SHARDS[1]], strict=True))}))
    return tmp_path


def check(directory: Path, source: str = "pvc://models/tiny", *, trusted: bool = False, weights_here: bool = True) -> dict[str, Any]:
    files = tuple(RemoteFile(path.relative_to(directory).as_posix(), path.stat().st_size) for path in directory.rglob("*") if path.is_file())
    if not weights_here:
        for path in directory.glob("*.safetensors"):
            path.unlink()
    return check_model(ModelSpec(source=source, trust_remote_code=trusted), files, directory)


def test_sound_model_gives_its_configuration(directory: Path) -> None:
    assert check(directory) == {"architectures": ["Qwen3ForCausalLM"]}


def test_pickles_beside_safetensors_are_never_loaded_and_do_not_matter(directory: Path) -> None:
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    (directory / "training_args.bin").write_bytes(b"pickle")
    check(directory)


Break = Callable[[Path], object]
UNSOUND: dict[str, tuple[Break, str]] = {
    "no config.json": (lambda d: (d / "config.json").unlink(), "has no config.json: name the directory that holds"),
    "config.json cut off": (lambda d: (d / "config.json").write_text('{"a'), "/config.json cannot be read: Unterminated string"),
    "config.json is a list": (lambda d: (d / "config.json").write_text("[]"), "/config.json is not a JSON object"),
    "config.json in another encoding": (lambda d: (d / "config.json").write_bytes(b'{"a": "\xe9"}'), "/config.json cannot be read: 'utf-8' codec"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer (none of spiece.model, tokenizer.json,"),
    "a missing shard": (lambda d: (d / SHARDS[1]).unlink(), f"lacks 1 of 2 weight files that its index lists: {SHARDS[1]}. Copy"),
    "an empty shard": (lambda d: (d / SHARDS[1]).write_bytes(b""), f"/{SHARDS[1]} is empty or cut off"),
    "a shard cut by one byte": (lambda d: cut(d, SHARDS[0]), f"/{SHARDS[0]} is {SIZE - 1} bytes instead of {SIZE}: the copy was cut short"),
    "a shard cut in its header": (lambda d: (d / SHARDS[0]).write_bytes(safetensors(400)[:250][:9] + bytes(300)), f"/{SHARDS[0]} is empty or cut off"),
    "a broken index": (lambda d: (d / INDEX).write_text('{"weight_map": []}'), f"/{INDEX} is not an index of weights"),
    "no weights": (no_weights, "holds no weights (*.safetensors). Formats such as GGUF"),
    "pickles only": (only_pickles, "holds its weights as pickles only (pytorch_model.bin), which can run any code"),
    "code": (lambda d: (d / "modeling_x.py").write_text(""), "brings Python code that would run in the pod: modeling_x.py. Use"),
    "a code reference": (
        lambda d: edit(d, "config.json", auto_map={"AutoModel": "x--y.Z"}),
        "brings Python code that would run in the pod: config.json (auto_map).",
    ),
    "a code reference of the tokenizer": (lambda d: edit(d, "tokenizer_config.json", auto_map={}), "tokenizer_config.json (auto_map)."),
    "quantised weights": (lambda d: edit(d, "config.json", quantization_config={"quant_method": "awq"}), "is quantised already (awq)"),
}


@pytest.mark.parametrize("fault", UNSOUND)
def test_unsound_model_is_refused_with_cause_and_cure(directory: Path, fault: str) -> None:
    break_it, message = UNSOUND[fault]
    break_it(directory)
    with pytest.raises(StepError) as caught:
        check(directory)
    assert (caught.value.code, caught.value.reason) == (Exit.MODEL_INVALID, Reason.MODEL_INVALID)
    assert message in caught.value.message
    assert "pvc://models/tiny" in caught.value.message


@pytest.mark.parametrize("fault", ["pickles only", "code", "a code reference"])
def test_user_may_trust_code_and_pickles(directory: Path, fault: str) -> None:
    UNSOUND[fault][0](directory)
    check(directory, trusted=True)


@pytest.mark.parametrize("fault", ["a missing shard", "an empty shard", "a shard cut by one byte"])
def test_object_store_is_judged_by_its_listing(directory: Path, fault: str) -> None:
    edit(directory, INDEX, metadata={"total_size": 2 * SIZE})  # what both shards have, headers included
    check(directory, "s3://models/tiny")
    UNSOUND[fault][0](directory)
    with pytest.raises(StepError):
        check(directory, "s3://models/tiny", weights_here=False)


def test_hub_is_believed_about_sizes_because_its_old_indexes_are_wrong(directory: Path) -> None:
    edit(directory, INDEX, metadata={"total_size": 10**9})
    check(directory, "hf://owner/tiny", weights_here=False)
