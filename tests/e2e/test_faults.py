"""Bad input and faults: what the user sees, within a minute, and that a job goes on by itself once the cause is gone."""

from pathlib import Path
from typing import Any

import pytest

from .cluster import CREDENTIALS, S3_IN_CLUSTER, apply, ensure_bucket, items, kubectl, wait
from .conftest import ROWS, Jobs, put_rows

EMPTY_ANSWER = {"messages": [{"role": "user", "content": "And room 99?"}, {"role": "assistant", "content": ""}]}


def storage(**changes: Any) -> dict[str, Any]:
    return {"s3": {"uri": "s3://finetune/e2e", "endpoint": S3_IN_CLUSTER, "secretRef": {"name": "s3"}, **changes}}


FINAL = [
    ("a row with an empty answer", "DataInvalid", [*ROWS[:6], EMPTY_ANSWER, *ROWS[6:]], ["7", "empty"]),
    ("a line that is not JSON", "DataInvalid", '{"messages": [\n', ["1"]),
    ("an empty file", "DatasetEmpty", "", ["0 bytes"]),
]


@pytest.mark.parametrize(("reason", "rows", "words"), [c[1:] for c in FINAL], ids=[c[0] for c in FINAL])
def test_bad_data_end_the_job_before_a_gpu_is_taken(jobs: Jobs, tmp_path: Path, reason: str, rows: Any, words: list[str]) -> None:
    source = put_rows(tmp_path / f"{reason}-{abs(hash(str(rows))) % 10**8}.jsonl", rows)
    jobs.submit(dataset={"train": [{"source": source}]})
    status = _ended(jobs, 60)
    assert (status["phase"], status["reason"]) == ("Failed", reason)
    assert all(word in status["message"] for word in words), status["message"]
    assert not items("jobs", jobs.namespace, "finetune.dev/step=Train")


def _ended(jobs: Jobs, seconds: float) -> dict[str, Any]:
    return wait("the job has failed", lambda: s if (s := jobs.status()).get("phase") == "Failed" else {}, seconds)


def test_a_dataset_that_is_not_there_is_named(jobs: Jobs) -> None:
    jobs.submit(dataset={"train": [{"source": "s3://datasets/e2e/nowhere.jsonl"}]})
    status = _ended(jobs, 60)
    assert (status["phase"], status["reason"]) == ("Failed", "DatasetNotFound")
    assert "s3://datasets/e2e/nowhere.jsonl" in status["message"]


def test_a_model_that_is_not_there_is_named(jobs: Jobs) -> None:
    jobs.submit(model={"source": "s3://models/nowhere", "type": "qwen3", "template": "qwen3"})
    status = _ended(jobs, 60)
    assert (status["phase"], status["reason"]) == ("Failed", "ModelNotFound")
    assert "s3://models/nowhere" in status["message"]


def test_a_missing_secret_is_named_and_the_job_goes_on_when_it_is_there(jobs: Jobs) -> None:
    jobs.submit(storage=storage(secretRef={"name": "forgotten"}))
    status = jobs.until(lambda s: s.get("reason") == "SecretNotFound", 60)
    assert '"forgotten"' in status["message"]
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "forgotten", "namespace": jobs.namespace}, "stringData": CREDENTIALS})
    jobs.until(lambda s: s.get("phase") == "Training", 90)


def test_a_missing_bucket_is_named_and_the_job_goes_on_when_it_is_there(jobs: Jobs) -> None:
    bucket = f"late-{jobs.namespace}"
    jobs.submit(storage=storage(uri=f"s3://{bucket}/e2e"))
    status = jobs.until(lambda s: s.get("reason") == "BucketNotFound", 60)
    assert bucket in status["message"]
    ensure_bucket(bucket)
    jobs.until(lambda s: s.get("phase") == "Training", 90)


def test_wrong_credentials_are_said_without_repeating_them(jobs: Jobs) -> None:
    wrong = {**CREDENTIALS, "AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong", "namespace": jobs.namespace}, "stringData": wrong})
    jobs.submit(storage=storage(secretRef={"name": "wrong"}))
    status = jobs.until(lambda s: s.get("reason") == "AccessDenied", 60)
    assert "not-the-secret" not in str(status)


def test_unreachable_storage_is_named_with_its_endpoint(jobs: Jobs) -> None:
    jobs.submit(storage=storage(endpoint="http://nobody.s3.svc.cluster.local:7070"))
    status = jobs.until(lambda s: s.get("reason") == "StorageUnavailable", 60)
    assert "nobody.s3.svc.cluster.local" in status["message"]
    assert status["phase"] == "Preparing"


def test_a_job_that_asks_for_more_gpus_than_there_are_says_so(jobs: Jobs) -> None:
    jobs.submit(resources={"cpu": "1", "memory": "3Gi", "gpuResource": "example.com/none"})
    status = jobs.until(lambda s: s.get("reason") == "Unschedulable", 90)
    assert "example.com/none" in status["message"]
    assert kubectl("-n", jobs.namespace, "get", "finetunejob", "job").splitlines()[1].split()[:2] == ["job", "Training"]
