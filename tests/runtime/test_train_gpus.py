"""Trainings of several processes, as on several GPUs: here on the CPU, where they sum by gloo."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit, Reason
from finetune_runtime.s3.store import Store
from tests.runtime.support import CommitRows, MakeConfig, Pods, Step, metrics, opening_hours, steps


@pytest.fixture
def job(job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None]) -> MakeConfig:
    """Makes jobs of 10 steps of 4 rows without dropout, each with a UID of its own."""
    made: list[JobConfig] = []

    def make(**overrides: Any) -> JobConfig:
        uid = f"0b7c6c1e-0000-4000-8000-{len(made):012d}"
        training = {"epochs": 1, "evalSteps": 5, "gradientCheckpointing": "Off"} | overrides.pop("training", {})
        made.append(job_config(job={"uid": uid}, tuning={"lora": {"dropout": "0"}}, training=training, **overrides))
        commit_dataset(made[-1])
        return made[-1]

    return make


def curves(store: Store, config: JobConfig) -> tuple[dict[int, float], dict[int, float]]:
    """Training and evaluation losses by step."""
    losses, evaluations = ({record["step"]: record[name] for record in metrics(store, config) if name in record} for name in ("loss", "evalLoss"))
    return losses, evaluations


def process(pod: Step, rank: int) -> int:
    """Number of the training process of this rank."""
    for child in Path(f"/proc/{pod.process.pid}/task/{pod.process.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"there is no process of rank {rank}")


@pytest.mark.parametrize("fast", [pytest.param("Off", marks=pytest.mark.long), "Required"])
def test_two_processes_learn_what_one_learns(pods: Pods, job: MakeConfig, store: Store, fast: str) -> None:
    one, two = (job(gpus=count, training={"fastPath": fast, "microBatchSize": 2}) for count in (1, 2))
    for config in (one, two):
        train = pods.start(config).end(Exit.DONE).train
        assert train is not None
        assert (train.step, train.total_steps, train.micro_batch) == (10, 10, 2)
    (losses, evaluations), found = curves(store, one), curves(store, two)
    assert found[0] == pytest.approx(losses, abs=0.01)
    assert found[1] == pytest.approx(evaluations, abs=0.01)
    assert len(json.loads(store.read(f"{two.prefix}/report/answers.json"))["answers"]) == 2


@pytest.mark.parametrize("fast", [pytest.param("Off", marks=pytest.mark.long), "Required"])
def test_sigterm_commits_one_checkpoint_of_both_and_one_process_goes_on_from_it(pods: Pods, job: MakeConfig, store: Store, fast: str) -> None:
    unbroken, broken = (job(gpus=count, training={"fastPath": fast, "epochs": 2, "evalSteps": 50}, checkpoints={"everySteps": 50}) for count in (1, 2))
    pods.start(unbroken).end(Exit.DONE)
    pod = pods.start(broken)
    pod.wait_for("'global_step/max_steps': '7/20'")
    pod.process.terminate()
    interrupted = pod.end(Exit.INTERRUPTED).train
    assert interrupted is not None
    assert steps(store, broken) == [interrupted.step]
    names = {item.uri.rpartition("/")[2] for item in store.list(f"{broken.prefix}/checkpoints/checkpoint-{interrupted.step}/")}
    assert names >= {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt", "adapter_model.safetensors"}

    resumed = pods.start(broken.model_copy(update={"gpus": 1})).end(Exit.DONE).train
    assert resumed is not None
    assert (resumed.resumed_from, resumed.step) == (interrupted.step, 20)
    assert curves(store, broken)[0] == pytest.approx(curves(store, unbroken)[0], abs=0.01)


def test_a_process_that_dies_ends_the_pod_and_the_next_one_goes_on(pods: Pods, job: MakeConfig, store: Store) -> None:
    config = job(gpus=2, training={"fastPath": "Off", "epochs": 2})
    pod = pods.start(config)
    pod.wait_for("checkpoint 5 committed")
    started = time.monotonic()
    os.kill(process(pod, 1), signal.SIGKILL)
    result = pod.end(Exit.CRASH, 60)
    assert time.monotonic() - started < 30
    assert (result.reason, "SIGKILL" in result.message) == (Reason.TRAINING_CRASHED, True)
    committed = steps(store, config)[0]
    resumed = pods.start(config).end(Exit.DONE).train
    assert resumed is not None
    assert (resumed.resumed_from, resumed.step) == (committed, 20)


@pytest.mark.long
def test_both_stop_early_and_the_best_checkpoint_becomes_the_adapter(pods: Pods, job: MakeConfig, store: Store) -> None:
    overshooting = {"learningRate": "0.1", "epochs": 4, "earlyStopping": {"patience": 1}, "fastPath": "Required"}
    config = job(gpus=2, training=overshooting, checkpoints={"use": "Best"})
    train = pods.start(config).end(Exit.DONE).train
    assert train is not None
    evaluations = curves(store, config)[1]
    assert (train.stopped_early, train.step) == (True, max(evaluations))
    assert train.adapter_step == min(evaluations, key=lambda step: evaluations[step])


@pytest.mark.long
def test_sigterm_in_a_long_evaluation_saves_the_step_before_it(pods: Pods, job_config: MakeConfig, commit_rows: CommitRows) -> None:
    training = {"epochs": 1, "effectiveBatchSize": 20, "microBatchSize": 1, "maxLength": 4096, "evalSteps": 1, "fastPath": "Off"}
    config = job_config(gpus=2, training=training, checkpoints={"everySteps": 4})
    commit_rows(config, val=[opening_hours(800)] * 200)
    pod = pods.start(config, FINETUNE_EVALUATION_PATIENCE="1")
    pod.wait_for("'global_step/max_steps': '1/2'")
    pod.process.terminate()
    train = pod.end(Exit.INTERRUPTED, 120).train
    assert train is not None
    assert (train.step, train.committed_step) == (1, 1)
    assert "eval_runtime" not in pod.text()
