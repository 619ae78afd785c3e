"""Deployment and Service of a model endpoint."""

from typing import Any

from finetune_operator import names
from finetune_operator.api.meta import Owner
from finetune_operator.api.modelendpoint import ModelEndpointSpec
from finetune_operator.settings import Settings
from finetune_runtime.contract.config import SERVING_PORT

from .meta import metadata
from .pod import container, model_env, node_disk, pod_spec, source_volumes, storage_env

SERVICE_PORT = 80
# Loading a large model takes minutes; the start-up probe gives it an hour before the kubelet restarts it.
STARTUP_PERIOD = 5
STARTUP_FAILURES = 720
READY = {"exec": {"command": ["python3", "-m", "finetune_runtime", "ready"]}, "timeoutSeconds": 30}
FETCH_RESOURCES = {"requests": {"cpu": "250m", "memory": "512Mi"}}


def version_labels(owner: Owner, version: str) -> dict[str, str]:
    """Labels of one version's objects; the Service selects by the version label."""
    return names.labels(owner.name, "serving", **{names.LABEL_ENDPOINT: owner.name, names.LABEL_VERSION: version})


def deployment(owner: Owner, spec: ModelEndpointSpec, settings: Settings, version: str) -> dict[str, Any]:
    """Deployment of one version: an init container fetches and verifies, the main container serves."""
    labels = version_labels(owner, version)
    volumes, mounts = source_volumes([spec.model.source])
    image = settings.inference_image if spec.engine == "vLLM" else settings.trainer_image
    env = [*storage_env(spec.storage.s3), *model_env(spec.model)]
    wanted = spec.resources
    fetch = container(names.FETCH_CONTAINER, image, ["fetch"], settings, env=env, volumeMounts=mounts, resources=FETCH_RESOURCES)
    main = container(
        names.CONTAINER,
        image,
        ["serve"],
        settings,
        volumeMounts=mounts,
        ports=[{"name": "http", "containerPort": SERVING_PORT}],
        resources={
            "requests": {"cpu": wanted.cpu, "memory": wanted.memory, wanted.gpu_resource: str(wanted.gpus)},
            "limits": {"memory": wanted.memory, wanted.gpu_resource: str(wanted.gpus)},
        },
        startupProbe={**READY, "periodSeconds": STARTUP_PERIOD, "failureThreshold": STARTUP_FAILURES},
        readinessProbe={**READY, "periodSeconds": 10},
    )
    pod = pod_spec(
        settings,
        version,
        node_disk(wanted.scratch),
        volumes,
        initContainers=[fetch],
        containers=[main],
        terminationGracePeriodSeconds=60,
        nodeSelector=wanted.node_selector,
        tolerations=wanted.tolerations,
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(owner, version, labels),
        "spec": {
            "replicas": spec.replicas,
            "selector": {"matchLabels": {names.LABEL_ENDPOINT: owner.name, names.LABEL_VERSION: version}},
            "progressDeadlineSeconds": STARTUP_PERIOD * STARTUP_FAILURES + 600,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def service(owner: Owner, version: str) -> dict[str, Any]:
    """Service with the stable name; it points at exactly one version, so moving traffic is one write."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, owner.name, names.labels(owner.name, "serving", **{names.LABEL_ENDPOINT: owner.name})),
        "spec": {
            "selector": {names.LABEL_ENDPOINT: owner.name, names.LABEL_VERSION: version},
            "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": "http"}],
        },
    }


def url(endpoint: str, namespace: str) -> str:
    """Base URL of an endpoint's OpenAI-compatible API inside the cluster."""
    return f"http://{endpoint}.{namespace}.svc.cluster.local/v1"
