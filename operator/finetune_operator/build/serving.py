"""Deployment and Service of a model endpoint."""

from typing import Any

from finetune_operator import names
from finetune_operator.api.meta import Owner
from finetune_operator.api.modelendpoint import ModelEndpointSpec
from finetune_operator.settings import Settings
from finetune_runtime.contract.config import CACHE_DIR, DRAINING, SCRATCH_DIR, SERVING_PORT

from .meta import metadata
from .pod import container, model_env, node_disk, pod_spec, source_volumes, storage_env

SERVICE_PORT = 80
COMPONENT = "serving"
STARTUP_PERIOD = 5  # seconds
STARTUP_LEAST = 600  # seconds: engines compile and warm up, whatever the size of the model
STARTUP_UNKNOWN = 3600  # seconds for a model of unknown size
LOAD_BYTES_PER_SECOND = 20e6  # a slow network disk
# Pods stay for so long (seconds) after they were told to end, so that every proxy has heard of it before they stop to answer. The file tells the engine
# to close connections that clients keep open: else they would break when it ends.
DRAIN = 10
PRE_STOP = ["sh", "-c", f"touch {SCRATCH_DIR}/{DRAINING}; sleep {DRAIN}"]
GRACE = DRAIN + 60
READY = {"exec": {"command": ["python3", "-m", "finetune_runtime", "ready"]}, "timeoutSeconds": 30}
FOLLOW_RESOURCES = {"requests": {"cpu": "50m", "memory": "192Mi"}}  # it sleeps but for a download now and then
FETCH_RESOURCES = {"requests": {"cpu": "250m", "memory": "512Mi"}}


def startup_seconds(model_bytes: int | None) -> int:
    """Time that an engine has to answer before the kubelet starts it anew, in seconds: what the slowest disk needs to read the weights twice."""
    return STARTUP_UNKNOWN if model_bytes is None else STARTUP_LEAST + round(2 * model_bytes / LOAD_BYTES_PER_SECOND)


def version_labels(owner: Owner, version: str) -> dict[str, str]:
    """Labels of one version's objects; the Service selects by the version label."""
    return names.labels(owner.name, COMPONENT, **{names.LABEL_ENDPOINT: owner.name, names.LABEL_VERSION: version})


def _cache(claim: str | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(volumes, mounts) for base models that outlive pods: the init container writes, the engine reads."""
    if claim is None:
        return [], []
    return [{"name": "cache", "persistentVolumeClaim": {"claimName": claim}}], [{"name": "cache", "mountPath": CACHE_DIR}]


def deployment(owner: Owner, spec: ModelEndpointSpec, settings: Settings, version: str, replicas: int, model_bytes: int | None = None) -> dict[str, Any]:
    """Deployment of one version: an init container fetches and verifies, the main container serves."""
    startup = startup_seconds(model_bytes)
    # A new version is a new Deployment; this is for a pod template that a newer operator builds otherwise.
    update = {"type": "Recreate"} if spec.strategy.type == "Recreate" else {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {names.LABEL_ENDPOINT: owner.name, names.LABEL_VERSION: version}},
    }
    labels = version_labels(owner, version)
    volumes, mounts = source_volumes([spec.model.source])
    image = settings.inference_image if spec.engine == "vLLM" else settings.trainer_image
    env = [*storage_env(spec.storage.s3), *model_env(spec.model)]
    wanted = spec.resources
    cached, cache = _cache(wanted.cache_claim)
    volumes, mounts = volumes + cached, mounts + cache
    fetch = container(names.FETCH_CONTAINER, image, ["fetch"], settings, env=env, volumeMounts=mounts, resources=FETCH_RESOURCES)
    # Beside the engine for as long as the pod lives: it has the keys of the storage, which the engine must not have.
    follow = container(names.FOLLOW_CONTAINER, image, ["follow"], settings, env=storage_env(spec.storage.s3), resources=FOLLOW_RESOURCES) | {
        "restartPolicy": "Always"
    }
    main = container(
        names.CONTAINER,
        image,
        ["serve"],
        settings,
        volumeMounts=[mount | {"readOnly": True} for mount in mounts],
        ports=[{"name": "http", "containerPort": SERVING_PORT}],
        resources={
            "requests": {"cpu": wanted.cpu, "memory": wanted.memory, wanted.gpu_resource: str(wanted.gpus)},
            "limits": {"memory": wanted.memory, wanted.gpu_resource: str(wanted.gpus)},
        },
        startupProbe={**READY, "periodSeconds": STARTUP_PERIOD, "failureThreshold": startup // STARTUP_PERIOD},
        readinessProbe={**READY, "periodSeconds": 10},
        lifecycle={"preStop": {"exec": {"command": PRE_STOP}}},
    )
    pod = pod_spec(
        settings,
        version,
        node_disk(wanted.scratch),
        volumes,
        initContainers=[fetch, *([follow] if spec.adapter_loading == "Live" else [])],
        containers=[main],
        terminationGracePeriodSeconds=GRACE,
        topologySpreadConstraints=[spread],
        nodeSelector=wanted.node_selector,
        tolerations=wanted.tolerations,
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(owner, version, labels),
        "spec": {
            "replicas": replicas,
            "strategy": update,
            "selector": {"matchLabels": {names.LABEL_ENDPOINT: owner.name, names.LABEL_VERSION: version}},
            "progressDeadlineSeconds": startup + 600,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _service(owner: Owner, name: str, labels: dict[str, str], version: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, name, labels),
        "spec": {
            "selector": {names.LABEL_ENDPOINT: owner.name, names.LABEL_VERSION: version},
            "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": "http"}],
        },
    }


def service(owner: Owner, version: str) -> dict[str, Any]:
    """Service with the stable name; it points at exactly one version, so moving traffic is one write."""
    return _service(owner, owner.name, names.labels(owner.name, COMPONENT, **{names.LABEL_ENDPOINT: owner.name}), version)


def version_service(owner: Owner, version: str) -> dict[str, Any]:
    """Service of one version alone: the gate asks it there before it has any traffic."""
    return _service(owner, version, version_labels(owner, version), version)


def disruption_budget(owner: Owner, version: str) -> dict[str, Any]:
    """Drains take one pod at a time of the version that has the traffic."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(owner, owner.name, names.labels(owner.name, COMPONENT, **{names.LABEL_ENDPOINT: owner.name})),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {names.LABEL_ENDPOINT: owner.name, names.LABEL_VERSION: version}}},
    }


def selector(endpoint: str, version: str) -> str:
    """Label selector of the pods that autoscalers measure: those with the traffic."""
    return f"{names.LABEL_ENDPOINT}={endpoint},{names.LABEL_VERSION}={version}"


def url(endpoint: str, namespace: str) -> str:
    """Base URL of an endpoint's OpenAI-compatible API inside the cluster."""
    return f"http://{endpoint}.{namespace}.svc.cluster.local/v1"


version_url = url  # a version's own Service is named after it
