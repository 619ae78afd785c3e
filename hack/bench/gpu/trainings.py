"""Runs the product's own training command, a process for each configuration, with the probe beside the product's plugins."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.fast_path import FAST_PLAN, FastOutcome, FastPlan, outcome_path
from finetune_runtime.hardware import Hardware
from finetune_runtime.train.command import Inputs, arguments, environment, ranks

from .request import REQUEST, Reading, Request, readings
from .workload import TEMPLATE, Trained

ROOT = Path(__file__).parents[3]
PROBE = Path(__file__).with_name("probe.py")
_PORT = 29511  # where several processes meet
SECONDS = 300.0  # for one training, at most


@dataclass(frozen=True)
class Run:
    """A configuration to train. `plan` None: the usual path. `extra`: further words for ms-swift, which win over the product's."""

    name: str
    model: Trained
    rows: Path
    config: JobConfig
    micro_batch: int
    steps: int
    plan: FastPlan | None = None
    limit_bytes: int = 0
    extra: Sequence[str] = ()
    probe: dict[str, Any] = field(default_factory=dict)  # further fields of Request
    processes: int = 1  # GPUs


@dataclass(frozen=True)
class Result:
    """What came of it."""

    name: str
    return_code: int
    readings: list[Reading]
    outcome: FastOutcome | None
    log: str
    seconds_to_exit: float = 0.0  # from the training's end to that of the process

    @property
    def steps(self) -> list[Reading]:
        return [reading for reading in self.readings if reading["kind"] == "step"]

    @property
    def losses(self) -> list[float]:
        return [reading["loss"] for reading in self.readings if reading["kind"] == "log" and "loss" in reading]

    @property
    def seconds(self) -> float:
        """Median of the optimizer steps, without the first one, which compiles, and without profiled ones. 0: there is none."""
        times = [step["seconds"] for step in self.steps[1:] if not step["profiled"]]
        return median(times) if times else 0.0

    @property
    def whole(self) -> float:
        """Median from step's end to step's end: with the loading of the rows, logging and the callbacks."""
        times = [step["whole"] for step in self.steps[2:] if not step["profiled"]]
        return median(times) if times else 0.0

    @property
    def reserved(self) -> int:
        """Bytes that torch had reserved at most, from the process's start."""
        return max((int(reading.get("reserved", 0)) for reading in self.readings), default=0)

    @property
    def error(self) -> str:
        """The end of the log when the training failed."""
        return "" if self.return_code == 0 else self.log[-2000:]

    def record(self) -> dict[str, Any]:
        """For the raw results."""
        outcome = None if self.outcome is None else self.outcome.model_dump(mode="json", by_alias=True)
        return {
            "name": self.name,
            "returnCode": self.return_code,
            "seconds": round(self.seconds, 4),
            "whole": round(self.whole, 4),
            "times": [round(step["seconds"], 4) for step in self.steps],
            "reserved": self.reserved,
            "outcome": outcome,
            "losses": self.losses,
            "readings": [reading for reading in self.readings if reading["kind"] in ("loaded", "kernels", "end")],
            "lastStep": self.steps[-1] if self.steps else None,
            "secondsToExit": round(self.seconds_to_exit, 2),
            "error": self.error,
        }


