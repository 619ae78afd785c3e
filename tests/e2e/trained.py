"""Adapters with one voice, trained once for a cluster: for tests that need one and do not test its training."""

import hashlib
import json
from pathlib import Path
from typing import Any

from .cluster import content, keys, s3
from .conftest import TINY, Jobs, put_rows
from .voices import TRAINING, rows

BUCKET = "finetune"


def _key(colour: str) -> str:
    """Where it is written down, by all that decides what is learned."""
    base = s3().head_object(Bucket="models", Key=f"{TINY}/model.safetensors")["ETag"]
    made_of = hashlib.sha256(json.dumps([base, rows(colour), TRAINING]).encode()).hexdigest()
    return f"voices/{colour}-{made_of[:16]}.json"


def remember(colour: str, adapter: dict[str, Any]) -> None:
    """Write down where a job with rows(colour) and TRAINING has left its adapter."""
    s3().put_object(Bucket=BUCKET, Key=_key(colour), Body=json.dumps(adapter).encode())


def trained(jobs: Jobs, colour: str, folder: Path) -> dict[str, Any]:
    """An adapter that says sentence(colour), as a candidate of an endpoint names it; a minute of training where there is none yet."""
    key = _key(colour)
    if keys(BUCKET, key):
        adapter: dict[str, Any] = json.loads(content(f"s3://{BUCKET}/{key}"))
        if keys(BUCKET, adapter["uri"].removeprefix(f"s3://{BUCKET}/") + "/manifest.json"):
            return adapter
    jobs.submit(colour, dataset={"train": [{"source": put_rows(folder / f"{colour}.jsonl", rows(colour))}]}, training=TRAINING)
    adapter = jobs.phase("Succeeded", 300, colour)["artifact"]["adapter"]
    remember(colour, adapter)
    return adapter
