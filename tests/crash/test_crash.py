"""The operator is killed at any moment in the lives of many jobs: each ends as if nobody had disturbed it."""

import difflib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.crash.killer import Killer, Moment, Tally, moments
from tests.crash.life import Life
from tests.integration.history import History
from tests.integration.operator_process import Namespace, Operator

SIDE_BY_SIDE = 5


def difference(wanted: Any, found: Any) -> str:
    before, after = (json.dumps(state, indent=1, sort_keys=True).splitlines() for state in (wanted, found))
    return "\n".join(difflib.unified_diff(before, after, "undisturbed", "killed", lineterm="", n=1))


def lived(life: Life, killer: Killer, moment: Moment) -> Any:
    """Play a life with a kill at its moment. Returns the end state, seen by an operator that has started since."""
    over = threading.Event()

    def strike() -> None:
        life.history.await_events(life.owns, moment.writes, over.is_set)
        over.wait(moment.delay)
        killer.kill()

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        life.live()
    finally:
        over.set()
        striker.join()
    return life.end_state()


@pytest.mark.timeout(1200)
def test_killed_at_any_moment_a_job_ends_as_it_would_have(
    operator: Operator, here: Namespace, history: History, node: str, tally: Tally, request: pytest.FixtureRequest
) -> None:
    count, seed = request.config.getoption("--kills"), request.config.getoption("--seed")
    calm = Life("calm", here, history, node)
    calm.live()
    wanted, writes = calm.end_state(), calm.writes()
    calm.bury()
    print(f"an undisturbed life takes {writes} writes to its objects", flush=True)
    killer = Killer(operator, tally, seed)
    failures: list[str] = []

    def one(number: int, moment: Moment) -> None:
        life = Life(f"life-{number}", here, history, node)
        try:
            problem = difference(wanted, lived(life, killer, moment))
        except AssertionError as error:  # the other lives go on
            problem = f"{error}\nplayed: {life.steps}\nshown: {history.story(life.name)}"
        life.bury()
        if problem:
            failures.append(f"kill {number}, {moment} (--seed {seed} --kills {count}):\n{problem}")
        tally.same += not problem
        print(f"{tally} ({life.name}: {moment})" + (f"\n{problem}" if problem else ""), flush=True)

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        list(pool.map(one, range(1, count + 1), moments(seed, count, writes)))
    assert not failures, "\n".join(failures)
    assert history.lies() == []
