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
from finetune_runtime.prepare.shards import expected_size
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


def check(directory: Path, source: str = "pvc://models/tiny", *, trusted: bool = False) -> dict[str, Any]:
    files = tuple(RemoteFile(path.relative_to(directory).as_posix(), path.stat().st_size) for path in directory.rglob("*") if path.is_file())

    def read_part(path: str, start: int, length: int) -> bytes:
        return (directory / path).read_bytes()[start : start + length]

    return check_model(ModelSpec(source=source, trust_remote_code=trusted), files, directory, read_part)


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
    "an empty shard": (lambda d: (d / SHARDS[1]).write_bytes(b""), f"1 of 2 weight files of pvc://models/tiny are not whole: {SHARDS[1]} is empty."),
    "a shard cut by one byte": (lambda d: cut(d, SHARDS[0]), f"{SHARDS[0]} has {SIZE - 1} bytes instead of {SIZE}. The copy was cut short"),
    "a shard cut in its header": (
        lambda d: (d / SHARDS[0]).write_bytes(safetensors(400)[:250][:9] + bytes(300)),
        f"{SHARDS[0]} has 309 bytes and no sound header",
    ),
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


def test_every_cut_shard_is_named_with_its_bytes_up_to_three(directory: Path) -> None:
    names = [f"model-{number:05d}-of-00005.safetensors" for number in range(1, 6)]
    for name in names:
        (directory / name).write_bytes(safetensors(100)[:-2])
    (directory / INDEX).write_text(json.dumps({"weight_map": {name: name for name in names}}))
    with pytest.raises(StepError) as caught:
        check(directory)
    shown = "; ".join(f"{name} has {SIZE - 2} bytes instead of {SIZE}" for name in names[:3])
    assert f"5 of 5 weight files of pvc://models/tiny are not whole: {shown}, and 2 more. The copy" in caught.value.message


def test_total_of_the_index_is_not_believed_because_old_ones_are_of_another_precision(directory: Path) -> None:
    edit(directory, INDEX, metadata={"total_size": 10**9})
    check(directory)


def test_hub_proves_what_it_sends_and_is_not_asked_for_headers(directory: Path) -> None:
    cut(directory, SHARDS[0])
    check(directory, "hf://owner/tiny")
    (directory / SHARDS[0]).write_bytes(b"")
    with pytest.raises(StepError, match="is empty"):
        check(directory, "hf://owner/tiny")


def header(length: int) -> bytes:
    """A shard without data whose header has `length` bytes."""
    text = b'{"__metadata__": {"a": "%s"}}' % (b"x" * (length - len(b'{"__metadata__": {"a": ""}}')))
    return struct.pack("<Q", len(text)) + text


HEADS = [
    pytest.param(safetensors(100), SIZE, 1, id="a small header in one read"),
    pytest.param(header(128 * 2**10 - 8), 128 * 2**10, 1, id="a header as large as the first read"),
    pytest.param(header(128 * 2**10), 128 * 2**10 + 8, 2, id="a header that needs a second read"),
    pytest.param(struct.pack("<Q", 2**40) + bytes(2**18), 0, 1, id="a header larger than the format allows is not read"),
    pytest.param(struct.pack("<Q", 0), 0, 1, id="no header"),
    pytest.param(b"1234567", 0, 1, id="seven bytes"),
    pytest.param(struct.pack("<Q", 2) + b"[]", 0, 1, id="a header that is a list"),
    pytest.param(struct.pack("<Q", 8) + b'{"a": 1}', 0, 1, id="a tensor without offsets"),
    pytest.param(struct.pack("<Q", 4) + b"\xff\xff\xff\xff", 0, 1, id="a header that is not text"),
]


@pytest.mark.parametrize(("content", "size", "reads"), HEADS)
def test_size_by_the_header_takes_few_reads(content: bytes, size: int, reads: int) -> None:
    asked: list[tuple[int, int]] = []

    def read(start: int, length: int) -> bytes:
        asked.append((start, length))
        return content[start : start + length]

    assert expected_size(read) == size
    assert len(asked) == reads
