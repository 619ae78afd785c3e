"""Kubernetes Job that asks a version the questions of the gate."""

from typing import Any

from finetune_operator import names
from finetune_operator.api.meta import Owner
from finetune_operator.api.modelendpoint import ModelEndpointSpec, ServedAdapter, VersionStatus
from finetune_operator.settings import Settings
from finetune_runtime.contract.config import SERVED_BASE, DriftConfig, EvaluateConfig, JobRef, Target, judge_key
from finetune_runtime.contract.evaluation import Evaluation

from .config import config_map, own_name
from .errand import errand, errand_labels
from .pod import container, model_env, node_disk, pod_spec, source_volumes, storage_env
from .serving import version_url

RESOURCES = {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}}
SCRATCH = "10Gi"  # a file of prompts
RETRIES = 3  # by the Job's controller, after crashes and while storage is down
LONGEST = 12 * 3600  # seconds: thousands of prompts to a large model on one GPU


def _labels(owner: Owner) -> dict[str, str]:
    return errand_labels(owner, "evaluation", names.EVALUATE)


def evaluate_config(
    owner: Owner,
    spec: ModelEndpointSpec,
    gates: tuple[Evaluation, ...],
    adapter: ServedAdapter,
    version: VersionStatus,
    current: VersionStatus | None,
    asked: str = "",
) -> EvaluateConfig:
    """What the pod needs to know. `adapter`: which one of the version is asked, by the name `asked`; empty: the one that users ask. `current`: the
    version that has the traffic and serves one under that name.
    """
    own = own_name(owner.name, spec, version)
    # The one that a version is made for has its results in the version's directory, as always.
    place = version.name if adapter.name == version.served_name else f"{version.name}-{names.digest(adapter.name or '')}"
    return EvaluateConfig(
        endpoint=JobRef(namespace=owner.namespace, name=owner.name, uid=owner.uid),
        version=version.name,
        job=adapter.job,
        gates=list(gates),
        candidate=Target(url=version_url(version.place, owner.namespace), model=asked or adapter.name or own),
        base=None if spec.quantization == "Merged" else Target(url=version_url(version.place, owner.namespace), model=SERVED_BASE),
        current=Target(url=version_url(current.place, owner.namespace), model=adapter.name or own_name(owner.name, spec, current)) if current else None,
        storage=spec.storage.s3,
        uri=f"{spec.storage.s3.uri.rstrip('/')}/{owner.namespace}/{owner.name}/{owner.uid}/evaluations/{place}",
        eval_loss=adapter.eval_loss,
        drift=None if spec.quantization == "AsTrained" else DriftConfig(adapter=adapter.adapter, quantization=spec.quantization, engine=spec.engine),
        storage_timeout_seconds=spec.storage.timeout_seconds,
    )


def evaluation_config(owner: Owner, version: str, config: EvaluateConfig) -> dict[str, Any]:
    """ConfigMap of a version's evaluation."""
    return config_map(owner, names.evaluation_config(version), _labels(owner), config)


def evaluation_job(owner: Owner, spec: ModelEndpointSpec, settings: Settings, name: str, version: str, gates: tuple[Evaluation, ...]) -> dict[str, Any]:
    """Job of an evaluation. It needs no GPU: it asks as users do, through the version's own Service."""
    volumes, mounts = source_volumes([gate.prompts_from.source for gate in gates if gate.prompts_from])
    judges = [
        {"name": judge_key(place), "valueFrom": {"secretKeyRef": {"name": gate.judge.secret_ref.name, "key": "OPENAI_API_KEY"}}}
        for place, gate in enumerate(gates)
        if gate.judge and gate.judge.secret_ref
    ]
    env = [*storage_env(spec.storage.s3), *model_env(spec.model), *judges]
    main = container(names.CONTAINER, settings.trainer_image, ["evaluate"], settings, env=env, volumeMounts=mounts, resources=RESOURCES)
    pod = pod_spec(
        settings, names.evaluation_config(version), node_disk(SCRATCH), volumes, restartPolicy="Never", terminationGracePeriodSeconds=10, containers=[main]
    )
    return errand(owner, name, _labels(owner), pod, retries=RETRIES, seconds=LONGEST)
