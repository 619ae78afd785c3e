"""What is remembered of an endpoint and of the pods of its versions, to judge by it what happens later."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from finetune_runtime.contract.evaluation import Evaluation

from .adapters import sha, wanted
from .api import Raw


def canonical(gates: Iterable[Evaluation]) -> tuple[str, ...]:
    """Gates in a form that can be compared."""
    return tuple(gate.model_dump_json() for gate in gates)


def gates_of(spec: Raw, adapter: str) -> list[Evaluation]:
    """What this adapter has to pass: the endpoint's gate, and that of its job if it is proposed."""
    own = next((entry.get("evaluation") for entry in wanted(spec).values() if sha(entry) == adapter), None)
    return [Evaluation.model_validate(gate) for gate in (spec.get("gate"), own) if gate]


def place_of(record: Raw) -> str:
    """Name of the Deployment in whose pods a version is."""
    return str(record.get("host") or record.get("name", ""))


def versions_of(raw: Raw) -> dict[str, Raw]:
    """The record of versions by name."""
    return {v["name"]: v for v in raw["status"].get("versions") or ()}


@dataclass(slots=True)
class History:
    """What is remembered of one ModelEndpoint."""

    specs: list[tuple[float, Raw]] = field(default_factory=list)  # with the time from which they held
    served: set[str] = field(default_factory=set)  # versions that have had the traffic
    adapters: set[str] = field(default_factory=set)  # and their adapters
    public: set[str] = field(default_factory=set)  # adapters that a gate let into pods which may have got the traffic, also where that came to nothing
    compared: dict[str, str] = field(default_factory=dict)  # versions that passed a comparison last, with the Deployment of what they were compared with
    passed: set[tuple[str, str, tuple[str, ...]]] = field(default_factory=set)  # how it was served, adapter and gates


@dataclass(slots=True)
class Fitness:
    """What the pods of one version have done."""

    answering: set[str] = field(default_factory=set)  # UIDs
    most: int = 0  # that ever answered at once
    last: float = float("-inf")  # when one last answered, if none does now
    since: float = float("-inf")  # when one answered after none did
    crashed: bool = False
