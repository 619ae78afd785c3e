"""Progress reports, how old they may get, and the estimate of the time left."""

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator import clock
from finetune_operator.api.jobstatus import Progress
from finetune_operator.progress import SHOWN_EVERY, STALE_AFTER, WINDOW, Point, ProgressStore, Track, duration, eta_seconds, is_stale, shown_in
from finetune_runtime.contract.result import Metric, TrainerStatus
from finetune_runtime.train.progress import Phase, Reporter
from finetune_runtime.train.progress import Progress as Reporting

KEY, JOB = ("team", "support"), "uid-1"
NOW = 1_800_000_000.0


def report(**metrics: object) -> TrainerStatus:
    return TrainerStatus(metrics=[Metric(name=k, value=str(v)) for k, v in metrics.items()], last_updated_time="2027-01-15T08:00:00Z")


def told(*reports: tuple[float, int], total: int = 100, pod: str = "p1", store: ProgressStore | None = None) -> ProgressStore:
    """A store that has heard of these (seconds since NOW, step)."""
    store = store or ProgressStore()
    for seconds, step in reports:
        store.record(KEY, JOB, pod, report(step=step, totalSteps=total, phase="Training"), NOW + seconds)
    return store


def latest(store: ProgressStore, seconds: float) -> Progress:
    found = store.latest(KEY, JOB, NOW + seconds)
    assert found is not None
    return found


ESTIMATES: list[tuple[str, list[Point], int, float, int | None]] = [
    ("no report", [], 100, 0, None),
    ("one report tells no speed", [(1, 0.0)], 100, 10, None),
    ("steady steps", [(1, 0.0), (11, 100.0)], 21, 100, 100),
    ("a report that is 3 minutes old means 3 minutes less", [(0, 0.0), (10, 1000.0)], 20, 1180, 820),
    ("never negative", [(1, 0.0), (11, 100.0)], 21, 250, 0),
    ("an estimate that ran out long ago is none", [(1, 0.0), (11, 100.0)], 21, 9999, None),
    ("all steps are done", [(1, 0.0), (11, 100.0)], 11, 100, 0),
    ("more steps than there are", [(1, 0.0), (11, 100.0)], 9, 100, 0),
    ("no total yet", [(1, 0.0), (11, 100.0)], 0, 100, None),
    ("only the later half of the steps counts", [(0, 0.0), (10, 900.0), (20, 1000.0)], 30, 1000, 100),
    ("a clock that was set back does not add to it", [(0, 0.0), (10, 100.0)], 20, 50, 100),
]


@pytest.mark.parametrize(("points", "total", "now", "expected"), [c[1:] for c in ESTIMATES], ids=[c[0] for c in ESTIMATES])
def test_estimate(points: list[Point], total: int, now: float, expected: int | None) -> None:
    assert eta_seconds(points, total, now) == expected


# What was reported at which second since NOW, the second of the look, and the estimate.
LOOKS: list[tuple[str, list[tuple[float, int]], float, int | None]] = [
    ("two reports", [(0, 0), (10, 10)], 10, 90),
    ("at each look anew", [(0, 0), (10, 10)], 40, 60),
    ("two reports of one step tell no speed", [(0, 5), (10, 5)], 10, None),
    ("a repeated step is no new point", [(0, 0), (10, 10), (70, 10)], 70, 30),
    ("two steps at one time", [(0, 0), (10, 10), (10, 20)], 10, 90),
    ("an evaluation belongs to the speed", [(0, 0), (10, 10), (110, 11), (120, 20)], 120, 880),
    ("steps went backwards: the pod began again at a checkpoint", [(0, 0), (10, 50), (100, 40)], 100, None),
    ("and has another speed from there on", [(0, 0), (10, 50), (100, 40), (200, 50)], 200, 500),
    ("the clock was set back", [(0, 0), (10, 50), (-3600, 60)], -3600, None),
    ("and the speed is measured from there on", [(0, 0), (10, 50), (-3600, 60), (-3590, 70)], -3590, 30),
    ("the clock was set forward by an hour, and that is forgotten", [(0, 10), (3610, 20), (3620, 30), (3630, 40), (3640, 50)], 3640, 50),
]


@pytest.mark.parametrize(("reports", "look", "expected"), [c[1:] for c in LOOKS], ids=[c[0] for c in LOOKS])
def test_estimate_from_reports(reports: list[tuple[float, int]], look: float, expected: int | None) -> None:
    assert latest(told(*reports), look).eta_seconds == expected


