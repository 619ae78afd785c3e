"""The same directory to the same S3 server by three clients, each with the settings that its users get."""

import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.s3.store import Store
from tests.runtime.support import Server

GB = 1e9


@dataclass(frozen=True)
class Cost:
    """One upload: time on the wall and of the client's processor, both in seconds."""

    wall: float
    cpu: float


Client = Callable[[Path, str], None]  # directory and s3:// URI that it goes to


def ours(store: Store) -> Client:
    """A commit as a training pod does it: SHA-256 of every file, manifest last."""

    def upload(directory: Path, uri: str) -> None:
        artefacts.commit(store, directory, uri, Manifest(kind=Kind.CHECKPOINT, files=[], config_hash="bench", base_model="bench"))

    return upload


def s5cmd(binary: Path, server: Server) -> Client:
    """`s5cmd cp` of the whole directory."""

    def upload(directory: Path, uri: str) -> None:
        command: list[str | Path] = [binary, "--endpoint-url", server.endpoint, "cp", f"{directory}/", f"{uri}/"]
        environment = server.environment | {"AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)

    return upload


def boto3(server: Server) -> Client:
    """upload_file, one file after the other."""
    client = server.client()

    def upload(directory: Path, uri: str) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        for path in sorted(directory.iterdir()):
            client.upload_file(str(path), bucket, f"{prefix}/{path.name}")

    return upload


def measure(client: Client, directory: Path, uri: str) -> Cost:
    """One upload. A client is this process or a child of it, so the processor time is that of both."""
    cpu, wall = _cpu(), time.perf_counter()
    client(directory, uri)
    return Cost(time.perf_counter() - wall, _cpu() - cpu)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
