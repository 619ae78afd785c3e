"""Uploads of a checkpoint by our commit, s5cmd and boto3, and what they cost the training.

python3 -m hack.bench --versitygw FILE --s5cmd FILE --model DIRECTORY [--gib 2] [--rounds 3]
"""

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from finetune_runtime.contract.spec import S3Storage
from finetune_runtime.s3.store import Store
from hack.bench import clients, overhead
from tests.runtime.support import Server, running_server

BUCKET = "bench"
EVERY_STEPS = 100
# Shares of a LoRA checkpoint: weights, and the two moments of AdamW in float32 beside what else it has.
LARGE = {"adapter_model.safetensors": 0.35, "optimizer.pt": 0.65}
SMALL = {
    "adapter_config.json": 1_000,
    "args.json": 12_000,
    "rng_state.pth": 14_000,
    "scheduler.pt": 1_000,
    "trainer_state.json": 60_000,
    "training_args.bin": 8_000,
}
BLOCK = 2**24


def checkpoint(directory: Path, gib: float) -> Path:
    """A directory with the files of a checkpoint, random bytes."""
    directory.mkdir()
    for name, size in ({name: int(share * gib * 2**30) for name, share in LARGE.items()} | SMALL).items():
        with (directory / name).open("wb") as file:
            for left in range(size, 0, -BLOCK):
                file.write(os.urandom(min(left, BLOCK)))
    return directory


def uploads(server: Server, store: Store, s5cmd: Path, directory: Path, rounds: int) -> Mapping[str, clients.Cost]:
    """The fastest of `rounds` uploads of each client, taken in turns so that what else the machine does hits all alike."""
    contenders = {"commit": clients.ours(store), "s5cmd": clients.s5cmd(s5cmd, server), "boto3": clients.boto3(server)}
    costs: dict[str, list[clients.Cost]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, client in contenders.items():
            uri = f"s3://{BUCKET}/{name}-{number}"
            costs[name].append(clients.measure(client, directory, uri))
            store.delete([item.uri for item in store.list(f"{uri}/")])
            os.sync()  # what one has left to write must not slow the next
    return {name: min(found, key=lambda cost: cost.wall) for name, found in costs.items()}


@contextmanager
def uploading(store: Store, directory: Path) -> Iterator[None]:
    """Commits the directory again and again in a thread, as the supervisor does beside the training."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            uri = f"s3://{BUCKET}/beside"
            clients.ours(store)(directory, uri)
            store.delete([item.uri for item in store.list(f"{uri}/")])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def main() -> None:
    """Print the tables; the last line is for machines."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("versitygw", "s5cmd", "model"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "s3").mkdir()
        directory = checkpoint(work / "checkpoint", options.gib)
        size = sum(path.stat().st_size for path in directory.iterdir())
        with running_server(options.versitygw, work / "s3") as server:
            os.environ |= server.environment
            server.client().create_bucket(Bucket=BUCKET)
            store = Store(S3Storage(uri=f"s3://{BUCKET}", endpoint=server.endpoint))
            best = uploads(server, store, options.s5cmd, directory, options.rounds)
            print(f"{size / 1e9:.2f} GB, best of {options.rounds}\n\n{'client':8} {'MB/s':>6} {'CPU s/GB':>9}")
            for client, cost in best.items():
                print(f"{client:8} {size / 1e6 / cost.wall:6.0f} {cost.cpu / (size / 1e9):9.2f}", flush=True)
            with redirect_stdout(sys.stderr):  # the trainer's lines
                alone = overhead.train(options.model, work / "alone")
                with uploading(store, directory):
                    beside = overhead.train(options.model, work / "beside")
        staged = overhead.staging_seconds(directory)
    percent = overhead.waits(alone, EVERY_STEPS)
    print(f"\nstep, alone                          {sum(alone.steps) / len(alone.steps):8.3f} s")
    print(f"save and stage, each checkpoint      {sum(alone.saves) / len(alone.saves):8.3f} s")
    print(f"of it staging, {size / 1e9:.2f} GB               {staged:8.4f} s")
    print(f"steps beside an upload without pause {overhead.slower(beside, alone):+8.1f} %")
    print(f"\nupload_ratio_to_s5cmd={best['s5cmd'].wall / best['commit'].wall:.2f} step_overhead_percent={percent:.3f}")


if __name__ == "__main__":
    main()
