"""The ModelEndpoint that a FineTuneJob asks for."""

from collections.abc import Mapping
from typing import Any

from finetune_operator import names
from finetune_operator.api import API_VERSION
from finetune_operator.api.finetunejob import FineTuneJobSpec, Inference
from finetune_operator.api.jobstatus import ArtifactStatus
from finetune_operator.api.meta import Owner
from finetune_operator.api.modelendpoint import Candidate, ModelEndpointSpec
from finetune_runtime.contract.model_shape import ModelShape

from .meta import metadata


def candidate(owner: Owner, spec: FineTuneJobSpec, artifact: ArtifactStatus, model: ModelShape | None) -> dict[str, Any]:
    """The version that a job proposes."""
    size = model.parameters * model.weight_bytes if model else None
    found = Candidate(job=owner.name, job_uid=owner.uid, adapter=artifact.adapter, eval_loss=artifact.eval_loss, evaluation=spec.evaluation, model_bytes=size)
    return found.dump()


def endpoint_name(owner: Owner, inference: Inference) -> str:
    """Name of the endpoint that a job deploys to."""
    return inference.endpoint or owner.name


def endpoint(owner: Owner, spec: FineTuneJobSpec, inference: Inference, artifact: ArtifactStatus, model: ModelShape | None) -> dict[str, Any]:
    """A whole endpoint. One with a name of its own outlives the job, so it has no owner."""
    name = endpoint_name(owner, inference)
    meta = metadata(owner, name, names.labels(name, "endpoint", **{names.LABEL_ENDPOINT: name}))
    if inference.endpoint:
        del meta["ownerReferences"]
    body = ModelEndpointSpec(
        model=spec.model,
        storage=spec.storage,
        engine=inference.engine,
        quantization=inference.quantization,
        replicas=inference.replicas,
        max_length=inference.max_length or spec.training.max_length,
        served_name=inference.served_name,
        resources=inference.resources,
        strategy=inference.strategy,
        keep_previous=inference.keep_previous,
    ).dump()
    body["candidate"] = candidate(owner, spec, artifact, model)
    return {"apiVersion": API_VERSION, "kind": "ModelEndpoint", "metadata": meta, "spec": body}


def proposal(namespace: str, name: str, version: dict[str, Any], served_name: str = "") -> dict[str, Any]:
    """Only the candidate, for an endpoint that exists already. `served_name`: that of an adapter beside the endpoint's own."""
    spec = {"adapters": [{"name": served_name, **version}]} if served_name else {"candidate": version}
    return {"apiVersion": API_VERSION, "kind": "ModelEndpoint", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def proposed_name(body: Mapping[str, Any]) -> str:
    """Name that a proposal is about; empty: the endpoint's own."""
    return next((str(entry["name"]) for entry in body["spec"].get("adapters", ())), "")
