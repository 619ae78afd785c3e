"""The strategy Recreate: the pods of the version with the traffic make room before those of the next one start.

Nobody is answered from then on. So what the API server has to say against the next one's objects is heard before: they are made first, without pods.
"""

from typing import TYPE_CHECKING

from finetune_operator.api.modelendpoint import VersionStatus
from finetune_operator.reasons import Reason

from . import live
from .faults import Fault

if TYPE_CHECKING:
    from .rollout import Rollout


def _takes_the_place(rollout: "Rollout", candidate: VersionStatus) -> bool:
    """Whether the pods of a candidate need those of the version with the traffic to go."""
    current = rollout.versions.current
    return rollout.seen.spec.strategy.type == "Recreate" and current is not None and not live.shares(candidate, current)


def makes_room(rollout: "Rollout") -> bool:
    """Whether the version with the traffic has no pods, because a candidate whose objects are there takes its place. A merge needs no room."""
    there = (c for c in rollout.versions.having("Candidate") if rollout.deployment(c.name) is not None)
    return rollout.merge is None and any(_takes_the_place(rollout, c) for c in there)


def waits(rollout: "Rollout", candidate: VersionStatus) -> Fault | None:
    """Why a candidate may have no pods yet; None when it may."""
    current, view = rollout.versions.current, rollout.deployment(candidate.name)
    if current is None or not _takes_the_place(rollout, candidate) or (view and view.replicas):
        return None
    if view is None:
        return Fault(Reason.RECREATING, f"version {candidate.name} is made, then version {current.name} makes room for its pods")
    if left := rollout.pods(current.name):
        return Fault(Reason.RECREATING, f"version {candidate.name} starts when the {len(left)} pods of version {current.name} have ended")
    return None
