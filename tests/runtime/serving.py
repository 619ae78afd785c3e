"""Steps in containers of the images, for tests on a machine that has both of them."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_runtime.contract.base import Model
from finetune_runtime.contract.config import DRAINING, JobConfig, ServeConfig
from finetune_runtime.contract.result import StepResult
from finetune_runtime.contract.spec import S3Storage
from tests.runtime.support import CLINIC, DEFAULTS, ROOT, Server, answers, merged, wait_for

PORT = 8000
PATIENCE = 900  # seconds for a training or for an engine to load, on cores that others want as well
LEARNED = {"support": slice(0, 4), "rooms": slice(8, 12)}  # lines of the clinic's file that each adapter knows by heart


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
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*self.command, "--", "python3", "-m", "finetune_runtime", self.step], stdout=log, stderr=subprocess.STDOUT, process_group=0
            )

    def run(self) -> StepResult:
        code = self.start().wait(PATIENCE)
        assert code == 0, self.log.read_text()[-4000:]
        return StepResult.model_validate_json((self.directory / f"{self.step}.message").read_text())

    def ready(self) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*self.command, "--", "python3", "-m", "finetune_runtime", "ready"], capture_output=True, text=True, check=False)


def pod_directory(found: Path) -> Path:
    """Makes the directory writable for the images' user, with a scratch volume for each image."""
    for path in (found, *(found / name for name in ("sources", "sources/pvc", "sources/pvc/data"))):
        path.mkdir(exist_ok=True)
        path.chmod(0o777)
    for path in (found.parent, found.parent.parent):
        path.chmod(0o755)
    for name in ("trainer-test", "inference-cpu"):
        (found / f"scratch-{name}").mkdir()
        (found / f"scratch-{name}").chmod(0o777)
    return found


class Endpoint:
    """A serving pod whose engine can be started and ended."""

    def __init__(self, config: ServeConfig, directory: Path) -> None:
        self.config, self.pod = config, Pod("inference-cpu", "serve", config, directory, {})
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, until: Callable[["subprocess.CompletedProcess[str]"], bool]) -> None:
        """Until the answer of the readiness probe is as wanted."""
        process = self.process = self.pod.start()
        started = time.monotonic()
        wait_for("health", lambda: answers(f"http://127.0.0.1:{PORT}/health") or process.poll() is not None, PATIENCE)
        wait_for("readiness", lambda: until(self.pod.ready()) or process.poll() is not None, 60)
        print(f"ready after {time.monotonic() - started:.1f} s")
        assert process.poll() is None, self.pod.log.read_text()[-6000:]

    @property
    def draining(self) -> Path:
        """What the preStop hook makes."""
        return self.pod.directory / "scratch-inference-cpu" / DRAINING

    def stop(self) -> None:
        """As the kubelet does: the preStop hook, then SIGTERM for the engine's first process alone, which images/run.sh passes on."""
        self.draining.touch()
        if self.process:
            self.process.terminate()
            self.process.wait(90)


def is_ready(probe: "subprocess.CompletedProcess[str]") -> bool:
    return probe.returncode == 0


def post(path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


@dataclass(frozen=True)
class Learned:
    """Two adapters of different ranks on one tiny base: the job of the first, and references to both by their names."""

    job: JobConfig
    adapters: dict[str, dict[str, Any]]

    def serving(self, **fields: Any) -> ServeConfig:
        """Configuration of an endpoint of the first adapter with vLLM."""
        document = {
            "model": self.job.model.dump(),
            "storage": self.job.storage.dump(),
            "adapter": self.adapters["support"],
            "engine": "vLLM",
            "quantization": "AsTrained",
            "servedName": "support",
            "maxLength": 256,
            "allowCpu": True,
        }
        return ServeConfig.model_validate(document | fields)


def learn(s3_server: Server, directory: Path, elsewhere: Path) -> Learned:
    """Trains both in the bucket `learned`, each in a directory of its own, as pod_directory makes them."""
    make = ["python3", "/src/tests/fixtures/make_tiny_model.py", "/w/sources/tiny-qwen3", "--corpus", "/src/examples/clinic/support.jsonl"]
    mounts = ["--mount", f"{ROOT}:/src:ro", "--mount", f"{directory}:/w"]
    subprocess.run([str(ROOT / "images/run.sh"), "trainer-test", *mounts, "--", *make], check=True)
    s3_server.client().create_bucket(Bucket="learned")
    for path in (directory / "sources/tiny-qwen3").iterdir():
        s3_server.client().upload_file(str(path), "learned", f"base/tiny-qwen3/{path.name}")
    config = JobConfig.model_validate(
        merged(
            DEFAULTS | {"storage": S3Storage(uri="s3://learned", endpoint=s3_server.endpoint).dump()},
            {
                "model": {"source": "s3://learned/base/tiny-qwen3"},
                "dataset": {"validation": {"splitRatio": "0"}, "system": "You are the clinic's assistant."},
                "tuning": {"lora": {"dropout": "0"}},
                "training": {"epochs": 150, "learningRate": "3e-3", "loggingSteps": 50},
                "checkpoints": {"everySteps": 1000},
            },
        )
    )

    def train(name: str, rank: int, place: Path) -> dict[str, Any]:
        (place / "sources/pvc/data/train.jsonl").write_text("\n".join(CLINIC.read_text().splitlines()[LEARNED[name]]))
        changes = {"job": {"name": name, "uid": name}, "tuning": {"lora": {"rank": rank, "alpha": 2 * rank}}}
        job = JobConfig.model_validate(merged(config.dump(), changes))
        Pod("trainer-test", "prepare", job, place, s3_server.environment).run()
        result = Pod("trainer-test", "train", job, place, s3_server.environment).run()
        assert result.train is not None
        assert result.train.adapter is not None
        return result.train.adapter.dump()

    with ThreadPoolExecutor() as pool:  # each has work for one core
        return Learned(config, dict(zip(LEARNED, pool.map(train, LEARNED, (48, 32), (directory, elsewhere)), strict=True)))
