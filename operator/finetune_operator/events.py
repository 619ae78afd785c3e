"""Kubernetes Events: one for each condition that changed, so that `kubectl describe` tells the story once."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from . import names
from .api import API_VERSION
from .api.meta import Condition, Owner
from .plan.types import Body

MAX_NOTE = 1024  # limit of the API
_QUIET = ("NotSuspended", "WaitingForData", "Running")


@dataclass(frozen=True, slots=True)
class News:
    """Something worth telling."""

    type: str  # Normal or Warning
    reason: str
    message: str


def news(before: Iterable[Condition], after: Iterable[Condition]) -> list[News]:
    """What changed between two sets of conditions, worth an event."""
    old = {c.type: c for c in before}
    found: list[News] = []
    for condition in after:
        was = old.get(condition.type)
        if was and (was.status, was.reason) == (condition.status, condition.reason):
            continue
        if condition.reason in _QUIET or not (condition.message or condition.status == "True"):
            continue
        bad = condition.status == "False" and condition.type != "Progressing"
        text = condition.message or condition.status
        # A step that ends the job sets two conditions for one cause: that is one piece of news.
        if not any(item.reason == condition.reason and item.message.endswith(text) for item in found):
            found.append(News("Warning" if bad else "Normal", condition.reason, f"{condition.type}: {text}"))
    return found


def event(owner: Owner, item: News, now: str) -> Body:
    """A core/v1 Event about an object."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{owner.name}.{uuid.uuid4().hex[:16]}", "namespace": owner.namespace},
        "involvedObject": {"apiVersion": API_VERSION, "kind": owner.kind, "name": owner.name, "namespace": owner.namespace, "uid": owner.uid},
        "type": item.type,
        "reason": item.reason,
        "message": item.message[:MAX_NOTE],
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
        "source": {"component": names.FIELD_MANAGER},
        "reportingComponent": names.FIELD_MANAGER,
    }
