"""What the supervisor makes of a training process's end: a real process in the place of ms-swift, and a Run that only notes what is asked of it."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import Exit, Reason, StepError, TrainSummary
from finetune_runtime.train import supervisor
from finetune_runtime.train.events import Event, Kind

OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB."
REFUSED = StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, "training.fastPath is Required, and the training cannot take it")
NO_SMALLER = StepError(Exit.OUT_OF_MEMORY, Reason.OUT_OF_MEMORY, "The model does not fit into memory")


class Noted:
    """Stands where a Run does. `refusal`: what the first event raises."""

    summary, declined, diverged = TrainSummary(), False, ""

    def __init__(self, package: Path, *, refusal: StepError | None = None) -> None:
        self.asked: list[str] = []
        self._package, self._refusal = package, refusal

    def is_finished(self) -> bool:
        return False

    def command(self) -> list[str]:
        return []

    def loading(self) -> None:
        self.asked.append("start")

    def environments(self, base: Mapping[str, str], events_fd: int) -> list[dict[str, str]]:
        return [{**base, "PYTHONPATH": os.pathsep.join([str(self._package), *sys.path]), "EVENTS": str(events_fd)}]

    def on_event(self, _event: Event) -> None:
        if self._refusal:
            raise self._refusal

    def shrink(self) -> None:
        self.asked.append("shrink")
        raise NO_SMALLER

    def fall_back(self, failure: str) -> bool:
        self.asked.append(f"fall back: {failure}")
        return False

    def give_up(self, _patience: float, failure: str) -> None:
        self.asked.append(f"give up: {failure}")


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Any]:
    """Has the supervisor train with the lines of a program in the place of ms-swift's; returns its error and what it asked of the run."""
    (tmp_path / "swift/cli").mkdir(parents=True)
    before = signal.getsignal(signal.SIGTERM)

    def end(*lines: str, refusal: StepError | None = None) -> tuple[StepError, list[str]]:
        (tmp_path / "swift/cli/sft.py").write_text("\n".join(["import os, signal, time", *lines]))
        config = JobConfig.model_validate(
            {
                "job": {"namespace": "n", "name": "j", "uid": "u"}, "model": {"source": "s3://m/q"}, "dataset": {"train": [{"source": "s3://d/t.json"}]},
                "tuning": {}, "training": {}, "checkpoints": {}, "storage": {"uri": "s3://models/x"},
            }
        )  # fmt: skip
        run = Noted(tmp_path, refusal=refusal)
        with pytest.raises(StepError) as error:
            supervisor.Supervisor(config, tmp_path)._train(cast("Any", run))
        return error.value, run.asked

    yield end
    signal.signal(signal.SIGTERM, before)


def test_a_process_that_runs_out_of_memory_is_followed_by_a_smaller_one(train: Any) -> None:
    error, asked = train(f"raise SystemExit('{OUT_OF_MEMORY}')")
    assert (error, asked) == (NO_SMALLER, ["start", "shrink", f"give up: {NO_SMALLER.message}"])


def test_who_is_killed_has_not_run_out_of_gpu_memory_whatever_he_said_before(train: Any) -> None:
    error, asked = train(f"print('{OUT_OF_MEMORY}')", "os.kill(os.getpid(), signal.SIGKILL)")
    assert (error.reason, "resources.memory" in error.message) == (Reason.TRAINING_CRASHED, True)
    assert asked == ["start", f"give up: {error.message}"]


def test_memory_that_a_process_came_to_terms_with_is_not_why_it_crashed_later(train: Any) -> None:
    error, asked = train(
        "from finetune_runtime.handled import told",
        "try:",
        f"    raise MemoryError('{OUT_OF_MEMORY}')",
        "except MemoryError as error:",
        "    print(f'no CUDA graphs\\n{told(error)}')",
        "raise ValueError('a broken row')",
    )
    assert (error.reason, error.message) == (Reason.TRAINING_CRASHED, "The training process ended with code 1: ValueError: a broken row")
    assert asked == ["start", "fall back: ValueError: a broken row", f"give up: {error.message}"]


def test_a_checkpoint_that_waits_is_saved_also_where_the_next_process_is_refused(train: Any) -> None:
    begin = Event(Kind.BEGIN, 5, 20).encode()
    error, asked = train(f"os.write(int(os.environ['EVENTS']), {(begin + chr(10)).encode()!r})", "time.sleep(60)", refusal=REFUSED)
    assert (error, asked) == (REFUSED, ["start", f"give up: {REFUSED.message}"])
