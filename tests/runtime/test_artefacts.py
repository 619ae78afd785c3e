"""Artefacts against a real S3 server: complete or not there, and never trusted blindly."""

from pathlib import Path

import pytest

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.contract.result import StepError
from finetune_runtime.s3.store import ObjectNotFound, Store


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "nested").mkdir(parents=True)
    (source / "weights.bin").write_bytes(b"weights" * 1000)
    (source / "nested/config.json").write_text("{}")
    return source


@pytest.fixture
def uri(bucket: str) -> str:
    return f"s3://{bucket}/models/team-a/support/uid/adapter"


def manifest(**fields: object) -> Manifest:
    return Manifest.model_validate({"kind": Kind.ADAPTER, "files": [], "config_hash": "h", "base_model": "hf://owner/model"} | fields)


def test_what_is_committed_is_fetched_byte_for_byte(store: Store, directory: Path, uri: str, tmp_path: Path) -> None:
    ref = artefacts.commit(store, directory, uri, manifest())
    fetched = artefacts.fetch(store, uri, tmp_path / "dest", ref.manifest_sha256)
    assert ref.uri == uri
    assert {entry.path for entry in fetched.files} == {"weights.bin", "nested/config.json"}
    for entry in fetched.files:
        assert (tmp_path / "dest" / entry.path).read_bytes() == (directory / entry.path).read_bytes()
    assert fetched.created_at


def test_files_without_a_manifest_are_not_an_artefact(store: Store, directory: Path, uri: str, tmp_path: Path) -> None:
    store.upload(directory / "weights.bin", f"{uri}/weights.bin")
    assert artefacts.load(store, uri) is None
    with pytest.raises(ObjectNotFound):
        artefacts.fetch(store, uri, tmp_path / "dest")


def test_the_same_content_is_committed_once(store: Store, directory: Path, uri: str) -> None:
    first = artefacts.commit(store, directory, uri, manifest())
    second = artefacts.commit(store, directory, uri, manifest(details={"attempt": 2}))
    assert second == first


def test_other_content_is_refused_and_the_artefact_stays_whole(store: Store, directory: Path, uri: str, tmp_path: Path) -> None:
    ref = artefacts.commit(store, directory, uri, manifest())
    (directory / "weights.bin").write_bytes(b"other")
    with pytest.raises(StepError, match="complete with other content"):
        artefacts.commit(store, directory, uri, manifest())
    artefacts.fetch(store, uri, tmp_path / "dest", ref.manifest_sha256)


def test_other_content_replaces_the_artefact_when_asked(store: Store, directory: Path, uri: str, tmp_path: Path) -> None:
    old = artefacts.commit(store, directory, uri, manifest())
    (directory / "weights.bin").write_bytes(b"other")
    new = artefacts.commit(store, directory, uri, manifest(), replace=True)
    assert new.manifest_sha256 != old.manifest_sha256
    artefacts.fetch(store, uri, tmp_path / "dest", new.manifest_sha256)
    assert (tmp_path / "dest/weights.bin").read_bytes() == b"other"


def test_an_unreadable_manifest_is_replaced_when_asked(store: Store, directory: Path, uri: str) -> None:
    store.put(f"{uri}/manifest.json", b"{broken")
    with pytest.raises(artefacts.ArtefactCorruptError):
        artefacts.commit(store, directory, uri, manifest())
    artefacts.commit(store, directory, uri, manifest(), replace=True)
    assert artefacts.load(store, uri) is not None


@pytest.mark.parametrize(
    ("damage", "case"),
    [
        (b"WEIGHTS" * 1000, "bytes of the right length"),
        (b"weights", "a truncated file"),
        (None, "a file that is gone"),
    ],
)
def test_a_damaged_file_is_found_and_not_left_behind(store: Store, directory: Path, uri: str, tmp_path: Path, damage: bytes | None, case: str) -> None:
    artefacts.commit(store, directory, uri, manifest())
    if damage is None:
        store.delete([f"{uri}/weights.bin"])
    else:
        store.put(f"{uri}/weights.bin", damage)
    with pytest.raises(artefacts.ArtefactCorruptError, match=r"weights\.bin"):
        artefacts.fetch(store, uri, tmp_path / "dest")
    assert not (tmp_path / "dest/weights.bin").exists(), case


def test_another_manifest_than_the_promised_one_is_refused(store: Store, directory: Path, uri: str, tmp_path: Path) -> None:
    artefacts.commit(store, directory, uri, manifest())
    with pytest.raises(artefacts.ArtefactCorruptError, match="not the manifest that was committed"):
        artefacts.fetch(store, uri, tmp_path / "dest", "0" * 64)
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize("path", ["../escape", "/etc/passwd", "nested/../../escape"])
def test_a_manifest_cannot_choose_a_place_outside_the_destination(store: Store, uri: str, tmp_path: Path, path: str) -> None:
    evil = manifest(files=[{"path": path, "size": 1, "sha256": "0" * 64}])
    store.put(f"{uri}/manifest.json", evil.encode())
    with pytest.raises(artefacts.ArtefactCorruptError, match="outside its directory"):
        artefacts.fetch(store, uri, tmp_path / "dest")


def test_files_that_are_right_already_are_kept_and_wrong_ones_fetched_again(store: Store, directory: Path, uri: str, tmp_path: Path) -> None:
    artefacts.commit(store, directory, uri, manifest())
    dest = tmp_path / "dest"
    artefacts.fetch(store, uri, dest)
    kept = (dest / "weights.bin").stat().st_ino
    (dest / "nested/config.json").write_text("[]")
    artefacts.fetch(store, uri, dest)
    assert (dest / "weights.bin").stat().st_ino == kept
    assert (dest / "nested/config.json").read_text() == "{}"


def test_only_complete_checkpoints_are_listed_newest_first(store: Store, directory: Path, bucket: str) -> None:
    prefix = f"s3://{bucket}/models/team-a/support/uid"
    for step in (5, 100, 20):
        artefacts.commit(store, directory, f"{prefix}/checkpoints/checkpoint-{step}", manifest(kind=Kind.CHECKPOINT, step=step))
    store.upload(directory / "weights.bin", f"{prefix}/checkpoints/checkpoint-200/weights.bin")
    store.put(f"{prefix}/checkpoints/checkpoint-300/manifest.json", b"{broken")
    artefacts.commit(store, directory, f"{prefix}/checkpoints/checkpoint-400-merged", manifest(kind=Kind.CHECKPOINT, step=400))
    assert [step for step, _, _ in artefacts.checkpoints(store, prefix)] == [100, 20, 5]


def test_a_deleted_artefact_is_gone_with_all_its_files(store: Store, directory: Path, uri: str, bucket: str) -> None:
    artefacts.commit(store, directory, uri, manifest())
    artefacts.delete(store, uri)
    assert list(store.list(f"s3://{bucket}/")) == []
