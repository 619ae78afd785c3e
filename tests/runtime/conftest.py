"""A real S3 server, a real (tiny) model and configurations for the tests of the data plane."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import DATASET_DIR, Manifest
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit
from finetune_runtime.contract.spec import S3Storage
from finetune_runtime.s3.store import Store
from tests.runtime.serving import Learned, learn, pod_directory
from tests.runtime.support import CLINIC, DEFAULTS, ROOT, CommitRows, MakeConfig, Pods, Server, Step, merged, running_server

CACHE = Path(os.environ.get("FINETUNE_CACHE", Path.home() / ".cache/finetune-operator"))
VERSITYGW = Path(os.environ.get("VERSITYGW", CACHE / "bin/versitygw"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real S3 server for the whole session."""
    if not VERSITYGW.exists():
        pytest.fail(f"{VERSITYGW} is missing: build it with tests/devcluster/build or set VERSITYGW")
    with running_server(VERSITYGW, tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: Server) -> str:
    """Name of a new, empty bucket."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def s3_keys(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's keys in this process's environment, where a pod finds those of its Secret."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def storage(s3_server: Server, bucket: str, s3_keys: None) -> S3Storage:
    """Storage section of a job that writes to the test's bucket."""
    return S3Storage.model_validate({"uri": f"s3://{bucket}/models", "endpoint": s3_server.endpoint, "secretRef": {"name": "s3"}})


@pytest.fixture
def store(storage: S3Storage) -> Store:
    return Store(storage)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a Qwen3 with random weights and a real tokenizer, 0.8 MB. Read-only by agreement; copy it to break it."""
    directory = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    command: list[str | Path] = [sys.executable, ROOT / "tests/fixtures/make_tiny_model.py", directory, "--corpus", CLINIC]
    subprocess.run(command, check=True)
    return directory


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a pod has mounted below SOURCES_DIR: put files below pvc/CLAIM/ and configmap/NAME/."""
    directory = tmp_path / "sources"
    directory.mkdir()
    monkeypatch.setenv("FINETUNE_SOURCES", str(directory))
    return directory


@pytest.fixture
def job_config(storage: S3Storage, sources: Path, tiny_model: Path) -> MakeConfig:
    """Makes configurations of a short QLoRA job of the tiny model, which it has at pvc://models/tiny-qwen3."""
    shutil.copytree(tiny_model, sources / "pvc/models/tiny-qwen3")

    def make(**overrides: Any) -> JobConfig:
        return JobConfig.model_validate(merged(DEFAULTS | {"storage": storage.dump()}, overrides))

    return make


@pytest.fixture(scope="session")
def prepared(s3_server: Server, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """The dataset that the step prepare makes of 42 rows: 40 training rows, which are 20 steps of 4 in 2 epochs, and 2 validation rows."""
    directory = tmp_path_factory.mktemp("prepared")
    shutil.copytree(tiny_model, directory / "sources/pvc/models/tiny-qwen3")
    rows = directory / "sources/pvc/data/train.jsonl"
    rows.parent.mkdir()
    rows.write_text("".join(CLINIC.read_text().splitlines(keepends=True)[:42]))
    s3_server.client().create_bucket(Bucket="prepared")
    storage = S3Storage(uri="s3://prepared", endpoint=s3_server.endpoint)
    config = JobConfig.model_validate(DEFAULTS | {"storage": storage.dump()})
    Step("prepare", config, directory / "pod", s3_server.environment | {"FINETUNE_SOURCES": str(directory / "sources")}).end(Exit.DONE)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        manifest = artefacts.fetch(Store(storage), f"{config.prefix}/{DATASET_DIR}", directory / "dataset")
    return directory / "dataset", manifest


@pytest.fixture(scope="session")
def learned(s3_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """Adapters to serve, trained in the image."""
    return learn(s3_server, *(pod_directory(tmp_path_factory.mktemp(name)) for name in ("support", "rooms")))


@pytest.fixture
def commit_dataset(prepared: tuple[Path, Manifest], store: Store) -> Callable[[JobConfig], None]:
    """Puts the prepared dataset where a job looks for its own."""

    def commit(config: JobConfig) -> None:
        directory, manifest = prepared
        artefacts.commit(store, directory, f"{config.prefix}/{DATASET_DIR}", manifest.model_copy(update={"config_hash": config.config_hash()}))

    return commit


@pytest.fixture
def commit_rows(prepared: tuple[Path, Manifest], store: Store, tmp_path: Path) -> CommitRows:
    """Puts conversations for training and evaluation in the place of the prepared ones."""

    def commit(config: JobConfig, **rows: list[list[dict[str, str]]]) -> None:
        directory, manifest = prepared
        dataset = tmp_path / "rows"
        shutil.copytree(directory, dataset, dirs_exist_ok=True)
        for name, conversations in rows.items():
            (dataset / f"{name}.jsonl").write_text("".join(f"{json.dumps({'messages': messages})}\n" for messages in conversations))
        artefacts.commit(store, dataset, f"{config.prefix}/{DATASET_DIR}", manifest.model_copy(update={"config_hash": config.config_hash()}))

    return commit


@pytest.fixture
def pods(tmp_path: Path, s3_server: Server, sources: Path) -> Iterator[Pods]:
    found = Pods(tmp_path, s3_server.environment, [])
    yield found
    for step in found.started:
        if step.process.poll() is None:
            step.kill()


@pytest.fixture
def config(job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None]) -> JobConfig:
    """A job of 20 steps whose dataset is prepared."""
    made = job_config()
    commit_dataset(made)
    return made


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scratch volume of steps that run in this process."""
    monkeypatch.setenv("FINETUNE_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.fixture
def data(sources: Path) -> Path:
    """The volume data; holds the clinic's rows as train.jsonl."""
    volume = sources / "pvc/data"
    volume.mkdir(parents=True)
    shutil.copy(CLINIC, volume / "train.jsonl")
    return volume
