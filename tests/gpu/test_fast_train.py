"""Whole trainings on the fast path on a GPU, as pods run them; some need two."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_runtime import artefacts
from finetune_runtime.contract.base import parse_quantity
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit, Reason, TrainSummary
from finetune_runtime.contract.spec import FastPath, Toggle
from finetune_runtime.s3.store import Store
from tests.gpu.occupied import GIB, only
from tests.runtime.support import COUNT, NO_ROOM, MakeConfig, Step, metrics, steps, tamper

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

Run = Callable[[str, JobConfig], Step]

# Code for `tamper`: at the tenth micro-batch, long after the first step, a layer comes to keep less.
GIVE_WAY = """
import torch
from finetune_runtime.fastpath.graphs import Graphs
forward, calls = Graphs.forward, []
def late(self, batch):
    calls.append(None)
    if len(calls) == 10:
        self._model._keep_less(torch.OutOfMemoryError("a test's"), range(len(self._model.keep)))
    return forward(self, batch)
Graphs.forward = late
"""


@pytest.fixture
def job(job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None]) -> MakeConfig:
    """Makes jobs that require the fast path, each with a UID of its own."""
    made: list[JobConfig] = []

    def make(**overrides: Any) -> JobConfig:
        training = {"fastPath": "Required"} | overrides.pop("training", {})
        made.append(job_config(job={"uid": f"0b7c6c1e-0000-4000-8000-{len(made):012d}"}, allowCpu=False, training=training, **overrides))
        commit_dataset(made[-1])
        return made[-1]

    return make


@pytest.fixture
def fast(big: JobConfig, run: Run) -> JobConfig:
    """The job of long rows, whose activations take gigabytes, on the fast path with whatever layers may keep."""
    training = big.training.model_copy(update={"fast_path": FastPath.REQUIRED, "gradient_checkpointing": Toggle.AUTO})
    config = big.model_copy(update={"job": big.job.model_copy(update={"uid": "0b7c6c1e-0000-4000-8000-000000000099"}), "training": training})
    run("prepare", config).end(Exit.DONE)
    return config


def trained(step: Step, seconds: float = 300) -> TrainSummary:
    train = step.end(Exit.DONE, seconds).train
    assert train is not None
    assert train.fast_path is not None
    assert train.fast_path.used
    return train


def losses(store: Store, config: JobConfig) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in metrics(store, config) if "loss" in record}


def test_it_trains_and_says_what_was_chosen(job: MakeConfig, run: Run, store: Store) -> None:
    config = job()
    train = trained(run("train", config))
    assert (train.step, train.total_steps) == (20, 20)
    chosen = train.fast_path
    assert chosen is not None
    assert (chosen.micro_batch_size or 0) * (chosen.accumulation or 0) == config.training.effective_batch_size
    assert chosen.layers
    assert 0 < parse_quantity(chosen.measured or "0") < parse_quantity(chosen.budget or "0")
    assert all(record["gpuMemoryGiB"] > 0 for record in metrics(store, config) if "loss" in record)
    assert f"used: {chosen.micro_batch_size} x {chosen.accumulation} rows" in store.read(f"{config.prefix}/report/report.html").decode()
    assert train.adapter is not None
    manifest = artefacts.load(store, train.adapter.uri)
    assert manifest is not None
    assert manifest.details["fastPath"]["used"] is True
    assert len(json.loads(store.read(f"{config.prefix}/report/answers.json"))["answers"]) == 2


def test_sigterm_saves_and_the_next_pod_learns_what_the_unbroken_one_learned(job: MakeConfig, run: Run, store: Store) -> None:
    unbroken, broken = (job(training={"epochs": 10}) for _ in range(2))
    trained(run("train", unbroken))
    pod = run("train", broken)
    pod.wait_for("checkpoint-10")
    pod.process.terminate()
    interrupted = pod.end(Exit.INTERRUPTED).train
    assert interrupted is not None
    assert interrupted.committed_step == interrupted.step >= 10
    assert trained(run("train", broken)).resumed_from == interrupted.step
    assert losses(store, broken) == pytest.approx(losses(store, unbroken), abs=0.05)


def test_memory_that_goes_after_the_plan_was_made_is_no_end(fast: JobConfig, run: Run) -> None:
    pod = run("train", fast)
    pod.wait_for("starting ")
    with only(3 * GIB):
        train = trained(pod, 500)
    assert train.step == train.total_steps == 8
    assert "out of memory" in pod.text()


def test_every_micro_batch_takes_the_fast_path_also_after_evaluations(job: MakeConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", tamper(tmp_path, COUNT))
    pod = run("train", job(training={"evalSteps": 5}))  # in an epoch of ten steps, and at its end, where loaders are made anew
    train = trained(pod)
    assert train.fast_path is not None
    assert pod.text().count("by hand") == 20 * (train.fast_path.accumulation or 0)


def test_layers_that_give_way_at_a_later_step_are_shown_and_remembered(
    job: MakeConfig, run: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", tamper(tmp_path, GIVE_WAY))
    config = job()
    train = trained(run("train", config))
    assert train.fast_path is not None
    assert "keep their input" in train.fast_path.layers
    assert artefacts.checkpoints(store, config.prefix)[0][2].details["fastPath"]["steppedDown"] is True


def test_memory_that_runs_out_while_it_is_put_in_place_is_followed_by_a_smaller_plan(
    job: MakeConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", tamper(tmp_path, NO_ROOM))
    monkeypatch.setenv("FINETUNE_ROOM", str(tmp_path / "room"))
    pod = run("train", job())
    assert trained(pod).step == 20
    assert "out of memory: going on with less" in pod.text()


def test_it_stops_early_and_stays_stopped(job: MakeConfig, run: Run, store: Store) -> None:
    config = job(training={"learningRate": "0.1", "epochs": 4, "evalSteps": 5, "earlyStopping": {"patience": 1}}, checkpoints={"use": "Best"})
    train = trained(run("train", config))
    evaluations = {record["step"]: record["evalLoss"] for record in metrics(store, config) if "evalLoss" in record}
    assert (train.stopped_early, train.step, train.adapter_step) == (True, max(evaluations), min(evaluations, key=lambda step: evaluations[step]))


@two_gpus
@pytest.mark.parametrize("wanted", ["Required", "Off"])
def test_two_gpus_learn_what_one_learns(job: MakeConfig, run: Run, store: Store, wanted: str) -> None:
    one, two = (job(gpus=count, tuning={"lora": {"dropout": "0"}}, training={"fastPath": wanted}) for count in (1, 2))
    for config in (one, two):
        train = run("train", config).end(Exit.DONE).train
        assert train is not None
        assert (train.step, train.total_steps) == (20, 20)
        assert (train.fast_path is not None and train.fast_path.used) == (wanted == "Required")
    assert losses(store, two) == pytest.approx(losses(store, one), abs=0.05)


@two_gpus
def test_sigterm_reaches_both_and_one_goes_on(job: MakeConfig, run: Run, store: Store) -> None:
    config = job(gpus=2, training={"epochs": 10})
    pod = run("train", config)
    pod.wait_for("checkpoint-10")
    pod.process.send_signal(signal.SIGTERM)
    interrupted = pod.end(Exit.INTERRUPTED).train
    assert interrupted is not None
    assert steps(store, config)[0] == interrupted.committed_step == interrupted.step
    assert trained(run("train", config.model_copy(update={"gpus": 1}))).resumed_from == interrupted.step


@two_gpus
def test_a_process_that_is_killed_does_not_leave_the_other_waiting(job: MakeConfig, run: Run) -> None:
    pod = run("train", job(gpus=2, training={"epochs": 40}))
    pod.wait_for("checkpoint 5 committed")
    children = Path(f"/proc/{pod.process.pid}/task/{pod.process.pid}/children").read_text().split()
    [second] = [child for child in children if b"RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")]
    started = time.monotonic()
    os.kill(int(second), signal.SIGKILL)
    assert pod.end(Exit.CRASH, 120).reason == Reason.TRAINING_CRASHED
    assert time.monotonic() - started < 60


@two_gpus
def test_the_fuller_gpu_decides(fast: JobConfig, run: Run) -> None:
    with only(6 * GIB, device=1):
        train = trained(run("train", fast.model_copy(update={"gpus": 2})), 500)
    assert train.step == 8
    assert train.fast_path is not None
    assert parse_quantity(train.fast_path.measured or "0") < parse_quantity(train.fast_path.budget or "0") < 6 * GIB


@two_gpus
def test_memory_that_runs_out_on_one_gpu_is_out_of_memory(fast: JobConfig, run: Run) -> None:
    with only(GIB, device=1):
        result = run("train", fast.model_copy(update={"gpus": 2})).end(Exit.OUT_OF_MEMORY, 500)
    assert result.reason == Reason.OUT_OF_MEMORY
