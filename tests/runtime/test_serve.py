"""The serving pod with ms-swift's engine: fetch, serve, ready, as a pod runs them."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime import artefacts
from finetune_runtime.contract.config import DRAINING, AdapterRef, JobConfig, MergeConfig, ServeConfig
from finetune_runtime.contract.result import Exit, Reason
from finetune_runtime.contract.spec import S3Storage
from finetune_runtime.s3.store import Store
from tests.runtime.support import CLINIC, DEFAULTS, ROOT, Server, Step, is_kept, merged, wait_for

PORT = 8000
QUESTION = [{"role": "user", "content": "What are your opening hours?"}]


@dataclass(frozen=True)
class Trained:
    """A job that has been prepared and trained, and where its pods find things."""

    config: JobConfig
    adapter: AdapterRef
    environment: dict[str, str]
    rows: list[list[dict[str, str]]]

    def serving(self, **fields: Any) -> ServeConfig:
        document = {
            "model": self.config.model.dump(),
            "storage": self.config.storage.dump(),
            "adapter": self.adapter.dump(),
            "engine": "Swift",
            "quantization": "AsTrained",
            "servedName": "support",
            "maxLength": 256,
            "allowCpu": True,
        }
        return ServeConfig.model_validate(document | fields)


@pytest.fixture(scope="module")
def trained(s3_server: Server, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Four answers learned by heart, so that the served model has something to say."""
    directory = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny_model, directory / "sources/pvc/models/tiny-qwen3")
    lines = CLINIC.read_text().splitlines()[:4]
    (directory / "sources/pvc/data").mkdir()
    (directory / "sources/pvc/data/train.jsonl").write_text("\n".join(lines))
    s3_server.client().create_bucket(Bucket="by-heart")
    environment = s3_server.environment | {"FINETUNE_SOURCES": str(directory / "sources")}
    config = JobConfig.model_validate(
        merged(
            DEFAULTS | {"storage": S3Storage(uri="s3://by-heart", endpoint=s3_server.endpoint).dump()},
            {
                "dataset": {"validation": {"splitRatio": "0"}},
                "tuning": {"lora": {"rank": 64, "alpha": 128, "dropout": "0"}},
                "training": {"epochs": 150, "learningRate": "3e-3", "loggingSteps": 50},
                "checkpoints": {"everySteps": 1000},
            },
        )
    )
    Step("prepare", config, directory / "prepare", environment).end(Exit.DONE)
    result = Step("train", config, directory / "train", environment).end(Exit.DONE)
    assert result.train is not None
    assert result.train.adapter is not None
    return Trained(config, result.train.adapter, environment, [json.loads(line)["messages"] for line in lines])


