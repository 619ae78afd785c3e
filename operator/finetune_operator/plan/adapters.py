"""Adapters that one version serves under several names, and whose turn it is among those that are proposed.

A version is a set of adapters. Names change one at a time: what is proposed under one name is tried on top of what the version with the
traffic serves, so that a bad one is known by its name, and none of the others is lost or held up for long.

Names are keys here; the empty one is the endpoint's own, whatever spec.servedName calls it.
"""

from collections.abc import Mapping

from finetune_operator.api.modelendpoint import Candidate, ModelEndpointSpec, ServedAdapter, VersionStatus
from finetune_runtime.contract.config import AdapterRef

Proposals = dict[str, Candidate]
Served = dict[str, ServedAdapter]


def proposals(spec: ModelEndpointSpec) -> Proposals:
    """What is to be served, by name: the endpoint's own first."""
    own: Proposals = {"": spec.candidate} if spec.candidate else {}
    return own | {entry.name: entry for entry in spec.adapters}


def served(version: VersionStatus) -> Served:
    """All adapters of a version by name, the one that it was made for first."""
    main = ServedAdapter(
        name=version.served_name, job=version.job, job_uid=version.job_uid, adapter=version.adapter, eval_loss=version.eval_loss, gate=version.gate,
        evaluation=version.evaluation,
    )  # fmt: skip
    return {found.name or "": found for found in (main, *(version.others or ()))}


def refs(adapters: Mapping[str, ServedAdapter]) -> dict[str, AdapterRef]:
    """Where adapters are, by name."""
    return {name: found.adapter for name, found in adapters.items()}


def as_served(name: str, proposed: Candidate) -> ServedAdapter:
    """A proposal as an adapter of a version; nothing is known of its gate."""
    return ServedAdapter(name=name or None, job=proposed.job, job_uid=proposed.job_uid, adapter=proposed.adapter, eval_loss=proposed.eval_loss)


def with_known(wanted: Served, *records: VersionStatus | None) -> Served:
    """The same adapters with what came of their gates, from the first of these versions that serves them under the same names, and from nowhere else."""
    found = {name: adapter.model_copy(update={"gate": None, "evaluation": None}) for name, adapter in wanted.items()}
    for record in reversed([r for r in records if r]):
        for name, known in served(record).items():
            if name in wanted and wanted[name].adapter == known.adapter:
                found[name] = wanted[name].model_copy(update={"gate": known.gate, "evaluation": known.evaluation})
    return found


def public(version: VersionStatus, own: str) -> list[str]:
    """Model names in the OpenAI API that a version serves: the endpoint's own first, then by the alphabet."""
    return [name or own for name in sorted(served(version))]


def of_job(versions: list[VersionStatus], uid: str) -> list[VersionStatus]:
    """Versions that are about a job's adapter: made for it, or serving it beside another one."""

    def about(version: VersionStatus) -> bool:
        beside = any(other.job_uid == uid for other in version.others or ())
        return version.job_uid == uid or (beside and version.trusted and version.role != "Rejected")

    return [version for version in versions if about(version)]
