"""Tests that need a CUDA GPU, with the fixtures of the data plane's tests. `make gpu` runs them wherever there is one."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit
from tests.runtime.support import ROOT, MakeConfig, Server, Step

pytest_plugins = ["tests.runtime.conftest"]


@pytest.fixture
def run(tmp_path: Path, s3_server: Server) -> Iterator[Callable[[str, JobConfig], Step]]:
    """Starts a step as a pod would; ends what a failed test leaves."""
    started: list[Step] = []

    def start(step: str, config: JobConfig) -> Step:
        started.append(Step(step, config, tmp_path / f"pod-{len(started)}", s3_server.environment))
        return started[-1]

    yield start
    for step in started:
        if step.process.poll() is None:
            step.kill()


@pytest.fixture(scope="session")
def middle_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 whose activations, not its weights, need gigabytes: 8 layers, hidden size 2048."""
    directory = tmp_path_factory.mktemp("middle")
    words = [str(n) for n in range(1000)]
    rows = [" ".join(random.Random(n).choices(words, k=420)) for n in range(66)]
    corpus = directory / "rows.jsonl"
    corpus.write_text("".join(json.dumps({"query": f"Row {n}?", "response": row}) + "\n" for n, row in enumerate(rows)))
    command: list[Any] = [
        sys.executable,
        ROOT / "tests/fixtures/make_tiny_model.py",
        directory / "model",
        "--corpus",
        corpus,
        "--layers",
        "8",
        "--hidden",
        "2048",
        "--head-dim",
        "128",
    ]
    subprocess.run(command, check=True)
    return directory


@pytest.fixture
def big(job_config: MakeConfig, sources: Path, middle_model: Path, run: Callable[[str, JobConfig], Step]) -> JobConfig:
    """A prepared job of 8 steps of 16 long rows, in ms-swift's own way and without recomputing activations."""
    shutil.copytree(middle_model / "model", sources / "pvc/models/middle")
    (sources / "pvc/data").mkdir(exist_ok=True)
    shutil.copy(middle_model / "rows.jsonl", sources / "pvc/data/train.jsonl")
    training = {"epochs": 2, "effectiveBatchSize": 16, "maxLength": 2048, "gradientCheckpointing": "Off", "fastPath": "Off"}
    config = job_config(model={"source": "pvc://models/middle"}, training=training, allowCpu=False)
    run("prepare", config).end(Exit.DONE)
    return config