@dataclass
class Endpoint:
    """A serving pod whose engine runs, once it was started."""

    directory: Path
    config: ServeConfig
    engine: Step | None = None

    def start(self) -> None:
        """Until it is ready."""
        self.engine = Step("serve", self.config, self.directory, {})
        wait_for("readiness", lambda: self.ready().returncode == 0 or self.ended(), 240)
        assert not self.ended(), self.engine.text()[-6000:]

    @property
    def draining(self) -> Path:
        """What the preStop hook makes."""
        return self.directory / "scratch" / DRAINING

    def stop(self) -> None:
        self.draining.touch()
        if self.engine:
            self.engine.process.terminate()
            self.engine.process.wait(60)

    def ended(self) -> bool:
        return self.engine is not None and self.engine.process.poll() is not None

    def ready(self) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "finetune_runtime", "ready"]
        paths = {
            "FINETUNE_CONFIG": str(self.directory / "config.json"),
            "FINETUNE_SCRATCH": str(self.directory / "scratch"),
            "FINETUNE_TERMINATION_LOG": str(self.directory / "termination-log"),
        }
        return subprocess.run(command, env=os.environ | paths | {"PYTHONPATH": str(ROOT / "images/runtime")}, capture_output=True, text=True, check=False)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    def answer(self, messages: list[dict[str, str]], model: str = "support", **options: Any) -> str:
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 64} | options
        return str(self.post("/v1/chat/completions", body)["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def endpoint(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    directory = tmp_path_factory.mktemp("endpoint")
    found = Endpoint(directory, trained.serving())
    Step("fetch", found.config, directory, trained.environment).end(Exit.DONE)
    try:
        found.start()
        yield found
    finally:
        found.stop()


def test_the_endpoint_lists_base_and_adapter(endpoint: Endpoint) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=10) as response:
        assert [model["id"] for model in json.load(response)["data"]] == ["base", "support"]


def test_the_adapter_answers_what_it_was_trained_to_answer(endpoint: Endpoint, trained: Trained) -> None:
    for question, answer in trained.rows:
        assert endpoint.answer([question]) == answer["content"]


def test_the_base_answers_something_else(endpoint: Endpoint, trained: Trained) -> None:
    assert endpoint.answer(QUESTION, model="base") != endpoint.answer(QUESTION)


def test_no_answer_begins_with_an_empty_think_block(endpoint: Endpoint) -> None:
    assert "<think>" not in endpoint.answer(QUESTION)
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions",
        json.dumps({"model": "support", "messages": QUESTION, "stream": True, "temperature": 0, "max_tokens": 8}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        assert "<think>" not in response.read().decode()


def test_what_users_ask_is_not_logged(endpoint: Endpoint) -> None:
    endpoint.answer([{"role": "user", "content": "a very private question"}])
    assert "very private" not in (endpoint.directory / "log").read_text()


def test_readiness_remembers_its_proof_and_then_asks_for_health_only(endpoint: Endpoint) -> None:
    assert (endpoint.directory / "scratch/.ready").exists()
    started = time.monotonic()
    assert endpoint.ready().returncode == 0
    assert time.monotonic() - started < 20


def test_the_engine_sees_the_prompts_that_the_training_had(endpoint: Endpoint) -> None:
    samples = json.loads((endpoint.directory / "scratch/adapter/parity.json").read_text())["samples"]
    assert [message["content"] for sample in samples for message in sample["messages"]].count(QUESTION[0]["content"]) == 1  # rows of the data are among them
    assert {sample["messages"][0]["role"] for sample in samples} == {"system", "user"}
    assert max(len(sample["messages"]) for sample in samples) > 2
    for sample in samples:
        body = {"model": "support", "messages": sample["messages"], "chat_template_kwargs": sample["options"]}
        assert endpoint.post("/tokenize", body)["tokens"] == sample["tokens"]


def test_a_seed_decides_an_answer_and_other_requests_are_left_to_chance(endpoint: Endpoint) -> None:
    sampled: dict[str, Any] = {"temperature": 1.5, "model": "base"}
    first = endpoint.answer(QUESTION, seed=7, **sampled)
    assert endpoint.answer(QUESTION, seed=7, **sampled) == first
    assert endpoint.answer(QUESTION, seed=8, **sampled) != first
    endpoint.answer(QUESTION, seed=7, **sampled)
    assert endpoint.answer(QUESTION, **sampled) != endpoint.answer(QUESTION, **sampled)


def test_while_the_pod_drains_every_answer_closes_its_connection(endpoint: Endpoint) -> None:
    question = {"model": "support", "messages": QUESTION, "max_tokens": 4}
    asked: list[dict[str, Any] | None] = [None, question, question | {"stream": True}]
    assert [is_kept(PORT, body) for body in asked] == [True] * 3
    endpoint.draining.touch()
    assert [is_kept(PORT, body) for body in asked] == [False] * 3
    assert endpoint.ready().returncode == 0
    endpoint.draining.unlink()


def test_a_name_that_is_not_served_is_not_ready(endpoint: Endpoint, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "config.json").write_text('{"servedName": "other"}')
    found = Endpoint(tmp_path, trained.serving()).ready()
    assert found.returncode == 1
    assert found.stdout == "not ready: the engine serves base, support but not other\n"


def test_a_second_engine_does_not_take_another_port(endpoint: Endpoint, trained: Trained, tmp_path: Path) -> None:
    Step("fetch", trained.serving(), tmp_path, trained.environment).end(Exit.DONE)
    result = Step("serve", trained.serving(), tmp_path, {}).end(Exit.CRASH)
    assert f"Port {PORT} is taken" in result.message


def test_without_a_gpu_nothing_is_served_unless_the_cpu_is_allowed(trained: Trained, tmp_path: Path) -> None:
    config = trained.serving(allowCpu=False)
    Step("fetch", config, tmp_path, trained.environment).end(Exit.DONE)
    assert Step("serve", config, tmp_path, {}).end(Exit.CRASH).reason == Reason.GPU_NOT_VISIBLE


@pytest.mark.parametrize(
    ("fields", "words", "case"),
    [
        ({"model": {"source": "pvc://models/another"}}, "its own base only", "an adapter of another base"),
        ({"adapter": {"uri": "s3://by-heart/nothing/here", "manifestSha256": "0" * 64}}, "no committed adapter", "no adapter"),
    ],
)
def test_fetch_refuses_what_cannot_be_served(trained: Trained, tmp_path: Path, fields: dict[str, Any], words: str, case: str) -> None:
    result = Step("fetch", trained.serving(**fields), tmp_path, trained.environment).end(Exit.INVALID_CONFIG)
    assert words in result.message, case


def test_fetch_refuses_an_adapter_with_another_digest(trained: Trained, tmp_path: Path) -> None:
    config = trained.serving(adapter={"uri": trained.adapter.uri, "manifestSha256": "0" * 64})
    result = Step("fetch", config, tmp_path, trained.environment).end(Exit.STORAGE_UNAVAILABLE)
    assert "not the manifest that was committed" in result.message


def test_fetch_refuses_what_is_no_adapter(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in trained.environment.items():
        monkeypatch.setenv(name, value)
    dataset = artefacts.committed(Store(trained.config.storage), f"{trained.config.prefix}/dataset")
    assert dataset is not None
    result = Step("fetch", trained.serving(adapter=dataset[1].dump()), tmp_path, trained.environment).end(Exit.INVALID_CONFIG)
    assert "not an Adapter" in result.message


def test_fetching_again_keeps_to_what_was_committed(trained: Trained, tmp_path: Path) -> None:
    for _ in range(2):  # an init container may be restarted
        Step("fetch", trained.serving(), tmp_path, trained.environment).end(Exit.DONE)
    assert (tmp_path / "scratch/model/config.json").exists()
    assert {path.name for path in (tmp_path / "scratch/adapter").iterdir()} >= {"adapter_model.safetensors", "chat_template.jinja"}


def test_after_a_restart_the_same_seed_gives_the_same_bytes(endpoint: Endpoint) -> None:
    asked: list[dict[str, Any]] = [{"model": model, "temperature": 1.5, "seed": seed} for model in ("base", "support") for seed in (1, 2)]
    before = [endpoint.answer(QUESTION, **options) for options in asked]
    endpoint.stop()
    endpoint.start()
    assert is_kept(PORT), "the drain was that of the engine before"
    assert [endpoint.answer(QUESTION, **options) for options in asked] == before


def test_a_merged_version_is_served_alone_and_answers_as_trained(endpoint: Endpoint, trained: Trained, tmp_path: Path) -> None:
    fields = {"model": trained.config.model.dump(), "storage": trained.config.storage.dump(), "adapter": trained.adapter.dump()}
    merging = MergeConfig.model_validate(fields | {"uri": "s3://by-heart/support/merged"})
    result = Step("merge", merging, tmp_path / "merge", trained.environment).end(Exit.DONE)
    assert result.merged is not None
    config = trained.serving(quantization="Merged", merged=result.merged.dump())
    endpoint.stop()
    Step("fetch", config, tmp_path / "pod", trained.environment).end(Exit.DONE)
    alone = Endpoint(tmp_path / "pod", config)
    try:
        alone.start()
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=10) as response:
            assert [model["id"] for model in json.load(response)["data"]] == ["support"]
        question, answer = trained.rows[0]
        assert alone.answer([question]) == answer["content"]
    finally:
        alone.stop()
    endpoint.start()


def test_a_chat_template_that_is_not_that_of_the_training_is_not_ready(endpoint: Endpoint) -> None:
    """Last, because it leaves an engine behind that is never ready."""
    template = endpoint.directory / "scratch/adapter/chat_template.jinja"
    template.write_text("{{- 'Hello. ' -}}" + template.read_text())
    endpoint.stop()
    endpoint.engine = Step("serve", endpoint.config, endpoint.directory, {})
    wait_for("a comparison", lambda: "sample" in endpoint.ready().stdout or endpoint.ended(), 240)
    found = endpoint.ready()
    assert found.returncode == 1
    assert found.stdout.startswith("not ready: the engine does not see the prompt that the training had: sample 1 of")
