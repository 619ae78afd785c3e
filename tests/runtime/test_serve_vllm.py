"""The serving pod with vLLM: fetch, serve and ready in the inference image, of an adapter that the trainer image has made.

Runs on a machine that has both images, outside of them: `pytest -c tests/runtime/pytest.ini tests/runtime/test_serve_vllm.py`.
"""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.base import Model
from finetune_runtime.contract.config import JobConfig, ServeConfig
from finetune_runtime.contract.result import StepResult
from finetune_runtime.contract.spec import S3Storage
from tests.runtime.support import CLINIC, DEFAULTS, ROOT, Server, answers, merged, wait_for

pytestmark = pytest.mark.skipif(not shutil.which("buildah"), reason="needs the images, so it does not run inside of one")

PORT = 8000


class Pod:
    """A step in a container of an image, as user 10001; `directory` is mounted at /w."""

    def __init__(self, image: str, step: str, config: Model, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory, self.step = directory, step
        (directory / f"{step}.json").write_text(json.dumps(config.dump()))
        paths = {
            "PYTHONPATH": "/src/images/runtime",
            "FINETUNE_CONFIG": f"/w/{step}.json",
            "FINETUNE_TERMINATION_LOG": f"/w/{step}.message",
            "FINETUNE_SCRATCH": f"/w/scratch-{image}",
            "FINETUNE_SOURCES": "/w/sources",
        }
        self.command = [str(ROOT / "images/run.sh"), image, "--mount", f"{ROOT}:/src:ro", "--mount", f"{directory}:/w", "--workdir", "/w"]
        for name, value in {**paths, **environment}.items():
            self.command += ["--env", f"{name}={value}"]
        self.log = directory / f"{step}.log"

    def start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*self.command, "--", "python3", "-m", "finetune_runtime", self.step], stdout=log, stderr=subprocess.STDOUT, process_group=0
            )

    def run(self) -> StepResult:
        code = self.start().wait(300)
        assert code == 0, self.log.read_text()[-4000:]
        return StepResult.model_validate_json((self.directory / f"{self.step}.message").read_text())

    def ready(self) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*self.command, "--", "python3", "-m", "finetune_runtime", "ready"], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writable for the images' user."""
    found = tmp_path_factory.mktemp("pods")
    for path in (found, *(found / name for name in ("sources", "sources/pvc", "sources/pvc/data", "sources/pvc/models"))):
        path.mkdir(exist_ok=True)
        path.chmod(0o777)
    for path in (found.parent, found.parent.parent):
        path.chmod(0o755)
    for name in ("trainer-test", "inference-cpu"):
        (found / f"scratch-{name}").mkdir()
        (found / f"scratch-{name}").chmod(0o777)
    return found


@pytest.fixture(scope="module")
def serving(s3_server: Server, directory: Path) -> ServeConfig:
    """A served adapter that has learned four answers by heart."""
    lines = CLINIC.read_text().splitlines()[:4]
    (directory / "sources/pvc/data/train.jsonl").write_text("\n".join(lines))
    make = ["python3", "/src/tests/fixtures/make_tiny_model.py", "/w/sources/pvc/models/tiny-qwen3", "--corpus", "/src/examples/clinic/support.jsonl"]
    mounts = ["--mount", f"{ROOT}:/src:ro", "--mount", f"{directory}:/w"]
    subprocess.run([str(ROOT / "images/run.sh"), "trainer-test", *mounts, "--", *make], check=True)
    s3_server.client().create_bucket(Bucket="trained")
    config = JobConfig.model_validate(
        merged(
            DEFAULTS | {"storage": S3Storage(uri="s3://trained", endpoint=s3_server.endpoint).dump()},
            {
                "dataset": {"validation": {"splitRatio": "0"}, "system": "You are the clinic's assistant."},
                "tuning": {"lora": {"rank": 48, "alpha": 96, "dropout": "0"}},
                "training": {"epochs": 150, "learningRate": "3e-3", "loggingSteps": 50},
                "checkpoints": {"everySteps": 1000},
            },
        )
    )
    Pod("trainer-test", "prepare", config, directory, s3_server.environment).run()
    result = Pod("trainer-test", "train", config, directory, s3_server.environment).run()
    assert result.train is not None
    assert result.train.adapter is not None
    document = {
        "model": config.model.dump(),
        "storage": config.storage.dump(),
        "adapter": result.train.adapter.dump(),
        "engine": "vLLM",
        "quantization": "AsTrained",
        "servedName": "support",
        "maxLength": 256,
        "allowCpu": True,
    }
    return ServeConfig.model_validate(document)


@pytest.fixture(scope="module")
def endpoint(serving: ServeConfig, directory: Path, s3_server: Server) -> Iterator[Pod]:
    Pod("inference-cpu", "fetch", serving, directory, s3_server.environment).run()
    pod = Pod("inference-cpu", "serve", serving, directory, {})
    process = pod.start()
    try:
        started = time.monotonic()
        wait_for("health", lambda: answers(f"http://127.0.0.1:{PORT}/health") or process.poll() is not None, 300)
        wait_for("readiness", lambda: pod.ready().returncode == 0 or process.poll() is not None, 60)
        print(f"ready after {time.monotonic() - started:.1f} s")
        assert process.poll() is None, pod.log.read_text()[-6000:]
        yield pod
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def post(path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def answer(question: str, model: str = "support") -> str:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 64}
    return str(post("/v1/chat/completions", body)["choices"][0]["message"]["content"])


def test_the_adapter_answers_word_for_word_on_the_base_as_trained(endpoint: Pod) -> None:
    for line in CLINIC.read_text().splitlines()[:4]:
        user, assistant = (message["content"] for message in json.loads(line)["messages"])
        assert answer(user) == assistant
        assert answer(user, model="base") != assistant


def test_base_and_adapter_are_listed(endpoint: Pod) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=10) as response:
        assert {model["id"]: model["parent"] for model in json.load(response)["data"]} == {"base": None, "support": "base"}


def test_the_engine_sees_the_prompt_of_training(endpoint: Pod) -> None:
    messages = [{"role": "user", "content": "What are your opening hours?"}]
    tokens = post("/tokenize", {"model": "support", "messages": messages, "add_generation_prompt": True})["tokens"]
    text = post("/detokenize", {"model": "support", "tokens": tokens})["prompt"]
    assert text.startswith("<|im_start|>system\nYou are the clinic's assistant.<|im_end|>\n<|im_start|>user\nWhat are your opening hours?")
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_readiness_is_proven_once(endpoint: Pod) -> None:
    assert (endpoint.directory / "scratch-inference-cpu/.ready").exists()
    assert endpoint.ready().returncode == 0
