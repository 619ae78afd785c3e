"""Kubernetes Job that merges a version's adapter into its base."""

import json
from typing import Any

from finetune_operator import names
from finetune_operator.api.meta import Owner
from finetune_operator.api.modelendpoint import ModelEndpointSpec
from finetune_operator.settings import Settings
from finetune_runtime.contract.artefact import MERGED_DIR
from finetune_runtime.contract.config import AdapterRef, MergeConfig

from .config import threads
from .errand import errand, errand_labels
from .pod import annotated_config, container, model_env, node_disk, pod_spec, source_volumes, storage_env

# It works on a few million numbers at a time, whatever the size of the model; the rest is for libraries and what the kernel keeps of files.
CPU = "1"
RESOURCES = {"requests": {"cpu": CPU, "memory": "1Gi"}, "limits": {"memory": "4Gi"}}
RETRIES = 6  # by the Job's controller, after crashes and while storage is down: about ten minutes
LONGEST = 12 * 3600  # seconds: hundreds of gigabytes over a slow line


def _labels(owner: Owner) -> dict[str, str]:
    return errand_labels(owner, "merge", names.MERGE)


def merge_config(owner: Owner, spec: ModelEndpointSpec, adapter: AdapterRef) -> MergeConfig:
    """What the pod needs to know. Merged models lie below the endpoint's name, each named after its content, so that no namesake makes one again."""
    uri = f"{spec.storage.s3.uri.rstrip('/')}/{owner.namespace}/{owner.name}/{MERGED_DIR}"
    return MergeConfig(model=spec.model, storage=spec.storage.s3, adapter=adapter, uri=uri, cpu_threads=threads(CPU))


def merge_job(owner: Owner, spec: ModelEndpointSpec, settings: Settings, name: str, adapter: AdapterRef) -> dict[str, Any]:
    """Job of a merge. It needs no GPU. Its configuration goes with it: until the version has a Deployment, nothing else would be found to clean up by."""
    volumes, mounts = source_volumes([spec.model.source])
    env = [*storage_env(spec.storage.s3), *model_env(spec.model)]
    main = container(names.CONTAINER, settings.trainer_image, ["merge"], settings, env=env, volumeMounts=mounts, resources=RESOURCES)
    pod = pod_spec(
        settings, annotated_config(), node_disk(spec.resources.scratch), volumes, restartPolicy="Never", terminationGracePeriodSeconds=10, containers=[main]
    )
    config = json.dumps(merge_config(owner, spec, adapter).dump(), sort_keys=True)
    return errand(owner, name, _labels(owner), pod, retries=RETRIES, seconds=LONGEST, annotations={names.ANNOTATION_CONFIG: config})
