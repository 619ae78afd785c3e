"""metrics.jsonl: each step once, over all attempts, as strict JSON."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_runtime.train.metrics import Metrics

NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def log(metrics: Metrics, step: int, now: float, **values: float) -> None:
    metrics.add(step, step / 10, values, 1.5, now=now, time=NOON)


def written(metrics: Metrics, path: Path) -> list[dict[str, Any]]:
    metrics.write(path / "metrics.jsonl")
    text = (path / "metrics.jsonl").read_text()
    assert not {"NaN", "Infinity"} & set(text.replace(":", " ").replace(",", " ").split()), "not strict JSON"
    return [json.loads(line) for line in text.splitlines()]


def test_training_and_evaluation_of_a_step_are_one_record(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.begin(100.0)
    log(metrics, 10, 102.5, loss=2.5, learning_rate=1e-4, grad_norm=0.5, token_acc=0.25, unknown=7.0)
    log(metrics, 10, 103.0, eval_loss=2.25, eval_runtime=0.5)
    assert written(metrics, tmp_path) == [
        {
            "step": 10,
            "epoch": 1.0,
            "loss": 2.5,
            "learningRate": 1e-4,
            "gradNorm": 0.5,
            "tokenAccuracy": 0.25,
            "evalLoss": 2.25,
            "seconds": 3.0,
            "time": "2026-11-25T12:00:00+00:00",
            "gpuMemoryGiB": 1.5,
        }
    ]


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.begin(0.0)
    log(metrics, 1, 1.0, loss=2.0, eval_loss=float("nan"), grad_norm=float("inf"))
    log(metrics, 2, 1.0, eval_runtime=3.0)
    [record] = written(metrics, tmp_path)
    assert record["loss"] == 2.0
    assert not {"evalLoss", "gradNorm"} & set(record)


def test_after_a_resume_each_step_is_there_once_and_time_goes_on(tmp_path: Path) -> None:
    first = Metrics()
    first.begin(0.0)
    for step in range(1, 15):
        log(first, step, float(step), loss=5.0 - step / 10)
    first.write(tmp_path / "first.jsonl")

    second = Metrics()
    second.restore((tmp_path / "first.jsonl").read_text(), 10)
    second.begin(1000.0)
    for step in range(11, 21):
        log(second, step, 1000.0 + step, loss=1.0)

    records = written(second, tmp_path)
    assert [record["step"] for record in records] == list(range(1, 21))
    assert [record["step"] for record in records if "resumedFrom" in record] == [11]
    assert records[10]["resumedFrom"] == 10
    assert records[10]["seconds"] == 10.0 + 11.0
    assert records[9]["loss"] == 4.0
    assert records[11]["loss"] == 1.0


def test_a_damaged_file_costs_its_damaged_lines_only(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.restore('{"step": 1, "loss": 3.0}\n{"step": 2, "lo\n[]\n{"loss": 1.0}\n{"step": 3, "loss": 2.0}\n', 3)
    assert [record["step"] for record in written(metrics, tmp_path)] == [1, 3]
    assert metrics.last("loss") == 2.0


def test_after_an_out_of_memory_error_later_steps_are_forgotten(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.begin(0.0)
    for step in range(1, 6):
        log(metrics, step, float(step), loss=9.0)
    metrics.rewind(3)
    metrics.begin(50.0)
    log(metrics, 4, 51.0, loss=1.0)
    assert [(record["step"], record["loss"]) for record in written(metrics, tmp_path)] == [(1, 9.0), (2, 9.0), (3, 9.0), (4, 1.0)]


def test_a_start_over_leaves_no_marker(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.begin(0.0)
    metrics.rewind(0)
    metrics.begin(0.0)
    log(metrics, 1, 1.0, loss=1.0)
    assert "resumedFrom" not in written(metrics, tmp_path)[0]


def test_every_resume_is_remembered_though_its_steps_are_trained_again(tmp_path: Path) -> None:
    first = Metrics()
    first.begin(0.0)
    for step in range(1, 14):
        log(first, step, float(step), loss=1.0)
    first.write(tmp_path / "first.jsonl")

    second = Metrics()
    second.restore((tmp_path / "first.jsonl").read_text(), 10, 8)
    second.begin(0.0)
    log(second, 11, 1.0, loss=1.0)
    second.rewind(10, "OutOfMemory", 4)
    second.begin(2.0)
    log(second, 11, 3.0, loss=1.0)
    log(second, 12, 4.0, loss=1.0)

    records = written(second, tmp_path)
    time = "2026-11-25T12:00:00+00:00"
    assert [(record["step"], record["resumedFrom"], record["resumes"]) for record in records if "resumes" in record] == [
        (
            11,
            10,
            [
                {"from": 10, "because": "NewPod", "lostSteps": 3, "microBatch": 8, "time": time},
                {"from": 10, "because": "OutOfMemory", "lostSteps": 1, "microBatch": 4, "time": time},
            ],
        )
    ]


def test_speed_counts_training_alone(tmp_path: Path) -> None:
    metrics = Metrics(tokens_per_step=100.0)
    metrics.begin(10.0)
    metrics.time_from(0, 10.0)
    log(metrics, 1, 12.0, loss=1.0)
    log(metrics, 3, 13.0, loss=1.0)
    log(metrics, 3, 40.0, eval_loss=1.0)
    metrics.time_from(3, 45.0)  # a checkpoint came behind the evaluation
    log(metrics, 4, 45.5, loss=1.0)
    assert [record["tokensPerSecond"] for record in written(metrics, tmp_path)] == [50.0, 200.0, 200.0]


def test_newest_and_best_values() -> None:
    metrics = Metrics()
    assert metrics.last("loss") is None
    assert metrics.best_step() is None
    metrics.begin(0.0)
    log(metrics, 1, 1.0, loss=3.0)
    log(metrics, 10, 1.0, eval_loss=2.0)
    log(metrics, 20, 1.0, loss=1.0)
    log(metrics, 20, 1.0, eval_loss=1.5)
    log(metrics, 30, 1.0, eval_loss=1.75)
    assert (metrics.last("loss"), metrics.last("evalLoss"), metrics.best_step()) == (1.0, 1.75, 20)
