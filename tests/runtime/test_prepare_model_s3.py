"""Models in S3 are proven whole from the headers of their shards, without a download of weights."""

import json
import struct
import time
from functools import partial
from pathlib import Path

import pytest

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import ModelSpec
from finetune_runtime.prepare.model_check import INDEX, check_model
from finetune_runtime.s3.store import Store
from finetune_runtime.sources.model import fetch_model, list_model, read_part

DATA_BYTES = 2**16


def shard(tensors: int) -> bytes:
    """A safetensors file of so many tensors."""
    size = DATA_BYTES // tensors
    header = json.dumps({f"layers.{n}.weight": {"dtype": "U8", "shape": [size], "data_offsets": [n * size, (n + 1) * size]} for n in range(tensors)})
    return struct.pack("<Q", len(header)) + header.encode() + bytes(size * tensors)


def put(store: Store, uri: str, shards: list[bytes]) -> None:
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for name, content in zip(names, shards, strict=True):
        store.put(f"{uri}/{name}", content)
    store.put(f"{uri}/{INDEX}", json.dumps({"metadata": {"total_size": 10**12}, "weight_map": {name: name for name in names}}).encode())
    store.put(f"{uri}/config.json", b'{"architectures": ["Qwen3ForCausalLM"]}')
    store.put(f"{uri}/tokenizer.json", b"{}")


def check(store: Store, uri: str, directory: Path) -> None:
    spec = ModelSpec(source=uri)
    small = fetch_model(spec, store, directory, metadata_only=True)
    check_model(spec, list_model(spec, store).files, small, partial(read_part, spec, store))
    assert not list(directory.glob("*.safetensors"))


def test_model_of_100_shards_is_proven_in_seconds(store: Store, bucket: str, tmp_path: Path) -> None:
    put(store, f"s3://{bucket}/model", [shard(64)] * 100)
    started = time.monotonic()
    check(store, f"s3://{bucket}/model", tmp_path)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("tensors", [1, 4096], ids=["a small header", "a header that needs a second read"])
def test_cut_shard_is_named_with_its_bytes(store: Store, bucket: str, tmp_path: Path, tensors: int) -> None:
    whole = shard(tensors)
    put(store, f"s3://{bucket}/model", [whole, whole[:-1], whole])
    with pytest.raises(StepError) as caught:
        check(store, f"s3://{bucket}/model", tmp_path)
    assert (caught.value.code, caught.value.reason) == (Exit.MODEL_INVALID, Reason.MODEL_INVALID)
    assert caught.value.message == (
        f"1 of 3 weight files of s3://{bucket}/model are not whole: model-00002-of-00003.safetensors has {len(whole) - 1} bytes instead of {len(whole)}. "
        "The copy was cut short: copy them anew."
    )


def test_shard_cut_in_its_header_is_named(store: Store, bucket: str, tmp_path: Path) -> None:
    put(store, f"s3://{bucket}/model", [shard(4096)[:150_000]])
    with pytest.raises(StepError, match=r"model-00001-of-00001\.safetensors has 150000 bytes and no sound header"):
        check(store, f"s3://{bucket}/model", tmp_path)
