"""What the tests of the data plane share beside fixtures."""

import copy
import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import boto3
from botocore.config import Config

from finetune_runtime import artefacts
from finetune_runtime.contract.base import Model
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import StepResult
from finetune_runtime.s3.store import Store

ROOT = Path(__file__).parents[2]
CLINIC = ROOT / "examples/clinic/support.jsonl"
DEFAULTS: dict[str, Any] = {
    "job": {"namespace": "team-a", "name": "support", "uid": "0b7c6c1e-0000-4000-8000-000000000001"},
    "model": {"source": "pvc://models/tiny-qwen3", "type": "qwen3", "template": "qwen3"},
    "dataset": {"train": [{"source": "pvc://data/train.jsonl"}]},
    "tuning": {"lora": {"rank": 8, "alpha": 16}},
    "training": {"epochs": 2, "learningRate": "1e-3", "maxLength": 256, "effectiveBatchSize": 4, "evalSteps": 10},
    "checkpoints": {"everySteps": 5, "keep": 2},
    "allowCpu": True,
    "cpuThreads": 1,
}


@dataclass(frozen=True)
class Server:
    """A running S3 server and its root account."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )


@contextmanager
def running_server(versitygw: Path, data: Path) -> Iterator[Server]:
    """versitygw on a free port of the loopback interface; `data`, a directory that exists, needs a file system with user.* xattrs."""
    server = Server(f"http://127.0.0.1:{free_port()}", "tester", "only-for-tests")
    log = data.parent / "versitygw.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [versitygw, "posix", data],
            env={
                "ROOT_ACCESS_KEY": server.access_key,
                "ROOT_SECRET_KEY": server.secret_key,
                "VGW_PORT": server.endpoint.removeprefix("http://"),
                "VGW_HEALTH": "/healthz",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for("the S3 server's start", lambda: process.poll() is not None or answers(f"{server.endpoint}/healthz"))
        assert process.poll() is None, log.read_text()
        yield server
    finally:
        process.kill()  # asked to end, it waits for connections that killed pods have left
        process.wait()


class CommitRows(Protocol):
    """Makes conversations the dataset of a job: `train`, `val`."""

    def __call__(self, config: JobConfig, **rows: list[list[dict[str, str]]]) -> None: ...


def opening_hours(sentences: int) -> list[dict[str, str]]:
    """A conversation of about 4 tokens a sentence."""
    return [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": "We are open. " * sentences}]


class MakeConfig(Protocol):
    """job_config(training={"epochs": 1}, ...): a valid JobConfig; sections are merged into the defaults."""

    def __call__(self, **overrides: Any) -> JobConfig: ...


class Step:
    """`python3 -m finetune_runtime STEP` as a pod would run it, with its own scratch directory."""

    def __init__(self, step: str, config: Model, directory: Path, environment: Mapping[str, str], wrapper: Sequence[str] = ()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.message, self.log = directory / "termination-log", directory / "log"
        self.scratch = directory / "scratch"
        self.scratch.mkdir(exist_ok=True)
        (directory / "config.json").write_text(json.dumps(config.dump()))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*wrapper, sys.executable, "-m", "finetune_runtime", step],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(ROOT / "images/runtime"), *filter(None, [os.environ.get("PYTHONPATH")])]),
                    "FINETUNE_CONFIG": str(directory / "config.json"),
                    "FINETUNE_TERMINATION_LOG": str(self.message),
                    "FINETUNE_SCRATCH": str(self.scratch),
                    **environment,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, words: str, seconds: float = 240) -> None:
        """Waits until the log has these words."""
        wait_for(f"{words!r} in {self.log}", lambda: words in self.text() or self.process.poll() is not None, seconds)
        assert words in self.text(), self.text()[-4000:]

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, code: int, seconds: float = 300) -> StepResult:
        """The result of a step that must end with this code."""
        found = self.process.wait(seconds)
        assert found == code, f"exit code {found}: {self.text()[-6000:]}"
        return StepResult.model_validate_json(self.message.read_text())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@dataclass
class Pods:
    """Starts training pods of one job one after another, each with a scratch volume of its own, and ends what a failed test leaves."""

    directory: Path
    environment: dict[str, str]
    started: list[Step]

    def start(self, config: JobConfig, *, wrapper: Sequence[str] = (), **environment: str) -> Step:
        step = Step("train", config, self.directory / f"pod-{len(self.started)}", self.environment | environment, wrapper)
        self.started.append(step)
        return step


def tamper(directory: Path, code: str) -> str:
    """Has the training processes that get a plan for the fast path run `code` first. Returns the PYTHONPATH to start their pod with."""
    body = "".join(f"    {line}\n" for line in code.strip().splitlines())
    (directory / "sitecustomize.py").write_text(f"import os\nif 'FINETUNE_FAST_PLAN' in os.environ:\n{body}")
    return os.pathsep.join([str(directory), str(ROOT / "images/runtime"), *filter(None, [os.environ.get("PYTHONPATH")])])


# Code for `tamper`: a line in the log for each micro-batch that takes the fast path.
COUNT = """
from finetune_runtime.fastpath.graphs import Graphs
forward = Graphs.forward
def counted(self, batch):
    print("by hand")
    return forward(self, batch)
Graphs.forward = counted
"""
# Code for `tamper`: no room for the fast path, until there is the file FINETUNE_ROOM names (which the first process without room makes).
NO_ROOM = """
import pathlib
import torch
from finetune_runtime.fastpath.model import FastModel
room = pathlib.Path(os.environ["FINETUNE_ROOM"])
put_in_place = FastModel.__init__
def without_room(self, *args):
    if not room.exists():
        room.touch()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    put_in_place(self, *args)
FastModel.__init__ = without_room
"""


def metrics(store: Store, config: JobConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read(f"{config.prefix}/report/metrics.jsonl").splitlines()]


def steps(store: Store, config: JobConfig) -> list[int]:
    return [step for step, _, _ in artefacts.checkpoints(store, config.prefix)]


class Proxy:
    """A TCP proxy in front of the S3 server that can lose it, stop in the middle of a request, or be a slow line."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.down = False
        self.stall_on = b""  # a request with these bytes is not passed on, nor is anything after it on its connection
        self.stalled = threading.Event()
        self.bytes_per_second = math.inf  # of each connection, on the way to the server
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.down:
                client.close()
                continue
            server = socket.create_connection(self._target)
            threading.Thread(target=self._forward, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, False), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, to_server: bool) -> None:
        try:
            while data := source.recv(65536):
                if to_server and self.stall_on and self.stall_on in data:
                    self.stalled.set()
                    return
                if self.down:
                    break
                if to_server:
                    time.sleep(len(data) / self.bytes_per_second)
                target.sendall(data)
        except OSError:
            pass  # either side hung up
        for end in (source, target):
            end.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    """Polls until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {seconds} s")
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def is_kept(port: int, body: dict[str, Any] | None = None) -> bool:
    """Whether a connection outlives an answer, which has to come whole. `body`: of a chat completion; without one models are listed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        if body:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        else:
            connection.request("GET", "/v1/models")
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, content
        assert not (body or {}).get("stream") or content.endswith(b"data: [DONE]\n\n"), content
        return not response.will_close
    finally:
        connection.close()


def merged(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(base)
    for key, value in overrides.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
    return result
