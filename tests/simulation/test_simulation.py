"""The simulation holds, is the same each time, and can fail."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from .mutants import MUTANTS, Mutant, applied
from .rollout_mutants import ROLLOUT_MUTANTS
from .schedule import ENDPOINT, Outcome, run
from .share_mutants import SHARE_MUTANTS

SCHEDULES = 400
ABOUT_ENDPOINTS = 300
WRONG = (*MUTANTS, *ROLLOUT_MUTANTS, *SHARE_MUTANTS)
ENOUGH = 3000  # schedules after which a mutant must have been caught; the rarest shows in one of 130
REPLAYED = ("3", "44", "112", f"{ENDPOINT}6", f"{ENDPOINT}185")
ROOT = Path(__file__).parents[2]


@cache
def _first(*, endpoints: bool) -> list[Outcome]:
    return [run(seed, endpoints=endpoints) for seed in range(ABOUT_ENDPOINTS if endpoints else SCHEDULES)]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("endpoints", [False, True], ids=["jobs", "endpoints"])
def test_the_operator_keeps_its_promises_in_the_first_schedules(endpoints: bool) -> None:
    broken = [f"seed {outcome.name}: {outcome.violation}" for outcome in _first(endpoints=endpoints) if outcome.violation]
    assert not broken, "\n".join([*broken, "replay one with: make simulate SEED=..."])


def test_the_first_schedules_come_by_what_they_are_there_for() -> None:
    hits = set().union(*(outcome.hits for outcome in _first(endpoints=False)))
    wanted = {
        *(f"phase {phase}" for phase in ("Pending", "Preparing", "Queued", "Training", "Deploying", "Suspended", "Succeeded", "Failed")),
        *(f"fault {fault}" for fault in ("crash_before", "crash_after", "refused", "unanswered", "late_event", "lost_watch", "long_downtime", "clock", "upgrade")),
        "node death", "node partition", "kueue preempts", "user deletes FineTuneJob", "user deletes namespace", "progress is reported",
        "reason DeadlineExceeded", "reason GPUTooSmall", "reason NameConflict", "reason SecretNotFound", "reason VolumeNotFound",
    }  # fmt: skip
    assert wanted <= hits, wanted - hits


def test_the_first_schedules_about_endpoints_come_by_what_they_are_there_for() -> None:
    hits = set().union(*(outcome.hits for outcome in _first(endpoints=True)))
    moves = ("new -> Candidate", "Candidate -> Current", "Candidate -> Rejected", "Candidate -> Retired", "Current -> Previous", "Previous -> Retired")
    waits = ("Starting", "RollingOut", "Merging", "Evaluating", "CrashLoop", "Recreating", "ShiftingTraffic", "GatewayAPIMissing")
    ends = ("UpToDate", "GateClosed", "EvaluationFailed", "MergeFailed", "NotReadyInTime", "CrashLoop", "FetchFailed", "VersionNotFound", "NameConflict")
    natures = ("good", "mute", "crashes", "falters", "crashes later", "unreadable", "slow storage")
    wanted = {
        *(f"version {move}" for move in moves), "version Current -> Rejected", "version Previous -> Current",
        *(f"endpoint Progressing=True {reason}" for reason in waits), *(f"endpoint Progressing=False {reason}" for reason in ends),
        *(f"serving pod: {nature}" for nature in natures), "evaluation: passed=True", "evaluation: passed=False", "evaluation: EndpointUnavailable",
        "merge: made", "merge: found", "merge: crash", "merge: Completed", "merge: InvalidConfig",
        "user sets candidate", "user sets version", "user sets gate", "user redirects Service", "user reroutes HTTPRoute", "routes are refused", "share 10", "share 50", "user deletes Deployment", "user deletes ModelEndpoint",
        *(f"version of {number} adapters" for number in (1, 2, 3)), "user sets adapters", "reason GateClosed", "reason Superseded", "users get another adapter in the same pods",
        *(f"live adapter: {nature}" for nature in natures if nature != "unreadable"), "reason Pinned", "node death", "fault crash_after",
    }  # fmt: skip
    assert wanted <= hits, wanted - hits


@pytest.mark.parametrize("seed", REPLAYED)
def test_a_seed_gives_the_same_trace_in_every_process(seed: str) -> None:
    def trace(hash_seed: str) -> str:
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": "operator:images/runtime:."}
        command = [sys.executable, "-m", "tests.simulation", "--seed", seed]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False).stdout

    first = trace("1")
    assert len(first.splitlines()) > 20
    assert trace("2") == first


def test_a_trace_changes_nothing() -> None:
    for seed in REPLAYED:
        number, endpoints = int(seed.removeprefix(ENDPOINT)), seed.startswith(ENDPOINT)
        bare, traced = run(number, endpoints=endpoints), run(number, endpoints=endpoints, traced=True)
        assert (bare.events, bare.rounds, bare.hits, bare.violation) == (traced.events, traced.rounds, traced.hits, traced.violation)


@pytest.mark.parametrize("mutant", WRONG, ids=lambda m: m.name)
def test_a_wrong_operator_is_caught(mutant: Mutant) -> None:
    found: set[str] = set()
    with applied(mutant):
        for seed in range(ENOUGH):
            found.add(run(seed, **mutant.weather).invariant)
            if found & set(mutant.caught_by):
                return
    pytest.fail(f"{mutant.name}: not caught by {mutant.caught_by} in {ENOUGH} schedules, only by {found - {''}}")


def test_every_invariant_has_a_wrong_operator_that_it_catches() -> None:
    source = "".join(file.read_text() for file in Path(__file__).parent.glob("*.py") if not file.name.startswith(("test_", "mutants")))
    invariants = set(re.findall(r'(?:fail|ViolationError)\(\s*"([^"]+)"', source)) | {"no exception"}
    assert len(invariants) > 20
    assert invariants == {name for mutant in WRONG for name in mutant.caught_by}
