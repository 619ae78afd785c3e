"""The strategy Recreate: the pods of the version with the traffic make room before those of the next one start.

Nobody is answered from then on. So what the API server has to say against the next one's objects is heard before: they are made first, without pods.
"""

from typing import TYPE_CHECKING

from finetune_operator.api.modelendpoint import VersionStatus
from finetune_operator.reasons import Reason

from . import live
from .faults import Fault, ending

if TYPE_CHECKING:
    from .rollout import Rollout


def takes_the_place(rollout: "Rollout", candidate: VersionStatus) -> bool:
    """Whether the pods of a candidate need those of the version with the traffic to go."""
    old = rollout.incumbent
    return rollout.seen.spec.strategy.type == "Recreate" and old is not None and not live.shares(candidate, old)


def makes_room(rollout: "Rollout") -> bool:
    """Whether the version with the traffic has no pods, because a candidate whose objects are there takes its place. A merge needs no room."""
    there = (c for c in rollout.versions.having("Candidate") if rollout.deployment(c.name) is not None)
    if rollout.merge is not None or (rollout.seen.refused and not has_made_room(rollout)):
        return False
    return any(takes_the_place(rollout, c) for c in there)


def has_made_room(rollout: "Rollout") -> bool:
    """Whether the pods of the version with the traffic were told to go."""
    old = rollout.incumbent
    view = rollout.deployment(old.name) if old else None
    return rollout.seen.spec.strategy.type == "Recreate" and view is not None and view.replicas == 0


def waits(rollout: "Rollout", candidate: VersionStatus) -> Fault | None:
    """Why a candidate may have no pods yet; None when it may."""
    old, view = rollout.incumbent, rollout.deployment(candidate.name)
    if old is None or not takes_the_place(rollout, candidate) or (view and view.replicas):
        return None
    if view is None:
        return Fault(Reason.RECREATING, f"version {candidate.name} is made, then version {old.name} makes room for its pods")
    if left := rollout.pods(old.name):
        return Fault(Reason.RECREATING, f"version {candidate.name} starts when the {len(left)} pods of version {old.name} have ended: {ending(left[0])}")
    return None
