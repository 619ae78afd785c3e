"""Kubernetes Jobs of the prepare and train steps. One Job is one attempt: retries are decided by us, not by its controller."""

from typing import Any

from finetune_operator import names
from finetune_operator.api.finetunejob import FineTuneJobSpec, Queue
from finetune_operator.api.meta import Owner
from finetune_operator.names import Step
from finetune_operator.settings import Settings
from finetune_runtime.contract.config import STATUS_TOKEN_PATH
from finetune_runtime.contract.result import Exit

from .meta import metadata
from .pod import container, model_env, node_disk, pod_spec, source_volumes, storage_env

# Time to finish a step of a large model and to upload its checkpoint after an eviction, in seconds.
TRAIN_GRACE = 600
PREPARE_GRACE = 30
PREPARE_RESOURCES = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}}
PREPARE_SCRATCH = "50Gi"


def _token_volume(settings: Settings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Projected token that is worth something at our status server only."""
    directory, _, file = STATUS_TOKEN_PATH.rpartition("/")
    source = {"serviceAccountToken": {"audience": settings.audience, "expirationSeconds": 3600, "path": file}}
    return [{"name": "token", "projected": {"sources": [source]}}], [{"name": "token", "mountPath": directory, "readOnly": True}]


def _sources(spec: FineTuneJobSpec, step: Step) -> list[str]:
    data = [*spec.dataset.train, *spec.dataset.validation.sources]
    return [spec.model.source, *(d.source for d in data)] if step is Step.PREPARE else [spec.model.source]


def _affinity(label: str, minimum: int) -> dict[str, Any]:
    """Keep off nodes whose GPUs are known to be smaller; nodes that say nothing of theirs stay possible."""
    enough = {"matchExpressions": [{"key": label, "operator": "Gt", "values": [str(minimum - 1)]}]}
    silent = {"matchExpressions": [{"key": label, "operator": "DoesNotExist"}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [enough, silent]}}}


def _queue_labels(queue: Queue | None) -> dict[str, str]:
    """Labels by which Kueue takes a Job up."""
    if queue is None:
        return {}
    return {names.LABEL_QUEUE: queue.name, **({names.LABEL_PRIORITY: queue.priority_class} if queue.priority_class else {})}


def step_job(owner: Owner, spec: FineTuneJobSpec, settings: Settings, step: Step, attempt: int, *, minimum_mebibytes: int | None = None) -> dict[str, Any]:
    """Job of one attempt of one step. `minimum_mebibytes`: memory that a GPU must have, where its node tells."""
    train = step is Step.TRAIN
    queue = _queue_labels(spec.queue) if train else {}
    volumes, mounts = source_volumes(_sources(spec, step))
    resources: dict[str, Any] = PREPARE_RESOURCES
    placement: dict[str, Any] = {}
    scratch, scratch_path = node_disk(PREPARE_SCRATCH), ""
    if train:
        token_volumes, token_mounts = _token_volume(settings)
        volumes, mounts = volumes + token_volumes, mounts + token_mounts
        wanted = spec.resources
        resources = {
            "requests": {"cpu": wanted.cpu, "memory": wanted.memory, wanted.gpu_resource: str(wanted.gpus)},
            "limits": {"memory": wanted.memory, wanted.gpu_resource: str(wanted.gpus)},
        }
        scratch = node_disk(wanted.scratch)
        if wanted.scratch_claim:
            scratch, scratch_path = {"persistentVolumeClaim": {"claimName": wanted.scratch_claim}}, f"finetune/{owner.uid}"
        placement = {"nodeSelector": wanted.node_selector, "tolerations": wanted.tolerations}
        if minimum_mebibytes:
            placement["affinity"] = _affinity(names.memory_label(wanted.gpu_resource), minimum_mebibytes)
    labels = names.labels(
        owner.name,
        step.lower(),
        **{names.LABEL_JOB: owner.name, names.LABEL_JOB_UID: owner.uid, names.LABEL_STEP: step, names.LABEL_ATTEMPT: str(attempt)},
    )
    main = container(
        names.CONTAINER,
        settings.trainer_image,
        [step.lower()],
        settings,
        scratch_path=scratch_path,
        env=[*storage_env(spec.storage.s3), *model_env(spec.model)],
        volumeMounts=mounts,
        resources=resources,
    )
    pod = pod_spec(
        settings,
        names.config_map(owner.name, owner.uid),
        scratch,
        volumes,
        restartPolicy="Never",
        terminationGracePeriodSeconds=TRAIN_GRACE if train else PREPARE_GRACE,
        containers=[main],
        gpus=spec.resources.gpus if train else 1,
        **placement,
    )
    interrupted = {"containerName": names.CONTAINER, "operator": "In", "values": [int(Exit.INTERRUPTED)]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(owner, names.step_job(owner.name, step, attempt), labels | queue),
        "spec": {
            # A queued Job is started by Kueue alone, when it has quota.
            "suspend": bool(queue),
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 0,
            # A new pod only after the old one is gone: never two trainers of one job at the same time.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {"action": "Ignore", "onExitCodes": interrupted},
                ]
            },
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                        "karpenter.sh/do-not-disrupt": "true",
                    },
                },
                "spec": pod,
            },
        },
    }
