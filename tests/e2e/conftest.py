"""The development cluster as `make stack` leaves it, a tiny model in S3, and a namespace for each test."""

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .cluster import CACHE, CREDENTIALS, ROOT, S3_IN_CLUSTER, apply, ensure_bucket, get, items, kubectl, s3, wait

TINY = "tiny-qwen3"
ROWS = [
    {"messages": [{"role": "user", "content": f"What is the code of room {n}?"}, {"role": "assistant", "content": f"The code of room {n} is {n * 37 % 1000}."}]}
    for n in range(1, 61)
]


@pytest.fixture(scope="session")
def tiny_model() -> str:
    """A random Qwen3 of about 1 MB, made once, uploaded as s3://models/tiny-qwen3."""
    folder = CACHE / "models"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / TINY / "config.json").exists():
        corpus = folder / "tiny-corpus.jsonl"
        corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        folder.chmod(0o777)
        command = [
            str(ROOT / "images/run.sh"), "trainer-test", "--mount", f"{folder}:/models", "--mount", f"{ROOT}/tests/fixtures:/fixtures:ro",
            "--env", "HOME=/tmp", "--", "python3", "/fixtures/make_tiny_model.py", f"/models/{TINY}", "--corpus", "/models/tiny-corpus.jsonl",
        ]  # fmt: skip
        subprocess.run(command, check=True)
    for bucket in ("models", "datasets", "finetune"):
        ensure_bucket(bucket)
    client = s3()
    for file in sorted((folder / TINY).iterdir()):
        client.upload_file(str(file), "models", f"{TINY}/{file.name}")
    return f"s3://models/{TINY}"


@pytest.fixture(scope="session")
def dataset(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 good rows."""
    return put_rows(tmp_path_factory.mktemp("rows") / "rooms.jsonl", ROWS)


def put_rows(file: Path, rows: list[dict[str, Any]] | str) -> str:
    """Upload rows (or raw text); returns their s3:// address."""
    file.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    s3().upload_file(str(file), "datasets", f"e2e/{file.name}")
    return f"s3://datasets/e2e/{file.name}"


@contextmanager
def held_namespace(session: pytest.Session) -> Iterator[str]:
    """A namespace with the restricted pod standard and the S3 Secret; what it held is printed when a test failed meanwhile."""
    name = f"e2e-{uuid.uuid4().hex[:6]}"
    apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": name}, "stringData": CREDENTIALS},
    )
    failed = session.testsfailed
    yield name
    if session.testsfailed != failed:
        print(kubectl("-n", name, "get", "finetunejobs,modelendpoints,jobs,deployments,services,pods", "-o", "wide", check=False))
        print(kubectl("-n", name, "describe", "finetunejobs,modelendpoints", check=False))
        for pod in items("pods", name):
            print(kubectl("-n", name, "logs", pod["metadata"]["name"], "--all-containers", "--tail", "60", check=False))
        print(kubectl("-n", "finetune-system", "logs", "deployment/finetune-operator", "--tail", "80", check=False))
    kubectl("-n", name, "delete", "finetunejobs,modelendpoints", "--all", "--wait=false")
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of a test's own."""
    with held_namespace(request.session) as name:
        yield name


def job_spec(model: str, dataset: str, /, **changes: Any) -> dict[str, Any]:
    """A job of about 20 quick steps; `changes` replace whole sections."""
    return {
        "model": {"source": model, "type": "qwen3", "template": "qwen3"},
        "dataset": {"train": [{"source": dataset}]},
        "tuning": {"lora": {"rank": 8, "alpha": 16}},
        "training": {"epochs": 3, "learningRate": "1e-3", "maxLength": 256, "effectiveBatchSize": 8, "evalSteps": 10},
        "checkpoints": {"everySteps": 5},
        "resources": {"cpu": "1", "memory": "3Gi", "scratch": "5Gi"},
        "retries": {"limit": 1, "backoffSeconds": 2},
        "storage": {"s3": {"uri": "s3://finetune/e2e", "endpoint": S3_IN_CLUSTER, "secretRef": {"name": "s3"}}},
        **changes,
    }


class Jobs:
    """FineTuneJobs of one namespace."""

    def __init__(self, namespace: str, model: str, dataset: str) -> None:
        self.namespace, self.model, self.dataset = namespace, model, dataset

    def submit(self, name: str = "job", **changes: Any) -> str:
        spec = job_spec(self.model, self.dataset, **changes)
        apply({"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name, "namespace": self.namespace}, "spec": spec})
        return name

    def status(self, name: str = "job") -> dict[str, Any]:
        return dict(get("finetunejob", name, self.namespace).get("status") or {})

    def until(self, check: Callable[[dict[str, Any]], Any], seconds: float, name: str = "job", what: str = "the job's status") -> dict[str, Any]:
        """Status once `check` holds. A job that fails instead ends the waiting."""
        seen: dict[str, Any] = {}

        def look() -> bool:
            nonlocal seen
            seen = self.status(name)
            good = bool(check(seen))
            if not good and seen.get("phase") == "Failed":
                raise AssertionError(f"{name} failed: {seen.get('reason')}: {seen.get('message')}")
            return good

        wait(f"{what}: {name}", look, seconds)
        return seen

    def phase(self, wanted: str, seconds: float, name: str = "job") -> dict[str, Any]:
        return self.until(lambda s: s.get("phase") == wanted, seconds, name, f"phase {wanted}")

    def prefix(self, name: str = "job") -> str:
        """Where the job keeps its artefacts, inside the bucket `finetune`."""
        return f"e2e/{self.namespace}/{name}/{get('finetunejob', name, self.namespace)['metadata']['uid']}"


@pytest.fixture
def jobs(namespace: str, tiny_model: str, dataset: str) -> Jobs:
    return Jobs(namespace, tiny_model, dataset)
