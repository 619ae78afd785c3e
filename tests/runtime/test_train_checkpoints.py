"""The background upload against a real S3 server that comes and goes."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.contract.result import Reason, StepError
from finetune_runtime.contract.spec import S3Storage
from finetune_runtime.s3.store import Store
from finetune_runtime.train.checkpoints import Staged, Uploader
from tests.runtime.support import Proxy, Server, wait_for


@pytest.fixture
def proxy(s3_server: Server) -> Iterator[Proxy]:
    found = Proxy(s3_server.endpoint)
    yield found
    found.close()


@pytest.fixture
def prefix(bucket: str) -> str:
    return f"s3://{bucket}/models/n/j/u"


@pytest.fixture
def uploader(proxy: Proxy, storage: S3Storage, prefix: str) -> Uploader:
    return Uploader(Store(storage.model_copy(update={"endpoint": proxy.endpoint})), prefix, keep=2, before=lambda: None, retry_seconds=0.5)


@pytest.fixture
def stage(tmp_path: Path) -> Callable[[int], Staged]:
    def make(step: int, content: str = "weights") -> Staged:
        path = tmp_path / f"staged/checkpoint-{step}"
        path.mkdir(parents=True)
        (path / "adapter_model.safetensors").write_text(content)
        return Staged(path, Manifest(kind=Kind.CHECKPOINT, files=[], config_hash="h", base_model="m", step=step, total_steps=100))

    return make


def complete(store: Store, prefix: str) -> list[int]:
    return [step for step, _, _ in artefacts.checkpoints(store, prefix)]


def test_checkpoints_are_committed_pruned_and_removed_locally(
    uploader: Uploader, store: Store, prefix: str, stage: Callable[[int], Staged], tmp_path: Path
) -> None:
    for step in (10, 20, 30, 40):
        uploader.submit(stage(step))
        uploader.drain(30)
        assert uploader.committed_step == step
    assert complete(store, prefix) == [40, 30]
    assert list((tmp_path / "staged").iterdir()) == []


def test_storage_that_comes_back_gets_the_checkpoint(uploader: Uploader, store: Store, prefix: str, proxy: Proxy, stage: Callable[[int], Staged]) -> None:
    proxy.down = True
    uploader.submit(stage(10))
    time.sleep(1)
    assert complete(store, prefix) == []
    proxy.down = False
    uploader.drain(60)
    assert complete(store, prefix) == [10]


def test_while_storage_is_down_only_the_newest_checkpoint_waits(
    uploader: Uploader, store: Store, prefix: str, proxy: Proxy, stage: Callable[[int], Staged], tmp_path: Path
) -> None:
    proxy.down = True
    for step in (10, 20, 30):
        uploader.submit(stage(step))
        time.sleep(0.2)
    wait_for("the removal of outdated copies", lambda: [path.name for path in (tmp_path / "staged").iterdir()] == ["checkpoint-30"])
    proxy.down = False
    uploader.drain(60)
    assert complete(store, prefix) == [30]


def test_storage_that_stays_down_is_the_error_once_patience_is_over(uploader: Uploader, proxy: Proxy, stage: Callable[[int], Staged]) -> None:
    proxy.down = True
    uploader.submit(stage(10))
    with pytest.raises(StepError) as caught:
        uploader.drain(1)
    assert caught.value.reason == Reason.STORAGE_UNAVAILABLE
    assert uploader.committed_step == 0


def test_what_is_in_storage_under_the_same_step_is_replaced(
    uploader: Uploader, store: Store, prefix: str, stage: Callable[..., Staged], tmp_path: Path
) -> None:
    uploader.submit(stage(10, "damaged"))
    uploader.drain(30)
    uploader.submit(stage(10, "trained again"))
    uploader.drain(30)
    artefacts.fetch(store, f"{prefix}/checkpoints/checkpoint-10", tmp_path / "fetched")
    assert (tmp_path / "fetched/adapter_model.safetensors").read_text() == "trained again"


def test_remains_of_killed_uploads_are_cleared_away(uploader: Uploader, store: Store, prefix: str, stage: Callable[[int], Staged]) -> None:
    store.put(f"{prefix}/checkpoints/checkpoint-5/optimizer.pt", b"half")
    store.put(f"{prefix}/checkpoints/checkpoint-15/optimizer.pt", b"half")
    uploader.submit(stage(10))
    uploader.drain(30)
    names = {item.uri.split("/")[-2] for item in store.list(f"{prefix}/checkpoints/")}
    assert names == {"checkpoint-10", "checkpoint-15"}  # 15 may be on its way


def test_the_report_is_never_older_than_a_committed_checkpoint(store: Store, prefix: str, stage: Callable[[int], Staged]) -> None:
    seen: list[list[int]] = []
    uploader = Uploader(store, prefix, keep=2, before=lambda: seen.append(complete(store, prefix)))
    for step in (10, 20):
        uploader.submit(stage(step))
        uploader.drain(30)
    assert seen == [[], [10]]


def test_a_commit_is_told_once_it_is_true(store: Store, prefix: str, stage: Callable[[int], Staged]) -> None:
    told: list[tuple[int, list[int]]] = []
    uploader = Uploader(store, prefix, keep=2, before=lambda: None, committed=lambda step: told.append((step, complete(store, prefix))))
    for step in (10, 20):
        uploader.submit(stage(step))
        uploader.drain(30)
    assert told == [(10, [10]), (20, [20, 10])]
