"""Progress reports and the estimate of the time left."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.progress import ProgressStore, duration, eta_seconds
from finetune_runtime.contract.result import Metric, TrainerStatus

KEY = ("team", "support")


def report(**metrics: object) -> TrainerStatus:
    return TrainerStatus(metrics=[Metric(name=k, value=str(v)) for k, v in metrics.items()], last_updated_time="2027-01-15T08:00:00Z")


ETA = [
    ("no report", [], 100, 0, None),
    ("one report tells no speed", [(1, 0.0)], 100, 10, None),
    ("steady steps", [(1, 0.0), (11, 100.0)], 21, 100, 100),
    ("time since the last report is taken off", [(1, 0.0), (11, 100.0)], 21, 130, 70),
    ("never negative", [(1, 0.0), (11, 100.0)], 21, 9999, 0),
    ("no total yet", [(1, 0.0), (11, 100.0)], 0, 100, None),
    ("steps that do not move", [(5, 0.0), (5, 100.0)], 21, 100, None),
]


@pytest.mark.parametrize(("points", "total", "now", "expected"), [c[1:] for c in ETA], ids=[c[0] for c in ETA])
def test_estimate(points: list[tuple[int, float]], total: int, now: float, expected: int | None) -> None:
    assert eta_seconds(deque(points), total, now) == expected


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1e6)), max_size=20), st.integers(0, 2000), st.floats(0, 1e6))
def test_an_estimate_is_never_negative(points: list[tuple[int, float]], total: int, now: float) -> None:
    found = eta_seconds(deque(points), total, now)
    assert found is None or found >= 0


def test_a_new_pod_starts_a_new_estimate() -> None:
    store = ProgressStore()
    for step in range(1, 5):
        store.record(KEY, "p1", report(step=step, totalSteps=10), 10.0 * step)
    assert store.latest(KEY).eta_seconds == 60  # type: ignore[union-attr]  # recorded just above
    store.record(KEY, "p2", report(step=3, totalSteps=10), 5000.0)
    assert store.latest(KEY).eta_seconds is None  # type: ignore[union-attr]  # recorded just above


@given(st.dictionaries(st.sampled_from(["step", "totalSteps", "loss", "epoch", "evalLoss", "gpuMemoryGiB"]), st.text(max_size=64)))
def test_whatever_a_pod_sends_never_breaks_the_store(values: dict[str, str]) -> None:
    store = ProgressStore()
    store.record(KEY, "p", report(**values), 1.0)
    found = store.latest(KEY)
    assert found is not None
    assert 0 <= found.percent <= 100


def test_numbers_are_short_and_broken_ones_are_left_out() -> None:
    store = ProgressStore()
    store.record(KEY, "p", report(step="12", totalSteps="40", loss="1.08321234", evalLoss="nan", learningRate="0.000003"), 1.0)
    found = store.latest(KEY)
    assert found is not None
    assert (found.step, found.percent, found.loss, found.eval_loss, found.learning_rate) == (12, 30, "1.083", None, "3e-06")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (12000, "3h20m"), (86400, "1d"), (187200, "2d4h")]
)
def test_durations_for_people(seconds: int, text: str) -> None:
    assert duration(seconds) == text
