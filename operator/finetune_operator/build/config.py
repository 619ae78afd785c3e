"""ConfigMaps that carry a pod's configuration."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from finetune_operator import names
from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_operator.api.meta import Owner
from finetune_operator.api.modelendpoint import ModelEndpointSpec, VersionStatus
from finetune_operator.settings import Settings
from finetune_runtime.contract.base import parse_quantity
from finetune_runtime.contract.config import AdapterRef, EvaluateConfig, JobConfig, JobRef, Live, NamedAdapter, Reporting, ServeConfig

from .meta import metadata


def threads(cpu: str) -> int:
    """Threads for a CPU request: whole cores, rounded up, so that what was asked for is used."""
    return max(1, math.ceil(parse_quantity(cpu)))


def job_config(owner: Owner, spec: FineTuneJobSpec, settings: Settings) -> JobConfig:
    """What the prepare and train pods of a job need to know."""
    url = f"{settings.status_url}/v1alpha1/namespaces/{owner.namespace}/finetunejobs/{owner.name}/status" if settings.status_url else ""
    return JobConfig(
        job=JobRef(namespace=owner.namespace, name=owner.name, uid=owner.uid),
        model=spec.model,
        dataset=spec.dataset,
        tuning=spec.tuning,
        training=spec.training,
        checkpoints=spec.checkpoints,
        storage=spec.storage.s3,
        reporting=Reporting(url=url),
        storage_timeout_seconds=spec.storage.timeout_seconds,
        allow_cpu=settings.allow_cpu,
        cpu_threads=threads(spec.resources.cpu),
        gpus=spec.resources.gpus,
    )


def serve_config(
    name: str,
    spec: ModelEndpointSpec,
    adapters: Mapping[str, AdapterRef],
    settings: Settings,
    merged: AdapterRef | None = None,
    live: Live | None = None,
) -> ServeConfig:
    """What a serving pod needs to know; `name` is the endpoint's, `merged` what is served instead of base and adapter.

    `adapters` by the names they are served under; empty: the endpoint's own.
    """
    first, *others = sorted(adapters)  # the endpoint's own, if it is there
    return ServeConfig(
        model=spec.model,
        storage=spec.storage.s3,
        adapter=adapters[first],
        others=[NamedAdapter(name=other, adapter=adapters[other]) for other in others] or None,
        merged=merged if spec.quantization == "Merged" else None,
        engine=spec.engine,
        quantization=spec.quantization,
        served_name=first or own_name(name, spec),
        live=live,
        max_length=spec.max_length,
        cache=spec.resources.cache_claim is not None,
        allow_cpu=settings.allow_cpu,
        cpu_threads=threads(spec.resources.cpu),
    )


def own_name(endpoint: str, spec: ModelEndpointSpec, version: VersionStatus | None = None) -> str:
    """The endpoint's own model name in the OpenAI API: that by which the pods of a version go, else that of today's spec."""
    return (version.own_name if version else None) or spec.served_name or endpoint


def config_map(owner: Owner, name: str, labels: dict[str, str], config: JobConfig | ServeConfig | EvaluateConfig, ca: str = "") -> dict[str, Any]:
    """ConfigMap with config.json and, for pods that report, the CA of the status server.

    The CA is a key of its own because it changes when the operator restarts; the kubelet carries the new one into
    running pods within a minute or so.
    """
    data = {"config.json": json.dumps(config.dump(), indent=1, sort_keys=True)}
    if ca:
        data["status-ca.crt"] = ca
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(owner, name, labels), "data": data}


@dataclass(frozen=True, slots=True)
class JobConfiguration:
    """The ConfigMap of a job's pods and what follows from its content."""

    config_map: dict[str, Any]
    config_hash: str
    prefix: str  # s3:// URI


@dataclass(frozen=True, slots=True)
class _Inputs:
    owner: tuple[str, str, str]  # namespace, name, UID
    spec: str
    settings: Settings
    ca: str
    parsed: tuple[Owner, FineTuneJobSpec] = field(compare=False)


@lru_cache(maxsize=2048)
def _job_configuration(made_of: _Inputs) -> JobConfiguration:
    owner, spec = made_of.parsed
    content = job_config(owner, spec, made_of.settings)
    body = config_map(owner, names.config_map(owner.name, owner.uid), job_labels(owner), content, made_of.ca)
    return JobConfiguration(body, content.config_hash(), content.prefix)


def job_configuration(owner: Owner, spec: FineTuneJobSpec, settings: Settings, ca: str) -> JobConfiguration:
    """Configuration of a job's pods. It is asked for at every look at a job, so the last ones are kept; do not change what is returned."""
    return _job_configuration(_Inputs((owner.namespace, owner.name, owner.uid), spec.model_dump_json(), settings, ca, (owner, spec)))


def job_labels(owner: Owner) -> dict[str, str]:
    """Labels of everything that belongs to a FineTuneJob."""
    return names.labels(owner.name, "job", **{names.LABEL_JOB: owner.name})