def test_a_new_pod_starts_a_new_estimate() -> None:
    store = told((0, 0), (10, 10))
    assert latest(store, 10).eta_seconds == 90
    told((5000, 5), pod="p2", store=store)
    assert latest(store, 5000).eta_seconds is None


def test_the_time_that_a_new_process_takes_to_load_the_model_is_not_the_time_of_a_step() -> None:
    store = told((0, 0), (10, 10))
    store.record(KEY, JOB, "p1", report(step=10, totalSteps=100, phase="Loading"), NOW + 20)
    told((320, 10), (340, 20), store=store)
    assert latest(store, 340).eta_seconds == 160


steady = st.tuples(st.integers(0, 500), st.integers(2, 400), st.floats(0.2, 300))


@given(steady, st.integers(1, 7))
def test_a_steady_training_has_an_estimate_that_is_right_and_never_grows(run: tuple[int, int, float], every: int) -> None:
    """Runs of any length, reported every so many steps, looked at as each report comes and half a step later."""
    start, steps, seconds = run
    total, store, before = start + steps, ProgressStore(), None
    for done in range(0, steps + 1, every):
        now = done * seconds
        told((now, start + done), total=total, store=store)
        for look in (now, now + seconds / 2) if done < steps else (now,):
            found = latest(store, look).eta_seconds
            if done == 0:
                assert found is None
                continue
            assert found is not None
            assert abs(found - max(0, steps * seconds - look)) <= 1
            assert before is None or found <= before
            before = found


@given(st.floats(1, 100), st.floats(0.05, 20), st.integers(1, 20))
def test_after_a_change_of_speed_the_estimate_converges(first: float, factor: float, changed: int) -> None:
    """Once as many steps again were made at the new speed, only the new speed counts."""
    store, now, second = ProgressStore(), 0.0, first * factor
    for step in range(3 * changed + 2):
        told((now, step), total=1000, store=store)
        now += first if step < changed else second
    left = latest(store, now - second).eta_seconds
    assert left == pytest.approx((1000 - 3 * changed - 1) * second, abs=1)


reports = st.lists(st.tuples(st.integers(-(10**6), 10**6).map(float), st.integers(0, 2000)), min_size=1, max_size=200)


@given(reports, st.integers(0, 2000), st.integers(-(10**6), 10**6))
def test_an_estimate_is_never_negative_whatever_steps_and_clock_do(heard: list[tuple[float, int]], total: int, look: int) -> None:
    found = latest(told(*heard, total=total), look).eta_seconds
    assert found is None or found >= 0


@given(reports)
def test_points_rise_and_stay_few(heard: list[tuple[float, int]]) -> None:
    track = Track(JOB, "p")
    for now, step in heard:
        track.add(step, now)
        assert len(track.points) <= WINDOW
        assert track.points == sorted(set(track.points))
        assert len({step for step, _ in track.points}) == len({now for _, now in track.points}) == len(track.points)


def test_points_of_a_long_training_reach_back_to_its_beginning() -> None:
    track = Track(JOB, "p")
    for step in range(10_000):
        track.add(step, 5.0 * step)
    assert track.points[0] == (0, 0.0)
    assert track.points[-1] == (9999, 5.0 * 9999)


STALE = [
    ("never heard of", None, 0, False),
    ("just now", 0, 0, False),
    ("two heartbeats are late", 0, 130, False),
    ("three are missing", 0, STALE_AFTER + 1, True),
    ("our clock was set back", 0, -9999, False),
]


@pytest.mark.parametrize(("heard", "now", "expected"), [c[1:] for c in STALE], ids=[c[0] for c in STALE])
def test_stale(heard: float | None, now: float, expected: bool) -> None:
    assert is_stale(None if heard is None else clock.text(NOW + heard), NOW + now) is expected


SHOWN = [
    ("nothing is shown yet", None, 0, 0),
    ("the same report again", 0, 0, None),
    ("a report of before", 0, -5, None),
    ("too soon", 0, 4, 6),
    ("soon enough", 0, 10, 0),
    ("the first one in a long time", 0, 9999, 0),
    ("our clock was set back", 9999, 0, 0),
]


@pytest.mark.parametrize(("known", "reported", "expected"), [c[1:] for c in SHOWN], ids=[c[0] for c in SHOWN])
def test_when_a_report_is_shown(known: float | None, reported: float, expected: float | None) -> None:
    shown = None if known is None else Progress(updated_at=clock.text(NOW + known))
    assert shown_in(Progress(updated_at=clock.text(NOW + reported)), shown) == expected


