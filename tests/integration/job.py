"""A FineTuneJob as the tests write it, what its pods leave behind, and waiting for what its status says."""

import json
from typing import Any

from tests.integration.operator_process import Namespace, wait

Body = dict[str, Any]
ADAPTER = {"uri": "s3://models/ft/x/adapter", "manifestSha256": "a" * 64}


def finetunejob(name: str = "support", /, **spec: Any) -> Body:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "s3://models/base", "type": "qwen3", "template": "qwen3"},
            "dataset": {"train": [{"source": "s3://data/train.jsonl"}]},
            "storage": {"s3": {"uri": "s3://models/ft", "endpoint": "http://s3:7070", "secretRef": {"name": "s3"}}},
            "retries": {"limit": 1, "backoffSeconds": 1},
            **spec,
        },
    }


def prepared_message(**data: Any) -> str:
    """Result of a prepare pod."""
    found = {"trainRows": 120, "validationRows": 6, **data}
    return json.dumps({"step": "prepare", "reason": "Completed", "message": "120 rows", "data": found})


def train_message(reason: str, message: str, **train: Any) -> str:
    """Result of a train pod."""
    return json.dumps({"step": "train", "reason": reason, "message": message, "train": {"totalSteps": 40, **train}})


PREPARED = prepared_message()
TRAINED = train_message("Completed", "40 steps", step=40, loss=0.5, adapter=ADAPTER)


def interrupted(committed: int, resumed_from: int = 0) -> str:
    """Result of a train pod that had to end early."""
    message = f"checkpoint {committed} committed"
    return train_message("Interrupted", message, step=committed, committedStep=committed, resumedFrom=resumed_from)


def name_of(pod: Body) -> str:
    return str(pod["metadata"]["name"])


def prepared(here: Namespace, job: str = "support", message: str = PREPARED) -> None:
    here.end(name_of(here.pod("Prepare", job=job)), 0, message)


def training(here: Namespace, job: str = "support", node: str = "") -> str:
    """Bring a new job as far as a training pod that runs and is in the status. Returns the pod's name."""
    prepared(here, job)
    return running(here, job=job, node=node)


def running(here: Namespace, attempt: int = 1, *, not_named: str = "", job: str = "support", node: str = "") -> str:
    """Run the next training pod, and wait until the status names it. Returns its name."""
    name = name_of(here.pod("Train", attempt, not_named=not_named, job=job))
    if node:
        here.bind(name, node)
    here.run(name)
    wait(f"{name} is recorded", lambda: [a for a in here.status(job).get("attempts", []) if a.get("pod") == name])
    reason(here, "Running", job)
    return name


def deleting(here: Namespace, pod: str) -> None:
    """Wait until a pod is asked to end."""
    wait(f"{pod} is asked to end", lambda: "deletionTimestamp" in here.get("pod", pod)["metadata"])


def phase(here: Namespace, wanted: str, name: str = "support", seconds: float = 20) -> Body:
    return wait(f"phase {wanted}", lambda: s if (s := here.status(name)).get("phase") == wanted else {}, seconds)


def reason(here: Namespace, wanted: str, name: str = "support", seconds: float = 20) -> Body:
    return wait(f"reason {wanted}", lambda: s if (s := here.status(name)).get("reason") == wanted else {}, seconds)
