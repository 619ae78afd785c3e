"""A commit killed before and after every one of its requests to S3: nothing partial is ever gone on from."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from signal import SIGKILL

import pytest

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import Kind, Manifest
from finetune_runtime.contract.spec import S3Storage
from finetune_runtime.s3.store import Store
from finetune_runtime.s3.upload import PART_BYTES
from finetune_runtime.train.resume import candidates
from tests.kill.rig import Tally
from tests.runtime.support import ROOT, Server

CONFIG = "the configuration"
FILES = {"adapter_model.safetensors": 5000, "optimizer.pt": PART_BYTES + 1, "trainer_state.json": 300}  # sizes; optimizer.pt goes in two parts


def manifest(step: int) -> Manifest:
    return Manifest(kind=Kind.CHECKPOINT, files=[], config_hash=CONFIG, base_model="m", dataset_sha256="d", step=step, total_steps=100)


def checkpoint(directory: Path, seed: int) -> Path:
    directory.mkdir()
    for name, size in FILES.items():
        (directory / name).write_bytes(Random(seed).randbytes(size))
    return directory


def newest(store: Store, prefix: str, directory: Path, tally: Tally, case: str) -> tuple[int, bytes]:
    """Step and first file of the checkpoint that a pod would go on from, every byte of it proven."""
    shutil.rmtree(directory, ignore_errors=True)
    choice = candidates(artefacts.checkpoints(store, prefix), CONFIG, "d")[0]
    try:
        artefacts.fetch(store, choice.uri, directory)
    except artefacts.ArtefactCorruptError as error:
        tally.partial.append(f"{case}: {error.message}")
        raise
    return choice.step, (directory / "adapter_model.safetensors").read_bytes()


def boundaries() -> Iterator[tuple[str, int]]:
    return ((event, number) for number in range(1, 100) for event in ("before-send", "response-received"))


@pytest.mark.parametrize("mode", ["fresh", "replace"])
def test_an_upload_killed_at_any_request_leaves_nothing_partial(
    store: Store, storage: S3Storage, s3_server: Server, bucket: str, tmp_path: Path, tally: Tally, mode: str
) -> None:
    before, old, new = (checkpoint(tmp_path / name, seed) for seed, name in enumerate(("before", "old", "new")))
    contents = {path.name: (path / "adapter_model.safetensors").read_bytes() for path in (before, old, new)}
    seen = set()
    for event, number in boundaries():
        case = f"{mode} commit, {event} of request {number}"
        prefix = f"s3://{bucket}/models/{event}-{number}"
        target = f"{prefix}/checkpoints/checkpoint-8"
        artefacts.commit(store, before, f"{prefix}/checkpoints/checkpoint-4", manifest(4))
        if mode == "replace":
            artefacts.commit(store, old, target, manifest(8))
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "tests.kill.mortal_commit",
            storage.model_dump_json(by_alias=True),
            new,
            target,
            manifest(8).model_dump_json(),
        ]
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'images/runtime'}:{ROOT}"}
        code = subprocess.run([*command, mode, event, str(number)], check=False, env=environment).returncode
        step, content = newest(store, prefix, tmp_path / "fetched", tally, case)
        chosen = next(name for name, known in contents.items() if known == content)
        assert (step, chosen) in ([(4, "before"), (8, "old"), (8, "new")] if mode == "replace" else [(4, "before"), (8, "new")]), case
        seen.add(chosen)

        # The next pod: it drops what the dead one left and commits the same step.
        store.abort_uploads(f"{prefix}/")
        artefacts.commit(store, new, target, manifest(8), replace=True)
        assert newest(store, prefix, tmp_path / "fetched", tally, case) == (8, contents["new"]), case
        assert not s3_server.client().list_multipart_uploads(Bucket=bucket).get("Uploads"), case
        store.delete([item.uri for item in store.list(f"{prefix}/")])
        if code == 0:
            break
        assert code == -SIGKILL, case
    # Every request of the commit had its turn: reading the manifest, each file, two parts with begin and end, the manifest.
    assert number > len(FILES) + 4, number
    assert seen == ({"before", "old", "new"} if mode == "replace" else {"before", "new"})
