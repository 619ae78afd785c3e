"""Versions of an endpoint: what makes one, which one is wanted, and the record of those that there are."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_operator import names
from finetune_operator.api.modelendpoint import Candidate, ModelEndpointSpec, Role, VersionStatus
from finetune_operator.settings import Settings
from finetune_runtime.contract.config import AdapterRef
from finetune_runtime.contract.evaluation import Evaluation

from .adapters import Proposals, Served, as_served, with_known

HISTORY = 5  # versions without pods that stay in the status, so that spec.version can bring them back
# What may change without making a new version of the same adapter.
_NOT_CONTENT = ("replicas", "strategy", "gate", "version", "keepPrevious", "autoRollback", "candidate", "adapters")
_OF_LIVE = ("adapterLoading", "maxAdapters", "maxLoraRank")  # content only there, so that what was served before they came is the same version
# What is forgotten with a role.
_OF_A_ROLE: dict[str, Any] = {"asked": None, "weight": None, "step": None, "step_since": None}
WITH_PODS: tuple[Role, ...] = ("Current", "Candidate", "Previous")


def version_of(endpoint: str, spec: ModelEndpointSpec, adapters: Mapping[str, AdapterRef], settings: Settings) -> str:
    """Name of the version that this spec makes of adapters, by the names that they are served under (empty: the endpoint's own)."""
    content = _content(spec, settings)
    if set(adapters) == {""}:
        content["adapter"] = adapters[""].dump()
    else:
        content["adapters"] = {name: adapter.dump() for name, adapter in adapters.items()}
    return names.endpoint_version(endpoint, json.dumps(content, sort_keys=True))


def host_of(endpoint: str, spec: ModelEndpointSpec, settings: Settings) -> str | None:
    """Name of the Deployment for all versions that differ in adapters only; None where each has its own."""
    return names.endpoint_version(endpoint, json.dumps(_content(spec, settings), sort_keys=True)) if spec.adapter_loading == "Live" else None


def _content(spec: ModelEndpointSpec, settings: Settings) -> dict[str, Any]:
    """All that makes a version besides its adapters."""
    left_out = _NOT_CONTENT if spec.adapter_loading == "Live" else (*_NOT_CONTENT, *_OF_LIVE)
    content = {key: value for key, value in spec.dump().items() if key not in left_out}
    return content | {"image": settings.inference_image if spec.engine == "vLLM" else settings.trainer_image}


@dataclass(frozen=True, slots=True)
class Question:
    """What one adapter of a version has to pass."""

    served: str  # its name; empty: the endpoint's own
    job: str
    eval_loss: str | None
    gates: tuple[Evaluation, ...]

    @property
    def gate(self) -> str:
        """Digest of all that it has to pass; empty when there is nothing."""
        return names.digest(self.served + "".join(g.model_dump_json() for g in self.gates)) if self.gates else ""

    @property
    def asks(self) -> bool:
        """Whether a gate asks it anything."""
        return any(gate.asks for gate in self.gates)


@dataclass(frozen=True, slots=True)
class Target:
    """The version that is wanted."""

    name: str
    candidate: Candidate  # the adapter that it is made for
    asked: str  # digest of the wish: a version that was given up is tried again only when it changes
    served: str = ""  # its name; empty: the endpoint's own
    adapters: Served | None = None  # all of them; None: that one alone, under the endpoint's own name
    questions: tuple[Question, ...] = ()  # of adapters that change: the others are as they were
    given_up: VersionStatus | None = None  # this very wish has failed already
    host: str | None = None  # Deployment that it shares; None: its own

    @property
    def gates(self) -> tuple[Evaluation, ...]:
        """All gates of it."""
        return tuple(gate for question in self.questions for gate in question.gates)

    @property
    def asks(self) -> bool:
        """Whether a gate asks the served version anything."""
        return any(question.asks for question in self.questions)

    @property
    def all(self) -> Served:
        """All adapters by name."""
        return self.adapters or {self.served: as_served(self.served, self.candidate)}

    def record(self, known: VersionStatus | None, current: VersionStatus | None) -> VersionStatus:
        """Its record: a job that proposes the same adapter anew takes it over. What came of a gate is known of the same version, and of adapters that
        are as they were also of the one with the traffic.
        """
        new, old = ({n: a for n, a in self.all.items() if (n in {q.served for q in self.questions}) is asked} for asked in (True, False))
        adapters = with_known(new, known) | with_known(old, known, current)
        main, size = adapters.pop(self.served), self.candidate.model_bytes
        about = {
            **{field: getattr(main, field) for field in ("job", "job_uid", "adapter", "eval_loss", "gate", "evaluation")},
            "host": self.host, "served_name": self.served or None, "others": [adapters[name] for name in sorted(adapters)] or None,
            "model_bytes": size if size is not None else known.model_bytes if known else None,
        }  # fmt: skip
        return (known or VersionStatus(name=self.name, role="Candidate", adapter=main.adapter)).model_copy(update=about)


class Versions:
    """The record of an endpoint's versions under construction."""

    def __init__(self, known: list[VersionStatus], now: str, proposed: Proposals | None = None) -> None:
        """`proposed` is what the spec wants served: that it was given up is not forgotten."""
        self._known, self._now, self._proposed = {v.name: v for v in known}, now, proposed or {}

    def find(self, name: str) -> VersionStatus | None:
        """A version by its name."""
        return self._known.get(name)

    def named(self, wish: str) -> VersionStatus | None:
        """A version by its name, or one of a job: those that have had the traffic first, of them those with pods, and the newest."""
        found = [v for v in self._known.values() if wish in (v.name, v.job)]
        return max(found, key=lambda v: (v.name == wish, v.trusted, v.role in WITH_PODS, v.since), default=None)

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
        """Current, Candidate, the Previous ones, then the last ones without pods and those that are proposed still and were given up."""
        past = self.having("Rejected", "Retired")
        kept = [*past[:HISTORY], *(v for v in past[HISTORY:] if v.role == "Rejected" and self._stands(v))]
        return [*self.having("Current"), *self.having("Candidate"), *self.having("Previous"), *kept]

    def _stands(self, version: VersionStatus) -> bool:
        proposed = self._proposed.get(version.served_name or "")
        return proposed is not None and proposed.adapter == version.adapter


def gates(spec: ModelEndpointSpec, candidate: Candidate | None) -> tuple[Evaluation, ...]:
    """What a version must pass: the endpoint's gate and that of the job that made it."""
    return tuple(gate for gate in (spec.gate, candidate.evaluation if candidate else None) if gate)
