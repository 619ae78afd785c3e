"""Conditions, and the phase that is derived from them in one place."""

from collections.abc import Iterable

from finetune_operator.api.meta import Condition, ConditionType, Status
from finetune_operator.reasons import Reason

MAX_MESSAGE = 4096


class Conditions:
    """Conditions under construction. Transition times change only when a status flips."""

    def __init__(self, before: Iterable[Condition], generation: int, now: str) -> None:
        self._before = {c.type: c for c in before}
        self._items = dict(self._before)
        self._generation, self._now = generation, now

    def set(self, kind: ConditionType, status: Status, reason: str, message: str = "") -> None:
        """State a condition."""
        old = self._items.get(kind) or self._before.get(kind)  # dropped and stated again in one decision is no flip
        since = old.last_transition_time if old and old.status == status else self._now
        self._items[kind] = Condition(
            type=kind, status=status, reason=reason, message=message[:MAX_MESSAGE], last_transition_time=since, observed_generation=self._generation
        )

    def drop(self, kind: ConditionType) -> None:
        """Forget a condition that no longer applies."""
        self._items.pop(kind, None)

    def only_if(self, true: bool, kind: ConditionType, cause: Condition | None) -> None:
        """State a condition that is there only while it is true, with the reason of its cause."""
        if true and cause:
            self.set(kind, "True", cause.reason, cause.message)
        else:
            self.drop(kind)

    def get(self, kind: ConditionType) -> Condition | None:
        """A condition as it stands."""
        return self._items.get(kind)

    def is_true(self, kind: ConditionType) -> bool:
        """Whether a condition is True."""
        found = self._items.get(kind)
        return found is not None and found.status == "True"

    def observed(self) -> None:
        """What was not stated again holds for the newest spec as well: all that decides about it cannot be changed. `kubectl wait` asks for that."""
        self._items = {kind: c.model_copy(update={"observed_generation": self._generation}) for kind, c in self._items.items()}

    def all(self) -> list[Condition]:
        """All of them, in a stable order."""
        return sorted(self._items.values(), key=lambda c: _ORDER.get(c.type, len(_ORDER)))


_ORDER: dict[str, int] = {kind: place for place, kind in enumerate(ConditionType)}
_PATH = (
    ConditionType.ACCEPTED,
    ConditionType.DATA_READY,
    ConditionType.FITS,
    ConditionType.QUOTA_RESERVED,
    ConditionType.TRAINED,
    ConditionType.EVALUATED,
    ConditionType.DEPLOYED,
)
_PHASES = {
    ConditionType.ACCEPTED: "Pending",
    ConditionType.DATA_READY: "Preparing",
    ConditionType.FITS: "Pending",
    ConditionType.QUOTA_RESERVED: "Queued",
    ConditionType.TRAINED: "Training",
    ConditionType.EVALUATED: "Deploying",
    ConditionType.DEPLOYED: "Deploying",
}


def _pending(conditions: Conditions) -> Condition | None:
    """The first step on the path that is not done."""
    trained, suspended = conditions.get(ConditionType.TRAINED), conditions.get(ConditionType.SUSPENDED)
    stopping = (trained and trained.reason == Reason.STOPPING) or (suspended and suspended.status == "Unknown")
    quota = conditions.get(ConditionType.QUOTA_RESERVED)
    if quota and quota.status != "True" and not stopping and _is_checked_in_a_queue(conditions):
        return quota
    if _is_hopeless(conditions):
        return conditions.get(ConditionType.DEPLOYED)
    for kind in _PATH:
        found = conditions.get(kind)
        if found is None or found.status == "True":
            continue
        if kind is ConditionType.FITS and found.status == "Unknown":
            continue  # nothing to compare with, which holds nobody up
        if kind is ConditionType.QUOTA_RESERVED and stopping:
            continue  # the quota is gone, but the pod still commits its checkpoint: it is not queued yet
        return found
    return None


def _is_hopeless(conditions: Conditions) -> bool:
    """Whether nothing is trained because its endpoint would not take it."""
    deployed = conditions.get(ConditionType.DEPLOYED)
    ready = conditions.is_true(ConditionType.ACCEPTED) and conditions.is_true(ConditionType.DATA_READY)
    return ready and deployed is not None and deployed.status == "False" and not conditions.is_true(ConditionType.TRAINED)


def _is_checked_in_a_queue(conditions: Conditions) -> bool:
    """Whether what waits for quota is the check of the data."""
    return conditions.is_true(ConditionType.ACCEPTED) and not conditions.is_true(ConditionType.DATA_READY)


def deciding(conditions: Conditions) -> Condition | None:
    """The condition that says where a job stands: how it ended, else why it is held up, else the first step not done."""
    succeeded = conditions.get(ConditionType.SUCCEEDED)
    if succeeded and succeeded.status != "Unknown":
        return succeeded
    suspended = conditions.get(ConditionType.SUSPENDED)
    if suspended and suspended.status != "False":
        return suspended
    return _pending(conditions) or succeeded


def phase(conditions: Conditions) -> str:
    """Summary for people. Never stored as a decision: it is computed from the conditions each time."""
    succeeded = conditions.get(ConditionType.SUCCEEDED)
    if succeeded and succeeded.status != "Unknown":
        return "Succeeded" if succeeded.status == "True" else "Failed"
    if conditions.is_true(ConditionType.SUSPENDED):
        return "Suspended"
    if (found := _pending(conditions)) is None:
        return "Deploying"
    return "Pending" if _is_hopeless(conditions) else _PHASES[ConditionType(found.type)]


def is_final(conditions: Iterable[Condition]) -> bool:
    """Whether a job has succeeded or failed. Terminal stays terminal."""
    return any(c.type == ConditionType.SUCCEEDED and c.status != "Unknown" for c in conditions)


def summarize(conditions: Conditions, *, suspended: bool) -> None:
    """State Reconciling and Stalled, which kstatus reads: helm --wait, Argo CD and Flux wait for the one and fail on the other.

    Both are there only while they are true, as kstatus wants it; a job that is suspended as its spec says is at its goal.
    """
    shown, succeeded = deciding(conditions), conditions.get(ConditionType.SUCCEEDED)
    ended = succeeded.status if succeeded else "Unknown"
    # A job that does not fit, whose names are taken, or whose endpoint cannot take its adapter, cannot go on by itself although it has not failed.
    held = (conditions.get(kind) for kind in (ConditionType.FITS, ConditionType.DEPLOYED))
    stuck = not conditions.is_true(ConditionType.ACCEPTED) or any(found is not None and found.status == "False" for found in held)
    at_goal = ended == "True" or (suspended and conditions.is_true(ConditionType.SUSPENDED))
    stalled = ended == "False" or (ended == "Unknown" and stuck and not at_goal)
    conditions.only_if(stalled, ConditionType.STALLED, shown)
    conditions.only_if(not stalled and not at_goal, ConditionType.RECONCILING, shown)
