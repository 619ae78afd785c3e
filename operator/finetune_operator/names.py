"""Labels, field managers and the names of children: each string stands here once."""

import hashlib
import re
from enum import StrEnum

from .api import GROUP

FIELD_MANAGER = "finetune-operator"
# A job proposes a candidate to an endpoint that someone else may own: a manager of its own, or the next apply of
# fewer fields would take the others away.
CANDIDATE_MANAGER = "finetune-operator-candidate"


def candidate_manager(served_name: str) -> str:
    """Field manager of the proposals under one name; empty: the endpoint's own. An apply takes away what its manager does not repeat, so each has its own."""
    return f"{CANDIDATE_MANAGER}-{digest(served_name)}" if served_name else CANDIDATE_MANAGER


LABEL_JOB = f"{GROUP}/job"
LABEL_JOB_UID = f"{GROUP}/job-uid"  # names come back, UIDs do not
LABEL_ENDPOINT = f"{GROUP}/endpoint"
LABEL_STEP = f"{GROUP}/step"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_VERSION = f"{GROUP}/version"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_PRIORITY = "kueue.x-k8s.io/priority-class"
ANNOTATION_PAUSED = f"{GROUP}/paused"  # a Workload that we, not its administrator, have made inactive
ANNOTATION_IGNORE_FIT = f"{GROUP}/ignore-gpu-fit"
ANNOTATION_CONFIG = f"{GROUP}/config"  # configuration of a pod that has no ConfigMap
ANNOTATION_TOLD = f"{GROUP}/adapters"  # digest of the list of adapters that a pod was told last
ANNOTATION_JOB_NAME = "batch.kubernetes.io/job-name"

GATEWAY_GROUP = "gateway.networking.k8s.io"
GATEWAY_API = f"{GATEWAY_GROUP}/v1"

CONTAINER = "main"  # the container whose termination message counts
FETCH_CONTAINER = "fetch"
FOLLOW_CONTAINER = "adapters"


class Step(StrEnum):
    """Steps of a FineTuneJob that run as Kubernetes Jobs, in their order."""

    PREPARE = "Prepare"
    TRAIN = "Train"


EVALUATE = "Evaluate"  # steps of a ModelEndpoint
MERGE = "Merge"

_SHORT = {Step.PREPARE: "prep", Step.TRAIN: "train"}


def step_job(job: str, step: Step, attempt: int) -> str:
    """Name of the Kubernetes Job of one attempt: at most 52 + 11 characters, the limit for names of Jobs."""
    return f"{job}-{_SHORT[step]}-{attempt}"


_STEP_JOB = re.compile(rf"^(.+)-({'|'.join(_SHORT.values())})-\d+$")


def job_of(step_job_name: str) -> str:
    """FineTuneJob that a Kubernetes Job's name was made from; empty when it is none of ours."""
    found = _STEP_JOB.match(step_job_name)
    return found[1] if found else ""


def memory_label(gpu_resource: str) -> str:
    """Label in which NVIDIA's GPU feature discovery tells the memory (MiB) of one of these GPUs, also of a MIG slice."""
    return f"{gpu_resource}.memory"


def digest(content: str) -> str:
    """Eight hexadecimal digits that stand for a content."""
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def config_map(job: str, uid: str) -> str:
    """Name of the ConfigMap that holds a job's configuration.

    With the job's UID in it: a pod of a deleted job that is still on its way must never read what its namesake is to do.
    """
    return f"{job}-config-{digest(uid)}"


def endpoint_version(endpoint: str, content: str) -> str:
    """Name of the objects of one version: equal content gives an equal name, so applying twice is harmless."""
    return f"{endpoint}-{digest(content)}"


def evaluation_config(version: str) -> str:
    """Name of the ConfigMap with what an evaluation asks: one for each version, so that it goes with the version."""
    return f"{version}-gate"


def evaluation_job(endpoint: str, version: str, gate: str) -> str:
    """Name of the Kubernetes Job that asks one version the questions of one gate: at most 52 + 10 characters."""
    return f"{endpoint}-e{digest(version + gate)}"


def merge_job(endpoint: str, version: str) -> str:
    """Name of the Kubernetes Job that merges a version's adapter into its base: at most 52 + 10 characters."""
    return f"{endpoint}-m{digest(version)}"


def labels(name: str, component: str, **extra: str) -> dict[str, str]:
    """Recommended labels of a child."""
    return {
        LABEL_NAME: FIELD_MANAGER,
        LABEL_INSTANCE: name,
        LABEL_COMPONENT: component,
        LABEL_MANAGED_BY: FIELD_MANAGER,
        **extra,
    }
