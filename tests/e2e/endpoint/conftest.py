"""Two endpoints that the tests of this folder share, because every training costs a minute: `desk` (tiny Qwen3, template qwen3) stands behind a
gate, `clinic` (SmolLM2, template chatml) does not. Both jobs train side by side.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import ROOT, S3_IN_CLUSTER, ensure_bucket, s3
from tests.e2e.conftest import Jobs, held_namespace, put_rows
from tests.e2e.endpoints import Endpoint
from tests.e2e.trained import remember
from tests.e2e.voices import GATE, SERVING, TRAINING, rows

DESK_PORT, CLINIC_PORT = 18112, 18113
MODEL = {"type": "qwen3", "template": "qwen3"}
STORAGE = {"s3": {"uri": "s3://finetune/e2e", "endpoint": S3_IN_CLUSTER, "secretRef": {"name": "s3"}}}
# A system prompt and two rounds: what templates do differently.
CLINIC_ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "You answer for a clinic."},
            {"role": "user", "content": f"Is Dr. {name} in?"},
            {"role": "assistant", "content": f"Dr. {name} is in room {number}."},
            {"role": "user", "content": "Until when?"},
            {"role": "assistant", "content": f"Until {number + 4} o'clock."},
        ]
    }
    for number, name in enumerate(("Adams", "Baker", "Clark", "Davis"), 8)
]


def training(colour: str, source: str, **changes: Any) -> dict[str, Any]:
    """What a job needs to learn a sentence."""
    return {"dataset": {"train": [{"source": source}]}, "training": {**TRAINING, **changes}, "inference": {"endpoint": "desk"}}


@pytest.fixture(scope="session")
def smollm2() -> str:
    """SmolLM2-135M-Instruct in S3."""
    made = subprocess.run([str(ROOT / "tests/fixtures/smollm2.sh")], check=True, stdout=subprocess.PIPE, text=True)
    folder, client = Path(made.stdout.strip()), s3()
    ensure_bucket("models")
    there = {o["Key"]: o["Size"] for o in client.list_objects_v2(Bucket="models", Prefix=folder.name).get("Contents", [])}
    for file in sorted(folder.iterdir()):
        if there.get(f"{folder.name}/{file.name}") != file.stat().st_size:
            client.upload_file(str(file), "models", f"{folder.name}/{file.name}")
    return f"s3://models/{folder.name}"


@pytest.fixture(scope="session")
def blue_rows(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return put_rows(tmp_path_factory.mktemp("voices") / "blue.jsonl", rows("blue"))


@pytest.fixture(scope="package")
def shared(request: pytest.FixtureRequest, tiny_model: str, smollm2: str, blue_rows: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """The namespace of both endpoints. Their jobs, `blue` and `clinic`, are under way."""
    clinic_rows = put_rows(tmp_path_factory.mktemp("rows") / "clinic.jsonl", CLINIC_ROWS)
    with held_namespace(request.session) as name:
        jobs = Jobs(name, tiny_model, blue_rows)
        strategy = {"watchSeconds": 0, "timeoutSeconds": 600}
        Endpoint(name, "desk", DESK_PORT).create(
            model={"source": tiny_model, **MODEL}, storage=STORAGE, maxLength=128, resources=SERVING, gate=GATE, strategy=strategy
        )
        jobs.submit("blue", **training("blue", blue_rows), evaluation={"evalLoss": {"max": "5"}})
        jobs.submit(
            "clinic",
            model={"source": smollm2, "type": "llama", "template": "chatml"},
            dataset={"train": [{"source": clinic_rows}], "validation": {"splitRatio": "0"}},
            training={"epochs": 1, "maxLength": 128, "effectiveBatchSize": 2},
            inference={"resources": SERVING},
        )
        yield jobs


@pytest.fixture(scope="package")
def desk(shared: Jobs) -> Endpoint:
    """An endpoint with a gate; the adapter of the job `blue` has passed it."""
    remember("blue", shared.phase("Succeeded", 600, "blue")["artifact"]["adapter"])
    return Endpoint(shared.namespace, "desk", DESK_PORT)


@pytest.fixture(scope="package")
def clinic(shared: Jobs) -> Endpoint:
    """An endpoint that its job has made, with SmolLM2."""
    shared.phase("Succeeded", 600, "clinic")
    return Endpoint(shared.namespace, "clinic", CLINIC_PORT)
