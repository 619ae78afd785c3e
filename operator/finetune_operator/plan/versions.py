"""Versions of an endpoint: what makes one, which one is wanted, and the record of those that there are."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from finetune_operator import names
from finetune_operator.api.modelendpoint import Candidate, ModelEndpointSpec, Role, VersionStatus
from finetune_operator.settings import Settings
from finetune_runtime.contract.config import AdapterRef
from finetune_runtime.contract.evaluation import Evaluation

HISTORY = 5  # versions without pods that stay in the status, so that spec.version can bring them back
# What may change without making a new version of the same adapter.
_NOT_CONTENT = ("replicas", "strategy", "gate", "version", "keepPrevious", "autoRollback", "candidate")
# What is forgotten with a role.
_OF_A_ROLE: dict[str, Any] = {"asked": None, "weight": None, "step": None, "step_since": None}
_WITH_PODS = ("Current", "Candidate", "Previous")


def version_name(endpoint: str, spec: ModelEndpointSpec, adapter: AdapterRef, settings: Settings) -> str:
    """Name of the version that this spec makes of an adapter."""
    content = {key: value for key, value in spec.dump().items() if key not in _NOT_CONTENT}
    content["adapter"] = adapter.dump()
    content["image"] = settings.inference_image if spec.engine == "vLLM" else settings.trainer_image
    return names.endpoint_version(endpoint, json.dumps(content, sort_keys=True))


@dataclass(frozen=True, slots=True)
class Target:
    """The version that is wanted."""

    name: str
    candidate: Candidate
    gates: tuple[Evaluation, ...]
    asked: str  # digest of the wish: a version that was given up is tried again only when it changes

    @property
    def gate(self) -> str:
        """Digest of all that the version has to pass; empty when there is nothing."""
        return names.digest("".join(g.model_dump_json() for g in self.gates)) if self.gates else ""

    @property
    def asks(self) -> bool:
        """Whether a gate asks the served version anything."""
        return any(gate.asks for gate in self.gates)


class Versions:
    """The record of an endpoint's versions under construction."""

    def __init__(self, known: list[VersionStatus], now: str) -> None:
        self._known, self._now = {v.name: v for v in known}, now

    def find(self, name: str) -> VersionStatus | None:
        """A version by its name."""
        return self._known.get(name)

    def named(self, wish: str) -> VersionStatus | None:
        """A version by its name, or the newest one of a job; versions with pods first."""
        found = [v for v in self._known.values() if wish in (v.name, v.job)]
        return max(found, key=lambda v: (v.name == wish, v.role in _WITH_PODS, v.since), default=None)

    def having(self, *roles: Role) -> list[VersionStatus]:
        """Versions in these roles, those that came into them last first."""
        return sorted((v for v in self._known.values() if v.role in roles), key=lambda v: (v.since, v.name), reverse=True)

    @property
    def current(self) -> VersionStatus | None:
        """The version that gets the traffic."""
        return next(iter(self.having("Current")), None)

    def put(self, version: VersionStatus) -> VersionStatus:
        """Record a version; the time counts from when it comes into a role."""
        known = self._known.get(version.name)
        since = known.since if known and known.role == version.role and known.since else self._now
        self._known[version.name] = version.model_copy(update={"since": since})
        return self._known[version.name]

    def again(self, version: VersionStatus, **fields: Any) -> VersionStatus:
        """Change fields of a version, and count its time in its role from now on."""
        self._known[version.name] = version.model_copy(update={**fields, "since": self._now})
        return self._known[version.name]

    def move(self, version: VersionStatus, role: Role, reason: str | None = None, message: str | None = None, **fields: Any) -> VersionStatus:
        """Bring a version into a role, and forget why it was in the last one."""
        return self.put(version.model_copy(update={**_OF_A_ROLE, **fields, "role": role, "reason": reason, "message": message and message[:2048]}))

    def all(self) -> list[VersionStatus]:
        """Current, Candidate, the Previous ones, then the last ones without pods."""
        past = self.having("Rejected", "Retired")[:HISTORY]
        return [*self.having("Current"), *self.having("Candidate"), *self.having("Previous"), *past]


def gates(spec: ModelEndpointSpec, candidate: Candidate) -> tuple[Evaluation, ...]:
    """What a version must pass: the endpoint's gate and that of the job that made it."""
    return tuple(gate for gate in (spec.gate, candidate.evaluation) if gate)


def target(endpoint: str, spec: ModelEndpointSpec, versions: Versions, alive: Collection[str], settings: Settings) -> Target | None:
    """The version that spec.version names, else the one that spec.candidate makes; None when there is none. `alive`: versions with a Deployment.

    A version that has had the traffic gets it back without passing the gate again: whoever names it has decided. One that never had it can
    only be named while it is the candidate, or its job's gate would be forgotten.
    """
    proposed = spec.candidate
    own = version_name(endpoint, spec, proposed.adapter, settings) if proposed else ""
    known = versions.named(spec.version) if spec.version else None
    if proposed and (spec.version in (None, own) or (spec.version == proposed.job and (known is None or known.adapter == proposed.adapter))):
        return _wish(spec, own, proposed, gates(spec, proposed))
    if known is None or not known.trusted:
        return None
    # One with pods is taken as it is, also when it was made by an older spec; one without is made anew, by today's.
    name = known.name if known.name in alive else version_name(endpoint, spec, known.adapter, settings)
    about = {field: getattr(known, field) for field in ("job", "job_uid", "adapter", "eval_loss", "model_bytes")}
    return _wish(spec, name, Candidate(**about), ())


def _wish(spec: ModelEndpointSpec, name: str, candidate: Candidate, found: tuple[Evaluation, ...]) -> Target:
    wish = "".join((spec.version or "", *(g.model_dump_json() for g in found)))
    return Target(name, candidate, found, names.digest(wish))
