"""Numbers of the report's curves."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.report.series import MAX_POINTS, smooth, thin, ticks, whole_ticks


def test_few_points_stay_as_they_are() -> None:
    points = [(float(step), 1.0 / step) for step in range(1, MAX_POINTS + 1)]
    assert thin(points) == points


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 80))
def test_thinned_points_are_few_ordered_and_keep_ends_and_extremes(values: list[float], limit: int) -> None:
    points = [(float(step), value) for step, value in enumerate(values)]
    kept = thin(points, limit)
    assert len(kept) <= max(limit, 4)
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert {min(y for _, y in kept), max(y for _, y in kept)} == {min(values), max(values)}


def test_a_single_spike_among_ten_thousand_steps_is_kept() -> None:
    points = [(float(step), 1.0) for step in range(10_000)]
    points[7_777] = (7_777.0, 80.0)
    kept = thin(points)
    assert (7_777.0, 80.0) in kept
    assert len(kept) <= MAX_POINTS


def test_smoothing_starts_at_the_first_value_keeps_a_constant_and_takes_noise_away() -> None:
    noise = random.Random(1)
    noisy = [(float(step), 2.0 + noise.uniform(-1, 1)) for step in range(1000)]
    smoothed = smooth(noisy)
    assert smoothed[0] == pytest.approx(noisy[0])
    assert [x for x, _ in smoothed] == [x for x, _ in noisy]
    assert max(abs(y - 2.0) for _, y in smoothed[100:]) < 0.5
    assert all(y == pytest.approx(3.0) for _, y in smooth([(float(step), 3.0) for step in range(50)]))


TICKS = {
    "a loss": (0.86, 2.51, [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]),
    "a small learning rate": (0.0, 3e-6, [0.0, 1e-6, 2e-6, 3e-6]),
    "values that are round already": (0.0, 100.0, [0.0, 50.0, 100.0]),
    "nothing but one value": (21.0, 21.0, [18.0, 20.0, 22.0, 24.0]),
    "nothing but zero": (0.0, 0.0, [0.0, 0.5, 1.0]),
    "below zero": (-3.0, 3.0, [-4.0, -2.0, 0.0, 2.0, 4.0]),
}


@pytest.mark.parametrize(("low", "high", "expected"), TICKS.values(), ids=TICKS)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_ticks_enclose_the_values_and_are_few(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    found = ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 8
    assert all(math.isfinite(tick) for tick in found)


STEPS = {
    "a short run": (1, 20, [5, 10, 15, 20]),
    "two steps": (1, 2, [1, 2]),
    "one step": (1, 1, [1]),
    "a long run": (1, 10_000, [2000, 4000, 6000, 8000, 10_000]),
}


@pytest.mark.parametrize(("first", "last", "expected"), STEPS.values(), ids=STEPS)
def test_ticks_of_steps_are_whole_steps_of_the_run(first: int, last: int, expected: list[int]) -> None:
    assert whole_ticks(first, last) == expected
