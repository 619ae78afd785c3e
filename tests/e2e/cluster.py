"""What the end-to-end tests need of the cluster: kubectl, S3, services, its node, and waiting with a reason."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config

ROOT = Path(__file__).resolve().parents[2]
DEVCLUSTER = ROOT / "tests/devcluster"
CACHE = Path(os.environ.get("FINETUNE_CACHE", Path.home() / ".cache/finetune-operator"))
S3_IN_CLUSTER = "http://s3.s3.svc.cluster.local:7070"
S3_FROM_HERE = "http://127.0.0.1:17070"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo-secret-key"}
SYSTEM = "finetune-system"
T = TypeVar("T")


def kubectl(*args: str, text: str | None = None, check: bool = True) -> str:
    """Output of kubectl; with check=False, its error text when it fails."""
    done = subprocess.run([str(DEVCLUSTER / "kubectl"), *args], input=text, capture_output=True, text=True, check=False)
    if done.returncode and check:
        raise AssertionError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout if not done.returncode else done.stderr


def apply(*objects: dict[str, Any]) -> None:
    kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def get(kind: str, name: str, namespace: str) -> dict[str, Any]:
    """An object; empty when there is none."""
    found = kubectl("-n", namespace, "get", kind, name, "-o", "json", "--ignore-not-found")
    return json.loads(found) if found.strip() else {}


def items(kinds: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
    args = ["-n", namespace, "get", kinds, "-o", "json"] + (["-l", selector] if selector else [])
    return list(json.loads(kubectl(*args))["items"])


def wait(what: str, check: Callable[[], T], seconds: float, every: float = 0.5) -> T:
    """The first true answer of `check`. Fails with `what` and the last answer."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        last = check()
        if last:
            return last
        time.sleep(every)
    raise AssertionError(f"not within {seconds:.0f} s: {what}; last seen: {last!r}")


def s3() -> Any:
    config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
    return boto3.client(
        "s3", endpoint_url=S3_FROM_HERE, region_name="us-east-1", config=config,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip


def keys(bucket: str, prefix: str) -> list[str]:
    pages = s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [o["Key"] for page in pages for o in page.get("Contents", [])]


def ensure_bucket(name: str) -> None:
    client = s3()
    if name not in {b["Name"] for b in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=name)


def content(uri: str) -> bytes:
    """An object by its s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bytes(s3().get_object(Bucket=bucket, Key=key)["Body"].read())


def forward(namespace: str, service: str, port: int) -> str:
    """Base URL of a service on this machine. Each connection begins anew inside the cluster's network, so kube-proxy picks its pod."""
    subprocess.run([str(DEVCLUSTER / "forward"), str(port), f"{namespace}/{service}:80"], check=True, capture_output=True)
    return f"http://127.0.0.1:{port}"


def kill(namespace: str, pod: str) -> bool:
    """SIGKILL for a pod's engine and all that it started, given on the node, as a kernel out of memory does it. False: it does not run just now."""
    statuses: list[dict[str, Any]] = get("pod", pod, namespace).get("status", {}).get("containerStatuses", [])
    running = [status["containerID"].removeprefix("containerd://") for status in statuses if "running" in status["state"]]
    script = 'source "$0/lib.sh"; ctr tasks kill --signal SIGKILL "$1"'
    return any(not subprocess.run(["bash", "-c", script, str(DEVCLUSTER), name], check=False, capture_output=True).returncode for name in running)
