"""The one shape of every pod that we make: restricted, read-only, without an API token."""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from finetune_operator import names
from finetune_operator.settings import Settings
from finetune_runtime.contract.config import ALLOWED_CIDRS_ENV, CONFIG_DIR, CONFIG_PATH, SCRATCH_DIR, SOURCES_DIR, USER_ID, mounted_source
from finetune_runtime.contract.spec import ModelSpec, S3Storage

_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_MOUNTS: list[dict[str, Any]] = [
    {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
    {"name": "scratch", "mountPath": SCRATCH_DIR},
    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  the pod's own volume
    {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  shared memory of data loaders and engines
]


def storage_env(storage: S3Storage) -> list[dict[str, Any]]:
    """Credentials by reference: the operator never sees their values."""
    env: list[dict[str, Any]] = [
        {"name": "AWS_REGION", "value": storage.region},
        # Without credentials the client would ask the node's metadata service, which is not ours to talk to.
        {"name": "AWS_EC2_METADATA_DISABLED", "value": "true"},
    ]
    if storage.secret_ref:
        env += [
            {"name": key, "valueFrom": {"secretKeyRef": {"name": storage.secret_ref.name, "key": key}}}
            for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        ]
    return env


def model_env(model: ModelSpec) -> list[dict[str, Any]]:
    """The hub token, by reference."""
    if not model.secret_ref:
        return []
    return [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": model.secret_ref.name, "key": "HF_TOKEN"}}}]


def source_env(settings: Settings) -> list[dict[str, Any]]:
    """What the cluster's administrator says about sources: another hub, and networks of https:// servers beside the public ones."""
    values = {"HF_ENDPOINT": settings.hub_endpoint, ALLOWED_CIDRS_ENV: ",".join(settings.allowed_cidrs)}
    return [{"name": name, "value": value} for name, value in values.items() if value]


def source_volumes(uris: Iterable[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(volumes, mounts) for pvc:// and configmap:// sources; each object is mounted once, read-only."""
    volumes: dict[str, dict[str, Any]] = {}
    mounts: list[dict[str, Any]] = []
    for uri in uris:
        mounted = mounted_source(uri)
        if not mounted:
            continue
        kind, name, _path = mounted
        if f"{kind}/{name}" in volumes:
            continue
        volume = f"source-{len(volumes)}"
        if kind == "pvc":
            volumes[f"{kind}/{name}"] = {"name": volume, "persistentVolumeClaim": {"claimName": name, "readOnly": True}}
        else:
            # optional: a missing ConfigMap then is a missing file, which the pod names, instead of a pod that never starts.
            volumes[f"{kind}/{name}"] = {"name": volume, "configMap": {"name": name, "optional": True}}
        mounts.append({"name": volume, "mountPath": f"{SOURCES_DIR}/{kind}/{name}", "readOnly": True})
    return list(volumes.values()), mounts


def node_disk(size: str) -> dict[str, Any]:
    """Source of a scratch volume that lives as long as its pod, at most `size` bytes large."""
    return {"emptyDir": {"sizeLimit": size}}


def container(name: str, image: str, args: list[str], settings: Settings, *, scratch_path: str = "", **fields: Any) -> dict[str, Any]:
    """A container that runs `finetune_runtime` with these arguments, as PID 1. `scratch_path`: directory of the scratch volume; empty: its root."""
    part = {"subPath": scratch_path} if scratch_path else {}
    mounts = [mount | (part if mount["name"] == "scratch" else {}) for mount in _MOUNTS] + fields.pop("volumeMounts", [])
    env = [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108  the pod's own volume
        {"name": "HF_HOME", "value": f"{SCRATCH_DIR}/hf"},
        {"name": "MODELSCOPE_CACHE", "value": f"{SCRATCH_DIR}/modelscope"},
        *source_env(settings),
        *fields.pop("env", []),
    ]
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["python3", "-m", "finetune_runtime"],
        "args": args,
        "env": env,
        "volumeMounts": mounts,
        "securityContext": _RESTRICTED,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **fields,
    }


def annotated_config() -> dict[str, Any]:
    """Source of a configuration that a pod carries in its own annotation, so that it goes when the pod's owner goes."""
    return {
        "downwardAPI": {"items": [{"path": PurePosixPath(CONFIG_PATH).name, "fieldRef": {"fieldPath": f"metadata.annotations['{names.ANNOTATION_CONFIG}']"}}]}
    }


def pod_spec(
    settings: Settings, config: str | dict[str, Any], scratch: dict[str, Any], volumes: list[dict[str, Any]], *, gpus: int = 1, **fields: Any
) -> dict[str, Any]:
    """Pod spec around containers. `config`: the ConfigMap's name, or another source of the volume; `scratch`: the source of the scratch volume."""
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "config", **({"configMap": {"name": config}} if isinstance(config, str) else config)},
            {"name": "scratch", **scratch},
            {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
            # For each further GPU another process's loaders, and what NCCL passes from GPU to GPU where they have no link.
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{gpus + 1}Gi"}},
            *volumes,
        ],
        **fields,
    }
    if settings.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    return spec
