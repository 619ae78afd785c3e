"""The train step on a real GPU: 4-bit QLoRA, memory that runs out, and interruption."""

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from finetune_runtime import artefacts
from finetune_runtime.contract.base import parse_quantity
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit, Reason
from finetune_runtime.contract.spec import FastPath
from finetune_runtime.s3.store import Store
from tests.gpu.occupied import GIB, only
from tests.runtime.support import MakeConfig, Step


def test_the_tiny_job_trains_on_the_gpu_and_reports_its_memory(
    job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], run: Callable[[str, JobConfig], Step], store: Store
) -> None:
    config = job_config(allowCpu=False)
    commit_dataset(config)
    train = run("train", config).end(Exit.DONE).train
    assert train is not None
    assert (train.step, train.total_steps) == (20, 20)
    records = [json.loads(line) for line in store.read(f"{config.prefix}/report/metrics.jsonl").splitlines()]
    assert all(record["gpuMemoryGiB"] > 0 for record in records if "loss" in record)
    assert train.adapter is not None
    assert artefacts.load(store, train.adapter.uri) is not None
    answers = json.loads(store.read(f"{config.prefix}/report/answers.json"))["answers"]
    assert [set(answer) for answer in answers] == [{"prompt", "expected", "base", "tuned"}] * 2  # as many as there are validation rows
    assert all(answer["base"] and answer["tuned"] for answer in answers)
    assert b"</html>" in store.read(f"{config.prefix}/report/report.html")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"tuning": {"quantization": {"bits": 8}}}, id="8 bits"),
        pytest.param({"tuning": {"method": "LoRA"}}, id="16 bits"),
        pytest.param({"training": {"extraArgs": {"optim": "paged_adamw_8bit", "warmup_ratio": "0.1"}}}, id="a paged 8-bit optimizer"),
        pytest.param({"training": {"learningRate": "0.03", "evalSteps": 5, "earlyStopping": {"patience": 1}}, "checkpoints": {"use": "Best"}}, id="early stop"),
    ],
)
def test_other_kinds_of_jobs_train_on_the_gpu_too(
    job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], run: Callable[[str, JobConfig], Step], store: Store, overrides: dict[str, Any]
) -> None:
    config = job_config(allowCpu=False, **overrides)
    commit_dataset(config)
    train = run("train", config).end(Exit.DONE).train
    assert train is not None
    assert train.adapter is not None
    assert train.stopped_early or train.step == train.total_steps
    assert artefacts.load(store, train.adapter.uri) is not None


def test_a_roomy_gpu_gets_the_largest_micro_batch(big: JobConfig, run: Callable[[str, JobConfig], Step]) -> None:
    roomy = run("train", big).end(Exit.DONE, 300)
    assert roomy.train is not None
    assert roomy.train.micro_batch == 8


def test_a_smaller_gpu_gets_a_smaller_micro_batch_and_the_same_steps(big: JobConfig, run: Callable[[str, JobConfig], Step]) -> None:
    with only(6 * GIB):
        step = run("train", big)
        result = step.end(Exit.DONE, 400)
    assert result.train is not None
    assert result.train.micro_batch in (1, 2, 4)
    assert (result.train.step, result.train.total_steps) == (8, 8)


def test_the_fast_path_is_planned_by_what_is_free(big: JobConfig, run: Callable[[str, JobConfig], Step]) -> None:
    fast = big.model_copy(update={"training": big.training.model_copy(update={"fast_path": FastPath.REQUIRED})})
    with only(6 * GIB):
        train = run("train", fast).end(Exit.DONE, 400).train
    assert train is not None
    assert train.fast_path is not None
    assert (train.step, train.fast_path.used) == (8, True)
    assert parse_quantity(train.fast_path.measured or "0") < parse_quantity(train.fast_path.budget or "0") < 6 * GIB


def test_a_gpu_that_cannot_hold_one_row_is_said_with_numbers(big: JobConfig, run: Callable[[str, JobConfig], Step]) -> None:
    with only(GIB):
        result = run("train", big).end(Exit.OUT_OF_MEMORY, 400)
    assert result.reason == Reason.OUT_OF_MEMORY
    assert "GiB" in result.message


def test_sigterm_on_the_gpu_saves_and_the_next_pod_resumes(
    job_config: MakeConfig, commit_dataset: Callable[[JobConfig], None], run: Callable[[str, JobConfig], Step]
) -> None:
    config = job_config(allowCpu=False, training={"epochs": 20})
    commit_dataset(config)
    first = run("train", config)
    first.wait_for("checkpoint-10")
    first.process.send_signal(signal.SIGTERM)
    interrupted = first.end(Exit.INTERRUPTED).train
    assert interrupted is not None
    assert interrupted.committed_step >= 10
    resumed = run("train", config).end(Exit.DONE).train
    assert resumed is not None
    assert resumed.resumed_from == interrupted.committed_step
    assert resumed.step == resumed.total_steps == 200
