"""What is read from an HTTPRoute's status: whether a Gateway goes by it, and what one has against it."""

from typing import Any

import pytest

from finetune_operator.observe import route_view

OLD, NOW = 1, 2  # generations
Says = tuple[str, str, str, int]  # type, status, reason, observedGeneration
YES, BACKENDS = ("Accepted", "True", "Accepted", NOW), ("ResolvedRefs", "True", "ResolvedRefs", NOW)
NO = ("Accepted", "False", "NotAllowedByListeners", NOW)
LOST = ("ResolvedRefs", "False", "BackendNotFound", NOW)

CASES: tuple[tuple[str, list[list[Says]], bool, str], ...] = (
    ("nobody has looked at it", [], False, ""),
    ("a controller has, and has not decided", [[]], False, ""),
    ("accepted", [[YES, BACKENDS]], True, ""),
    ("accepted by a controller that says nothing of backends", [[YES]], True, ""),
    ("refused", [[NO]], False, "Gateway g0: NotAllowedByListeners: told"),
    ("accepted without a backend", [[YES, LOST]], True, "Gateway g0: BackendNotFound: told"),
    ("refused as it was before", [[("Accepted", "False", "NoMatchingParent", OLD)]], False, ""),
    ("a Service was missing before", [[YES, ("ResolvedRefs", "False", "BackendNotFound", OLD)]], True, ""),
    ("one of two Gateways refuses", [[YES, BACKENDS], [NO]], False, "Gateway g1: NotAllowedByListeners: told"),
)


@pytest.mark.parametrize(("parents", "accepted", "refusal"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_route_view(parents: list[list[Says]], accepted: bool, refusal: str) -> None:
    told = [
        {
            "parentRef": {"name": f"g{number}"},
            "controllerName": "example.org/controller",
            "conditions": [{"type": t, "status": s, "reason": r, "message": "told", "observedGeneration": g} for t, s, r, g in conditions],
        }
        for number, conditions in enumerate(parents)
    ]
    raw: dict[str, Any] = {"metadata": {"name": "support", "uid": "r1", "generation": NOW}, "spec": {}, "status": {"parents": told}}
    view = route_view(raw)
    assert (view.name, view.uid, view.owner_uid, view.accepted, view.refusal) == ("support", "r1", "", accepted, refusal)
