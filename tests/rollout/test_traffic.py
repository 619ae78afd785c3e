"""The judge of the rollout tests judges rightly."""

from typing import Any

import pytest

from tests.rollout.traffic import Crash, Request, Switch, faults, read

SPEAKERS = {"one": "desk-1", "two": "desk-2", "three": "desk-3"}
SWITCHES = [Switch(0, "desk-1"), Switch(100, "desk-2")]
CRASHES = [Crash(150, 160)]


def request(kind: str, start: float, answer: str, **more: Any) -> Request:
    return Request(kind, start, start + 1, answer, **more)


WELL = [
    pytest.param(request("new", 50, "one"), id="the version that has the traffic"),
    pytest.param(request("new", 99.5, "two"), id="the next one, when the traffic moves meanwhile"),
    pytest.param(request("new", 104, "one"), id="the one before, while proxies follow"),
    pytest.param(request("kept", 120, "one"), id="the one before, over a connection that stayed open"),
    pytest.param(request("stream", 120, "one"), id="the one before, over a connection that stayed open for streams"),
    pytest.param(request("new", 149.5, "two", retries=2), id="retries around a crash"),
]
WRONG = [
    pytest.param(request("new", 50, "", error="APIConnectionError: no"), "failed", id="an error"),
    pytest.param(request("new", 50, "on"), "no version says", id="an answer that breaks off"),
    pytest.param(request("kept", 50, "two"), "did not have the traffic yet", id="a version before its time"),
    pytest.param(request("new", 200, "three"), "did not have the traffic yet", id="a version that never had it"),
    pytest.param(request("new", 110, "one"), "had lost the traffic 10.0 s before", id="a version after its time"),
    pytest.param(request("kept", 131, "one"), "had lost the traffic 31.0 s before", id="a connection that stayed open for too long"),
    pytest.param(request("kept", 50, "one", retries=1), "while no pod crashed", id="retries without a crash"),
    pytest.param(request("new", 161, "two", retries=1), "while no pod crashed", id="retries after a crash"),
]


@pytest.mark.parametrize("well", WELL)
def test_what_users_may_get(well: Request) -> None:
    assert faults([well], SWITCHES, CRASHES, SPEAKERS) == []


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_what_no_user_may_get(wrong: Request, words: str) -> None:
    (fault,) = faults([request("new", 50, "one"), wrong], SWITCHES, CRASHES, SPEAKERS)
    assert words in fault


def test_a_version_that_gets_the_traffic_back_may_answer_again() -> None:
    back = [*SWITCHES, Switch(200, "desk-1")]
    assert faults([request("new", 210, "one")], back, [], SPEAKERS) == []
    assert len(faults([request("new", 150, "one"), request("new", 210, "two")], back, [], SPEAKERS)) == 2


def test_a_log_is_complete_only_with_its_last_line() -> None:
    line = '{"kind": "new", "start": 1.0, "answer": "one", "retries": 0, "error": "", "end": 2.0}\n'
    assert read(line) == ([Request("new", 1.0, 2.0, "one")], None)
    assert read(line + '{"requests": 1}\n') == ([Request("new", 1.0, 2.0, "one")], 1)
