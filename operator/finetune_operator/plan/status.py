"""Conditions, and the phase that is derived from them in one place."""

from collections.abc import Iterable

from finetune_operator.api.meta import Condition, ConditionType, Status

MAX_MESSAGE = 4096


class Conditions:
    """Conditions under construction. Transition times change only when a status flips."""

    def __init__(self, before: Iterable[Condition], generation: int, now: str) -> None:
        self._items = {c.type: c for c in before}
        self._generation, self._now = generation, now

    def set(self, kind: ConditionType, status: Status, reason: str, message: str = "") -> None:
        """State a condition."""
        old = self._items.get(kind)
        since = old.last_transition_time if old and old.status == status else self._now
        self._items[kind] = Condition(
            type=kind, status=status, reason=reason, message=message[:MAX_MESSAGE], last_transition_time=since, observed_generation=self._generation
        )

    def drop(self, kind: ConditionType) -> None:
        """Forget a condition that no longer applies."""
        self._items.pop(kind, None)

    def get(self, kind: ConditionType) -> Condition | None:
        """A condition as it stands."""
        return self._items.get(kind)

    def is_true(self, kind: ConditionType) -> bool:
        """Whether a condition is True."""
        found = self._items.get(kind)
        return found is not None and found.status == "True"

    def all(self) -> list[Condition]:
        """All of them, in a stable order."""
        order = list(ConditionType)
        return sorted(self._items.values(), key=lambda c: order.index(ConditionType(c.type)) if c.type in order else len(order))


_PATH = (ConditionType.ACCEPTED, ConditionType.DATA_READY, ConditionType.TRAINED, ConditionType.DEPLOYED)
_PHASES = {
    ConditionType.ACCEPTED: "Pending",
    ConditionType.DATA_READY: "Preparing",
    ConditionType.TRAINED: "Training",
    ConditionType.DEPLOYED: "Deploying",
}


def deciding(conditions: Conditions) -> Condition | None:
    """The condition that says where a job stands: how it ended, else why it is held up, else the first step not done."""
    succeeded = conditions.get(ConditionType.SUCCEEDED)
    if succeeded and succeeded.status != "Unknown":
        return succeeded
    suspended = conditions.get(ConditionType.SUSPENDED)
    if suspended and suspended.status != "False":
        return suspended
    return next((c for kind in _PATH if (c := conditions.get(kind)) and c.status != "True"), succeeded)


def phase(conditions: Conditions) -> str:
    """Summary for people. Never stored as a decision: it is computed from the conditions each time."""
    succeeded = conditions.get(ConditionType.SUCCEEDED)
    if succeeded and succeeded.status != "Unknown":
        return "Succeeded" if succeeded.status == "True" else "Failed"
    if conditions.is_true(ConditionType.SUSPENDED):
        return "Suspended"
    for kind in _PATH:
        found = conditions.get(kind)
        if found is None or found.status != "True":
            return _PHASES[kind]
    return "Deploying"


def is_final(conditions: Iterable[Condition]) -> bool:
    """Whether a job has succeeded or failed. Terminal stays terminal."""
    return any(c.type == ConditionType.SUCCEEDED and c.status != "Unknown" for c in conditions)
