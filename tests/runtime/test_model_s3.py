"""Base models from S3 into a cache that pods share: resumed after a kill, verified at every start, never mixed."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.contract.result import Exit, StepError
from finetune_runtime.contract.spec import ModelSpec, S3Storage
from finetune_runtime.s3.download import PART_BYTES
from finetune_runtime.s3.store import Store
from finetune_runtime.sources.model import Local, obtain_model
from finetune_runtime.sources.transfer import STATE
from tests.runtime.support import ROOT, wait_for

FETCH = """
import sys
from pathlib import Path
from finetune_runtime.contract.spec import ModelSpec, S3Storage
from finetune_runtime.s3.store import Store
from finetune_runtime.sources.model import obtain_model
storage = S3Storage.model_validate_json(sys.argv[1])
obtain_model(ModelSpec(source=sys.argv[2]), Store(storage), Path("unused"), cache=Path(sys.argv[3]))
"""


@pytest.fixture
def source(store: Store, bucket: str) -> str:
    """A model whose weights take several parts."""
    uri = f"s3://{bucket}/base/tiny"
    store.put(f"{uri}/config.json", b"{}")
    store.put(f"{uri}/model.safetensors", os.urandom(2 * PART_BYTES + 5))
    return uri


def obtain(store: Store, source: str, tmp_path: Path) -> Local:
    return obtain_model(ModelSpec(source=source), store, tmp_path / "unused", cache=tmp_path / "cache")


def fetched(found: Local) -> tuple[int, int]:
    assert found.figures is not None
    return found.figures.fetched, found.figures.resumed


def test_a_model_in_the_cache_is_verified_and_not_fetched_again(store: Store, source: str, tmp_path: Path) -> None:
    first, again = obtain(store, source, tmp_path), obtain(store, source, tmp_path)
    assert first.directory == again.directory
    assert first.directory.parent == tmp_path / "cache"
    assert (first.directory / "model.safetensors").read_bytes() == store.read(f"{source}/model.safetensors")
    assert (fetched(first), fetched(again)) == ((2 * PART_BYTES + 7, 0), (0, 0))


def test_a_damaged_file_in_the_cache_is_fetched_again(store: Store, source: str, tmp_path: Path) -> None:
    weights = obtain(store, source, tmp_path).directory / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    assert fetched(obtain(store, source, tmp_path)) == (2 * PART_BYTES + 5, 0)
    assert weights.read_bytes() == store.read(f"{source}/model.safetensors")


def test_new_objects_under_the_same_names_leave_the_files_that_engines_have_open(store: Store, source: str, tmp_path: Path) -> None:
    old = obtain(store, source, tmp_path).directory
    before = (old / "model.safetensors").read_bytes()
    store.put(f"{source}/model.safetensors", os.urandom(len(before)))
    new = obtain(store, source, tmp_path).directory
    assert new != old
    assert (old / "model.safetensors").read_bytes() == before
    assert (new / "model.safetensors").read_bytes() == store.read(f"{source}/model.safetensors")


def test_an_object_that_changes_while_it_is_fetched_is_not_mixed(store: Store, source: str) -> None:
    (item,) = (item for item in store.list(f"{source}/model"))
    pieces = store.stream(item.uri, start=0, size=item.size, etag=item.etag)
    next(pieces)
    store.put(item.uri, bytes(item.size))
    with pytest.raises(StepError, match="answered 412") as caught:
        list(store.stream(item.uri, start=PART_BYTES, size=item.size, etag=item.etag))
    assert caught.value.code is Exit.STORAGE_UNAVAILABLE
    pieces.close()


def test_weights_that_are_not_those_of_the_manifest_beside_them_are_refused(store: Store, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/config.json").write_text("{}")
    (tmp_path / "merged/model.safetensors").write_bytes(b"weights")
    uri = f"s3://{bucket}/merged"
    artefacts.commit(store, tmp_path / "merged", uri, Manifest(kind=Kind.ADAPTER, files=[], config_hash="h", base_model="m"))
    assert (obtain(store, uri, tmp_path).directory / "model.safetensors").read_bytes() == b"weights"
    store.put(f"{uri}/model.safetensors", b"weightz")
    with pytest.raises(StepError, match=f"model.safetensors of {uri} is not what its source lists"):
        obtain(store, uri, tmp_path)


def test_a_killed_fetch_goes_on_where_it_stopped(store: Store, storage: S3Storage, bucket: str, tmp_path: Path) -> None:
    content = os.urandom(2**20) * 400
    source = f"s3://{bucket}/base/large"
    store.put(f"{source}/model.safetensors", content)
    command = [sys.executable, "-c", FETCH, storage.model_dump_json(by_alias=True), source, str(tmp_path / "cache")]

    def left() -> int:
        return sum(path.stat().st_size for path in tmp_path.glob(f"cache/*/{STATE}/*.part"))

    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT / "images/runtime")}, cwd=tmp_path)
    wait_for("a part of the weights", lambda: left() > 20 * 2**20 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the fetch was over before it could be killed"
    resumed = left()
    started = time.monotonic()
    found = obtain(store, source, tmp_path)
    print(f"{resumed} of {len(content)} bytes were there; {found.figures} ({time.monotonic() - started:.2f} s)")
    assert fetched(found) == (len(content) - resumed, resumed)
    assert hashlib.sha256((found.directory / "model.safetensors").read_bytes()).digest() == hashlib.sha256(content).digest()