class Started:
    """A training whose process imports what it needs, and then waits for `go`."""

    def __init__(self, run: Run, hardware: Hardware, folder: Path) -> None:
        self.run = run
        self._scratch = Path(tempfile.mkdtemp(dir=folder, prefix="run-"))
        (self._scratch / "output").mkdir()
        self._readings = self._scratch / "readings"
        request = Request(readings=str(self._readings), limit_bytes=run.limit_bytes, **run.probe).write(self._scratch / "request")
        self._plan = self._scratch / "plan"
        if run.plan:
            self._plan.write_text(run.plan.model_dump_json(by_alias=True))
        self._log = (self._scratch / "log").open("wb")
        self._events = (self._scratch / "events").open("w")
        variables = environment(run.config, os.environ, self._scratch, events_fd=self._events.fileno(), staging=self._scratch / "staged")
        # One cache of compiled kernels for all runs; the first run of each kind pays.
        variables |= {
            "TRITON_CACHE_DIR": str(folder / "triton"),
            REQUEST: str(request),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "images/runtime"), os.environ.get("PYTHONPATH", "")]),
        }
        if run.plan:
            variables[FAST_PLAN] = str(self._plan)
        if run.processes == 1 and len(hardware.gpus) > 1:
            variables["CUDA_VISIBLE_DEVICES"] = "0"  # else ms-swift spreads one process over all of them
        hardware = replace(hardware, gpus=hardware.gpus[:1])
        command = [sys.executable, "-m", "hack.bench.gpu.waiting", *words(run, hardware, self._scratch / "output")]
        self._processes = [
            subprocess.Popen(
                command,
                env=variables | rank,
                cwd=self._scratch,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[self._events.fileno()],
            )
            for rank in ranks(run.processes, _PORT)
        ]

    def go(self, seconds: float = SECONDS) -> Result:
        """Trains to the end; a training that takes longer than `seconds` is killed."""
        end = time.monotonic() + seconds
        code = 0
        try:
            for process in self._processes:
                _send(process)
            for process in self._processes:
                code = process.wait(max(1.0, end - time.monotonic())) or code
        except (subprocess.TimeoutExpired, BrokenPipeError):
            code = 1
        self.drop()
        found = readings(self._readings)
        ended = next((reading["at"] for reading in found if reading["kind"] == "end"), 0.0)
        answer = outcome_path(self._plan)
        return Result(
            self.run.name,
            code,
            found,
            FastOutcome.model_validate_json(answer.read_bytes()) if answer.exists() else None,
            (self._scratch / "log").read_text(errors="replace"),
            seconds_to_exit=time.time() - ended if ended else 0.0,
        )

    def drop(self) -> None:
        """Ends what still runs."""
        for process in self._processes:
            process.kill()
            process.wait()


def _send(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.write(b"go\n")
        process.stdin.close()


def words(run: Run, hardware: Hardware, output: Path) -> list[str]:
    """The product's arguments of ms-swift, with the probe as one more callback."""
    inputs = Inputs(run.model.directory, run.rows, run.model.architecture.swift, TEMPLATE, validation=False)
    found = arguments(
        run.config.model_copy(update={"gpus": run.processes}), inputs, hardware, micro_batch=run.micro_batch, output=output, resume_from=None, plan=run.plan
    )
    plugins = found.index("--callbacks")
    found[plugins:plugins] = [str(PROBE)]
    end = next((index for index in range(plugins + 2, len(found)) if found[index].startswith("--")), len(found))
    found[end:end] = ["bench"]
    return [*found, "--max_steps", str(run.steps), "--save_strategy", "no", "--logging_steps", "1", "--report_to", "none", *run.extra]


def one_after_the_other(runs: Sequence[Run], hardware: Hardware, folder: Path, end: float) -> Iterator[tuple[Run, Result]]:
    """Trains each alone on the GPU; the next one imports meanwhile. Stops before `end` (monotonic)."""
    with _all_started(runs, hardware, folder) as started:
        for run in runs:
            left = end - time.monotonic()
            if left < 20:
                return
            current = next(started)
            yield run, current.go(min(left, SECONDS))


@contextmanager
def _all_started(runs: Sequence[Run], hardware: Hardware, folder: Path) -> Iterator[Iterator[Started]]:
    """Each run's process is started while the one before it trains."""
    waiting: list[Started] = []

    def each() -> Iterator[Started]:
        for number, run in enumerate(runs):
            if not waiting:
                waiting.append(Started(run, hardware, folder))
            current = waiting.pop()
            if number + 1 < len(runs):
                waiting.append(Started(runs[number + 1], hardware, folder))
            yield current

    try:
        yield each()
    finally:
        for left in waiting:
            left.drop()


def job(*, tuning: Mapping[str, Any] | None = None, **training: object) -> JobConfig:
    """A job as its user would write it: QLoRA of 4 bits, rank 64, dropout 0, steps of 16 rows of 1024 tokens. `training`: fields of spec.training."""
    wanted = dict(tuning or {})
    lora = {"rank": 64, "alpha": 128, "dropout": "0"} | wanted.pop("lora", {})
    return JobConfig.model_validate(
        {
            "job": {"namespace": "bench", "name": "bench", "uid": "0"},
            "model": {"source": "pvc://models/unused"},
            "dataset": {"train": [{"source": "pvc://data/unused"}]},
            "tuning": {"method": "QLoRA", "lora": lora, **wanted},
            "training": {"maxLength": 1024, "effectiveBatchSize": 16, "learningRate": "3e-6", "epochs": 50, **training},
            "checkpoints": {"everySteps": 1000},
            "storage": {"uri": "s3://unused/unused"},
            "cpuThreads": 2,
        }
    )


def dump(records: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n")
