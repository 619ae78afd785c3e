"""Mounted sources are found inside their volumes and nowhere else."""

from pathlib import Path

import pytest

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import ModelSpec, S3Storage
from finetune_runtime.s3.store import Store
from finetune_runtime.sources.dataset import SourceFile, fetch_dataset
from finetune_runtime.sources.model import RemoteFile, fetch_model, list_model, model_name, needed, read_part
from finetune_runtime.sources.mounts import mounted_path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_SOURCES", str(tmp_path / "sources"))
    return tmp_path / "sources"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A client that no test here makes talk: mounted sources need no server."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    return Store(S3Storage(uri="s3://models/x", endpoint="http://127.0.0.1:9"))


def write(path: Path, content: str = "{}\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_mounted_file_is_read_in_place(root: Path, store: Store, tmp_path: Path) -> None:
    path = write(root / "pvc/data/support/train.jsonl")
    assert fetch_dataset("pvc://data/support/train.jsonl", store, tmp_path / "scratch") == [SourceFile("pvc://data/support/train.jsonl", path)]
    assert not (tmp_path / "scratch").exists()


def test_directory_of_a_volume_stands_for_its_files_by_name_without_hidden_ones(root: Path, store: Store, tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/c.jsonl", ".DS_Store", "_SUCCESS", ".tmp/d.jsonl"):
        write(root / "pvc/data/support" / name)
    found = fetch_dataset("pvc://data/support/", store, tmp_path)
    assert [file.uri for file in found] == ["pvc://data/support/a/c.jsonl", "pvc://data/support/b.jsonl"]


def test_key_of_a_config_map_is_found_behind_the_links_of_the_kubelet(root: Path, store: Store, tmp_path: Path) -> None:
    volume = root / "configmap/rows"
    write(volume / "..2026_01_01/train.jsonl")
    (volume / "..data").symlink_to("..2026_01_01")
    (volume / "train.jsonl").symlink_to("..data/train.jsonl")
    assert [file.path for file in fetch_dataset("configmap://rows/train.jsonl", store, tmp_path)] == [volume / "train.jsonl"]


MISSING = {
    "configmap://rows/train.jsonl": "there is no ConfigMap rows with the key train.jsonl in the job's namespace. Create it and the job anew.",
    "pvc://data/none.jsonl": "the volume has no such file and no such directory with files in it.",
    "pvc://data/empty": "the volume has no such file and no such directory with files in it.",
}


@pytest.mark.parametrize("uri", MISSING)
def test_missing_dataset_names_uri_and_cure(root: Path, store: Store, tmp_path: Path, uri: str) -> None:
    (root / "pvc/data/empty").mkdir(parents=True)
    with pytest.raises(StepError) as caught:
        fetch_dataset(uri, store, tmp_path)
    assert (caught.value.code, caught.value.reason) == (Exit.DATA_INVALID, Reason.DATASET_NOT_FOUND)
    assert caught.value.message.startswith(f"{uri} does not exist: {MISSING[uri]}")


@pytest.mark.parametrize("uri", ["http://example.com/a.jsonl", "hf://owner/name", "/data/a.jsonl"])
def test_what_is_no_source_is_refused_with_the_list_of_those_that_are(store: Store, tmp_path: Path, uri: str) -> None:
    with pytest.raises(StepError, match="is not a dataset source: begin it with s3://, hf://datasets/, https://, pvc:// or configmap://") as caught:
        fetch_dataset(uri, store, tmp_path)
    assert caught.value.code is Exit.INVALID_CONFIG


@pytest.mark.parametrize("source", ["pvc://models/tiny", "pvc://models/tiny/"])
def test_part_of_a_mounted_models_file_is_read_in_place(root: Path, store: Store, source: str) -> None:
    write(root / "pvc/models/tiny/model.safetensors", "0123456789")
    assert read_part(ModelSpec(source=source), store, "model.safetensors", 4, 3) == b"456"
    assert read_part(ModelSpec(source=source), store, "model.safetensors", 8, 100) == b"89"


def test_path_must_stay_in_its_volume(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "secret")
    (root / "pvc/data").mkdir(parents=True)
    (root / "pvc/data/link").symlink_to(tmp_path / "secret")
    write(root / "pvc/data-of-others/file")
    for uri in ("pvc://data/../../../secret", "pvc://data/link", "pvc://data/../data-of-others/file", "configmap://rows/.."):
        with pytest.raises(StepError, match="leads out of its volume"):
            mounted_path(uri)


def test_network_sources_are_not_mounted() -> None:
    assert mounted_path("s3://data/train.jsonl") is None
    assert mounted_path("hf://Qwen/Qwen3-8B") is None


FILES = [
    RemoteFile(path, 1)
    for path in (
        "config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "qwen.tiktoken", "model.safetensors.index.json",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "pytorch_model.bin", "modeling_x.py", "README.md", "logo.png",
        "model.gguf", "original/consolidated.00.pth", "onnx/model.onnx",
    )
]  # fmt: skip
METADATA = ["config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "qwen.tiktoken", "model.safetensors.index.json"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("files", "metadata_only", "trusted", "expected"),
    [
        (FILES, True, False, METADATA),
        (FILES, False, False, METADATA + SHARDS),
        (FILES, True, True, [*METADATA, "modeling_x.py"]),
        (FILES, False, True, [*METADATA, "modeling_x.py", *SHARDS]),
        ([file for file in FILES if not file.path.endswith("safetensors")], False, True, [*METADATA, "modeling_x.py", "pytorch_model.bin"]),
        ([file for file in FILES if not file.path.endswith("safetensors")], False, False, METADATA),
    ],
)
def test_only_what_loading_needs_is_copied(files: list[RemoteFile], metadata_only: bool, trusted: bool, expected: list[str]) -> None:
    assert [file.path for file in needed(files, metadata_only=metadata_only, trust_remote_code=trusted)] == expected


@pytest.mark.parametrize(
    ("source", "name"),
    [("hf://Qwen/Qwen3-8B", "Qwen3-8B"), ("s3://models/base/Qwen3-8B/", "Qwen3-8B"), ("pvc://models/a/b", "b"), ("pvc://qwen3-0.6b", "qwen3-0.6b")],
)
def test_model_is_called_by_the_last_part_of_its_source(source: str, name: str) -> None:
    assert model_name(ModelSpec(source=source)) == name


def test_mounted_model_is_listed_and_used_in_place(root: Path, store: Store, tmp_path: Path) -> None:
    write(root / "pvc/models/tiny/config.json", "{}")
    write(root / "pvc/models/tiny/model.safetensors", "12345678")
    spec = ModelSpec(source="pvc://models/tiny")
    assert list_model(spec, store).files == (RemoteFile("config.json", 2), RemoteFile("model.safetensors", 8))
    assert fetch_model(spec, store, tmp_path / "dest", metadata_only=True) == root / "pvc/models/tiny"


@pytest.mark.parametrize("source", ["pvc://models/none", "pvc://none"])
def test_missing_model_names_its_source(root: Path, store: Store, tmp_path: Path, source: str) -> None:
    for call in (lambda spec: list_model(spec, store), lambda spec: fetch_model(spec, store, tmp_path)):
        with pytest.raises(StepError, match=f"{source} holds no files: the volume has no such directory") as caught:
            call(ModelSpec(source=source))
        assert (caught.value.code, caught.value.reason) == (Exit.MODEL_INVALID, Reason.MODEL_NOT_FOUND)
