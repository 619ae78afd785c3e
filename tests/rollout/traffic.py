"""What users got, held against who had the traffic. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_runtime.serve.drain import MAX_AGE

# Every proxy has heard of a switch after so many seconds; a request that is under way when it happens may end with either version.
LAG = 5.0
# A connection that stays open does so for its time, and one request more; until that begins, the one before it may have taken long on a busy machine.
KEPT = LAG + MAX_AGE + 10
# The watch may tell of a switch a moment after the first proxy has followed it.
EARLY = 0.5


@dataclass(frozen=True)
class Request:
    """One request of a user: when it began and ended (seconds since the epoch), and what came of it."""

    kind: str
    start: float
    end: float
    answer: str = ""
    retries: int = 0
    error: str = ""

    def __str__(self) -> str:
        return f"{self.kind} request at {self.start:.2f} for {self.end - self.start:.2f} s"


@dataclass(frozen=True)
class Switch:
    """From then on the service led to that version."""

    at: float
    version: str


@dataclass(frozen=True)
class Crash:
    """In this time pods were killed, and their version still had the traffic or had just lost it."""

    start: float
    end: float


def read(log: str) -> tuple[list[Request], int | None]:
    """The requests in a log of users.py, and their number as it tells it at its end; None while it still runs."""
    requests, told = list[Request](), None
    for line in log.splitlines():
        found = json.loads(line)
        if "requests" in found:
            told = int(found["requests"])
        else:
            requests.append(Request(**found))
    return requests, told


def faults(requests: Sequence[Request], switches: Sequence[Switch], crashes: Sequence[Crash], speakers: Mapping[str, str]) -> list[str]:
    """What is wrong, one sentence for each request that is. `switches` by time; `speakers`: answer -> version that gives it."""
    found = []
    for request in requests:
        if request.error:
            found.append(f"{request} failed: {request.error}")
        elif request.answer not in speakers:
            found.append(f"{request} got what no version says: {request.answer!r}")
        elif fault := _speaker(request, speakers[request.answer], switches):
            found.append(f"{request} was answered by {speakers[request.answer]}, {fault}")
        elif request.retries and not any(request.start < crash.end and request.end > crash.start for crash in crashes):
            found.append(f"{request} took {request.retries} retries while no pod crashed")
    return found


def _speaker(request: Request, version: str, switches: Sequence[Switch]) -> str:
    """Why this version should not have answered; empty when it was allowed to."""
    had = [
        (switch.at, later.at if later else float("inf"))
        for switch, later in zip(switches, [*switches[1:], None], strict=True)
        if switch.version == version and switch.at - EARLY <= request.end
    ]
    if not had:
        return "which did not have the traffic yet"
    if not any(request.start <= end + (LAG if request.kind == "new" else KEPT) for _, end in had):
        return f"which had lost the traffic {request.start - max(end for _, end in had):.1f} s before"
    return ""
