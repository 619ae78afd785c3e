"""What background uploads cost a training: what it waits for at a checkpoint, and how much slower its steps are beside an upload."""

import math
import os
import queue
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.hardware import Hardware
from finetune_runtime.train import command
from finetune_runtime.train.child import Child, Ended
from finetune_runtime.train.events import Event, Kind
from finetune_runtime.train.staging import stage
from tests.runtime.support import CLINIC, DEFAULTS, merged

STEPS = 8
SAVE_STEPS = 4
STAGINGS = 20  # measured, because one takes less than a millisecond


@dataclass(frozen=True)
class Trace:
    """Of one training, in seconds: its steps without the time for saving, and each save from the end of its step until it is staged."""

    steps: list[float]
    saves: list[float]


def train(model: Path, directory: Path) -> Trace:
    """Trains as a pod does, with the pod's command and callback; nothing is uploaded from here."""
    config = JobConfig.model_validate(
        merged(
            DEFAULTS | {"storage": {"uri": "s3://not/used"}},
            {"training": {"epochs": 1, "maxLength": 512, "evalSteps": STEPS}, "checkpoints": {"everySteps": SAVE_STEPS}},
        )
    )
    dataset = directory / "dataset"
    for name in (dataset, directory / "staged", directory / "home"):
        name.mkdir(parents=True)
    rows = CLINIC.read_text().splitlines(keepends=True)[: STEPS * config.training.effective_batch_size]
    (dataset / "train.jsonl").write_text("".join(rows))
    inputs = command.Inputs(model=model, dataset=dataset, model_type="llama", template="chatml", validation=False)
    words = command.arguments(config, inputs, Hardware(), micro_batch=4, output=directory / "output", resume_from=None)
    events: queue.SimpleQueue[tuple[float, Event | Ended]] = queue.SimpleQueue()
    child = Child(
        [sys.executable, "-m", "swift.cli.sft", *words],
        lambda descriptor: [command.environment(config, os.environ, directory, events_fd=descriptor, staging=directory / "staged")],
        directory,
        lambda event: events.put((time.perf_counter(), event)),
    )
    trace, mark, saving = Trace([], []), math.nan, math.nan
    while True:
        now, event = events.get()
        match event:
            case Ended():
                break
            case Event(kind=Kind.BEGIN):
                mark = now
            case Event(kind=Kind.SAVING):
                saving = now
            case Event(kind=Kind.LOG) if "loss" in event.values:
                trace.steps.append(now - mark)
                mark = now
            case Event(kind=Kind.SAVED):
                trace.saves.append(now - saving)
                mark = now
            case Event(kind=Kind.END):
                child.kill()  # what follows draws plots
            case _:
                pass
    if len(trace.steps) != STEPS:
        sys.exit(f"error: {len(trace.steps)} of {STEPS} steps were trained; the trainer's last words: {child.tail[-5:]}")
    return trace


def staging_seconds(checkpoint: Path) -> float:
    """Median time to set a checkpoint aside for upload, which is all that training does for it."""
    taken = []
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as target:
        for _ in range(STAGINGS):
            began = time.perf_counter()
            stage(checkpoint, Path(target))
            taken.append(time.perf_counter() - began)
    return median(taken)


def waits(trace: Trace, every_steps: int) -> float:
    """Percent of a training that goes into saving and staging, with a checkpoint each `every_steps` steps."""
    return 100 * mean(trace.saves) / (every_steps * mean(trace.steps))


def slower(beside: Trace, alone: Trace) -> float:
    """Percent by which the same steps took longer."""
    return 100 * (sum(beside.steps) / sum(alone.steps) - 1)
