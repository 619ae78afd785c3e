"""Events tell each change once."""

from typing import Any

import pytest

from finetune_operator.api.meta import Condition
from finetune_operator.events import MAX_NOTE, News, event, news

from .makers import START, owner


def condition(kind: str, status: str, reason: str, message: str = "") -> Condition:
    return Condition.model_validate({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": START})


WAITING = condition("DataReady", "Unknown", "Starting", "the pod is being created")
BROKEN = condition("DataReady", "False", "DataInvalid", "row 7 is empty")
CASES: list[tuple[str, list[Condition], list[Condition], list[News]]] = [
    ("nothing changed", [WAITING], [WAITING], []),
    ("a new message alone is no news", [WAITING], [condition("DataReady", "Unknown", "Starting", "other words")], []),
    ("a new condition is told", [], [WAITING], [News("Normal", "Starting", "DataReady: the pod is being created")]),
    ("one cause in two conditions is told once", [WAITING], [BROKEN, condition("Succeeded", "False", "DataInvalid", "row 7 is empty")],
     [News("Warning", "DataInvalid", "DataReady: row 7 is empty")]),
    ("being up to date is no warning", [], [condition("Progressing", "False", "UpToDate", "v1 has the traffic")],
     [News("Normal", "UpToDate", "Progressing: v1 has the traffic")]),
    ("a condition that waits for its turn is no news", [], [condition("Trained", "Unknown", "WaitingForData")], []),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_news(before: list[Condition], after: list[Condition], expected: list[News]) -> None:
    assert news(before, after) == expected


def test_an_event_names_its_object_and_keeps_the_limit() -> None:
    body: dict[str, Any] = event(owner(), News("Warning", "DataInvalid", "x" * 5000), START)
    assert body["involvedObject"]["uid"] == "uid-1"
    assert len(body["message"]) == MAX_NOTE