@given(st.lists(st.floats(0, 3600), max_size=100).map(sorted))
def test_a_status_shows_no_more_than_one_report_in_ten_seconds(times: list[float]) -> None:
    shown: list[Progress] = []
    for time in times:
        found = Progress(updated_at=clock.text(NOW + time))
        if shown_in(found, shown[-1] if shown else None) == 0:
            shown.append(found)
    seconds = [clock.seconds(found.updated_at or "") for found in shown]
    assert all(later - earlier >= SHOWN_EVERY for earlier, later in pairwise(seconds))


def test_old_progress_is_marked_and_has_no_estimate() -> None:
    store = told((0, 0), (10, 10), total=10_000)
    fresh, old = latest(store, 11), latest(store, 11 + STALE_AFTER)
    assert (fresh.stale, fresh.eta_seconds) == (None, 9989)
    assert (old.stale, old.eta_seconds, old.step) == (True, None, 10)


def test_a_supervisor_that_has_nothing_to_tell_is_heard_several_times_before_its_progress_is_old() -> None:
    heartbeat = Reporter.__init__.__defaults__[-1]  # type: ignore[index]  # it has defaults
    assert 3 * heartbeat <= STALE_AFTER


def test_the_phase_of_loading_is_the_supervisors() -> None:
    store = told((0, 0), (10, 10))
    store.record(KEY, JOB, "p1", report(step=0, totalSteps=100, phase=Phase.LOADING), NOW + 20)
    assert latest(store, 20).eta_seconds is None


@given(st.dictionaries(st.sampled_from(["step", "totalSteps", "loss", "epoch", "checkpointStep", "resumedFrom", "phase"]), st.text(max_size=64)))
def test_whatever_a_pod_sends_never_breaks_the_store(values: dict[str, str]) -> None:
    store = ProgressStore()
    store.record(KEY, JOB, "p", report(**values), NOW)
    assert 0 <= latest(store, 0).percent <= 100


@pytest.mark.parametrize("value", ["1e300", "inf", "99999999999999999999"])
def test_numbers_that_no_status_can_hold_are_cut_or_left_out(value: str) -> None:
    store = ProgressStore()
    store.record(KEY, JOB, "p", report(step=value, totalSteps=value, checkpointStep=value, resumedFrom=value), NOW)
    found = latest(store, 0)
    assert max(found.step, found.total_steps, found.checkpoint_step, found.resumed_from or 0) < 2**31


def test_numbers_are_short_and_broken_ones_are_left_out() -> None:
    store = ProgressStore()
    store.record(KEY, JOB, "p", report(step="12", totalSteps="40", loss="1.08321234", evalLoss="nan", learningRate="0.000003"), NOW)
    found = latest(store, 0)
    assert (found.step, found.percent, found.loss, found.eval_loss, found.learning_rate) == (12, 30, "1.083", None, "3e-06")


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [({}, (0, None)), ({"checkpointStep": 0, "resumedFrom": 0}, (0, 0)), ({"checkpointStep": 120, "resumedFrom": 80}, (120, 80))],
    ids=["a pod that is loading", "a pod that started from the beginning", "a pod that went on from a checkpoint"],
)
def test_checkpoints(metrics: dict[str, int], expected: tuple[int, int | None]) -> None:
    store = ProgressStore()
    store.record(KEY, JOB, "p", report(**metrics), NOW)
    found = latest(store, 0)
    assert (found.checkpoint_step, found.resumed_from) == expected


def test_a_job_that_is_gone_is_forgotten() -> None:
    store = told((0, 0))
    store.forget(KEY)
    assert store.latest(KEY, JOB, NOW) is None


def test_a_pod_of_a_job_that_was_deleted_does_not_report_for_its_successor_of_the_same_name() -> None:
    store = told((0, 20))
    assert store.latest(KEY, "uid-2", NOW) is None
    store.record(KEY, "uid-2", "p2", report(step=1, totalSteps=100), NOW)
    found = store.latest(KEY, "uid-2", NOW)
    assert found is not None
    assert found.step == 1
    assert store.latest(KEY, JOB, NOW) is None, "there is one job of a name"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (12000, "3h20m"), (86400, "1d"), (187200, "2d4h")]
)
def test_durations_for_people(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def test_a_report_tells_whether_the_fast_path_is_taken() -> None:
    progress = Reporting(fast_path="unsupported: " + "a reason that goes on and on, " * 5).report(datetime.fromtimestamp(NOW, UTC))
    store = ProgressStore()
    store.record(KEY, JOB, "p1", progress.trainer_status, NOW)
    assert latest(store, 0).fast_path == ("unsupported: " + "a reason that goes on and on, " * 5)[:64]
    assert latest(told((0, 1)), 0).fast_path is None
