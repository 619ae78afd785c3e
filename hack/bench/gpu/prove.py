"""Proofs on a GPU that the fast path is exact, learns, fits, comes down and shares its work.

    python3 -m hack.bench.gpu.prove exactness learning predictions step-down shutdown two-gpus [--seconds 540] [--results FILE]
    python3 -m hack.bench.gpu.prove real-text --model DIRECTORY [--cpu]

Prints a JSON line for each finding; ends with `PROOF checks=N failed=M`.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_runtime import hardware
from finetune_runtime.hardware import Hardware
from tests.gpu.measure_memory import MODELS, Architecture, roomy

from . import exactness, learning, predictions, real_text
from .cards import GIB, Card, named
from .plans import plan_for
from .trainings import ROOT, Result, Run, Started, dump, job
from .workload import LONG, Trained, make, write_rows

Line = dict[str, Any]
STEP_DOWN_STEPS = 6
_TWO = ("--dataloader_num_workers", "2", "--dataloader_persistent_workers")
LOADERS = {"no workers": (), "two workers": (*_TWO, "false", "--dataloader_prefetch_factor", "8"), "two persistent workers": (*_TWO, "true")}


class Room:
    """Keeps the trainings that run at once within the GPU's memory."""

    def __init__(self, memory: int) -> None:
        self._all = self._free = memory
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size: int) -> Any:
        size = min(size, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


@dataclass(frozen=True)
class Place:
    """Where the proofs run."""

    hardware: Hardware
    folder: Path
    end: float  # of a monotonic clock
    tiny: bool
    card: Card
    length: int
    only: str = ""
    at_once: int = 5
    real_model: Path | None = None

    def model(self, name: str) -> Trained:
        return self.made(MODELS["tiny" if self.tiny else name], name)

    def made(self, architecture: Architecture, name: str) -> Trained:
        return make(architecture, self.folder / f"model-{name.replace(' ', '-')}")

    def side_by_side(self, runs: Sequence[Run], *, seconds: float = 280.0) -> dict[str, Result]:
        """Results by the runs' names; those for which no time was left are missing."""
        return {result.name: result for result in self.as_they_end(runs, seconds=seconds)}

    def as_they_end(self, runs: Sequence[Run], *, seconds: float) -> Iterator[Result]:
        """The results of the runs for which there was time left, each when it is there."""
        room = Room(self.card.budget)

        def train(run: Run) -> Result | None:
            with room.of(run.plan.predicted_bytes + GIB if run.plan else 10 * GIB):
                left = self.end - time.monotonic()
                return Started(run, self.hardware, self.folder).go(min(left, seconds)) if left > 15 else None

        with ThreadPoolExecutor(self.at_once) as pool:
            for ended in as_completed([pool.submit(train, run) for run in runs]):
                if result := ended.result():
                    yield result


def prove_exactness(place: Place) -> Iterable[Line]:
    cases = [case for case in exactness.cases(tiny=place.tiny) if place.only in case.name]
    made: dict[str, list[Run]] = {}
    models: dict[Architecture, Trained] = {}
    for number, case in enumerate(cases):
        if case.architecture not in models:
            models[case.architecture] = place.made(case.architecture, f"exact-{number}")
        made[case.name] = exactness.runs(case, models[case.architecture], place.folder, place.length)
    results = place.side_by_side([run for runs in made.values() for run in runs], seconds=120)
    for case in cases:
        yield from exactness.compare(case, made[case.name], results)


def prove_learning(place: Place) -> Iterable[Line]:
    model = place.model("Qwen3-8B")
    runs = learning.runs(model, place.folder, place.length, named(8).budget, 6 if place.tiny else learning.STEPS)
    yield from learning.compare(runs, place.side_by_side(runs), judged=not place.tiny)


def prove_real_text(place: Place) -> Iterable[Line]:
    if place.real_model is None:
        yield {"error": "give a real model of Llama's kind by --model DIRECTORY", "passes": False}
        return
    runs = real_text.runs(real_text.of_directory(place.real_model), place.folder, 4 if place.tiny else real_text.STEPS)
    yield from real_text.compare(runs, place.side_by_side(runs, seconds=7200))


def prove_predictions(place: Place) -> Iterable[Line]:
    cases = [case for case in (predictions.DRY_CASES if place.tiny else predictions.CASES) if place.only in case.name]
    models: dict[str, Trained] = {}
    made = {}
    for case in cases:
        if case.model not in models:
            models[case.model] = make(MODELS[case.model], place.folder / f"model-{case.model}")
        made[case.name] = predictions.run(case, models[case.model], place.folder)
    named_cases = {case.name: case for case in cases}
    percents = []
    for result in place.as_they_end(list(made.values()), seconds=240):
        line = predictions.line(named_cases.pop(result.name), made[result.name], result)
        if "percent" in line and not line["bound"]:
            percents.append(abs(line["percent"]))
        yield line
    yield from ({"case": name, "error": "no time left"} for name in named_cases)
    worst = max(percents, default=0.0)
    found = {"configs": len(percents), "worstPercent": worst, "meanPercent": round(sum(percents) / max(1, len(percents)), 1)}
    yield found | {"passes": bool(percents) and worst <= predictions.TARGET_PERCENT}


def prove_step_down(place: Place) -> Iterable[Line]:
    """A plan for more memory than the allocator then gives: the steps go on with less kept, and their losses are those of a roomy run."""
    model = place.model("Qwen3-1.7B")
    rows = write_rows(model.directory, [place.length] * 16 * 6, place.folder / "step-down")
    config = job(fastPath="Required")
    plan = plan_for(model, config, [place.length], 24 * GIB)
    runs = [
        Run("step down: roomy", model, rows, config, plan.micro_batch, STEP_DOWN_STEPS, plan, probe={"seed": 7}),
        *(
            Run(
                f"step down: {share:.0%} of the memory",
                model,
                rows,
                config,
                plan.micro_batch,
                STEP_DOWN_STEPS,
                plan,
                limit_bytes=int(plan.predicted_bytes * share),
                probe={"seed": 7},
            )
            for share in (0.8, 0.6)
        ),
    ]
    results = place.side_by_side(runs)
    roomy_losses = results[runs[0].name].losses if runs[0].name in results else []
    for run in runs:
        result = results.get(run.name)
        if not result:
            continue
        apart = max((abs(a - b) for a, b in zip(roomy_losses, result.losses, strict=False)), default=0.0)
        finished = result.return_code == 0 and len(result.steps) == STEP_DOWN_STEPS
        yield {
            "side": run.name,
            "returnCode": result.return_code,
            "steps": len(result.steps),
            "outcome": result.outcome.model_dump(mode="json", by_alias=True) if result.outcome else None,
            "lossesApart": apart,
            "limit": round(run.limit_bytes / GIB, 2),
            "reserved": round(result.reserved / GIB, 2),
            "times": [round(step["seconds"], 3) for step in result.steps],
            "error": result.error[-500:],
        } | ({"passes": finished and apart < 0.01} if run.limit_bytes else {})


def prove_shutdown(place: Place) -> Iterable[Line]:
    """How long the process lives on after the training's end, without and with workers that load the rows: torch waits for persistent ones."""
    model = make(MODELS["tiny"], place.folder / "model-tiny")
    rows = write_rows(model.directory, [64] * 64, place.folder / "shutdown")
    for name, extra in LOADERS.items():
        config = job(fastPath="Off", effectiveBatchSize=4)
        run = Run(f"shutdown: {name}", model, rows, config, 2, 6, extra=extra)
        result = Started(run, place.hardware, place.folder).go(120)
        line = {"side": run.name, "returnCode": result.return_code, "secondsToExit": round(result.seconds_to_exit, 1), "error": result.error[-500:]}
        yield line | {"passes": result.return_code == 0 and (place.tiny or result.seconds_to_exit < 6 or "persistent" in name)}


def prove_two_gpus(place: Place) -> Iterable[Line]:
    """Steps of 16 rows on one GPU and on two, and each alone with half of them."""
    if len(place.hardware.gpus) < 2 and not place.tiny:
        yield {"side": "two GPUs", "error": "there are no two GPUs here"}
        return
    model = place.model("Qwen3-8B")
    rows = write_rows(model.directory, [place.length] * 16 * 8, place.folder / "two")
    config = job(fastPath="Required")
    one = plan_for(model, config, [place.length], place.card.budget)
    each = plan_for(model, config, [place.length], place.card.budget, gpus=2)
    probe = {"seed": 7, "profile_step": 8}
    rate = ("--learning_rate", "1e-4")  # so that the losses of the steps after the first tell whether the updates are alike
    runs = [
        Run("one GPU", model, rows, config, one.micro_batch, 8, one, extra=rate, probe=probe),
        Run("two GPUs", model, rows, config, each.micro_batch, 8, each, extra=rate, processes=2, probe=probe),
    ]
    seconds: dict[str, float] = {}
    losses: dict[str, list[float]] = {}
    for run in runs:
        result = Started(run, place.hardware, place.folder).go(200)
        losses[run.name] = result.losses
        seconds[run.name] = result.seconds
        yield {"side": run.name, **result.record()}
    if all(seconds.values()):
        apart = [abs(a - b) for a, b in zip(losses["one GPU"], losses["two GPUs"], strict=False)]
        yield {"lossesApart": max(apart), "passes": max(apart) < 0.02}
        yield {"speedup": round(seconds["one GPU"] / seconds["two GPUs"], 3), "passes": place.tiny or seconds["one GPU"] / seconds["two GPUs"] >= 1.9}


PROOFS: dict[str, Callable[[Place], Iterable[Line]]] = {
    "exactness": prove_exactness,
    "learning": prove_learning,
    "real-text": prove_real_text,
    "predictions": prove_predictions,
    "step-down": prove_step_down,
    "shutdown": prove_shutdown,
    "two-gpus": prove_two_gpus,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proofs", nargs="+", choices=PROOFS)
    parser.add_argument("--seconds", type=float, default=3600, help="after which nothing new is started")
    parser.add_argument("--results", type=Path, default=ROOT / "build/prove-gpu.json")
    parser.add_argument("--folder", type=Path, default=roomy(), help="for the models: 30 GB")
    parser.add_argument("--at-once", type=int, default=5, help="trainings that run at the same time where nobody reads their times")
    parser.add_argument("--only", default="", help="cases of exactness and predictions whose names hold this")
    parser.add_argument("--model", type=Path, help="a real model, for real-text")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU where there is no GPU: real-text in half an hour or more")
    parser.add_argument("--cpu-dry-run", action="store_true", help="tiny models on the CPU: everything but the figures")
    options = parser.parse_args()
    found = hardware.find(allow_cpu=options.cpu or options.cpu_dry_run)
    card = Card(found.gpus[0].name, found.gpus[0].memory) if found.gpus else Card("CPU", 64 * GIB)
    lines: dict[str, list[Line]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        length, end = 64 if options.cpu_dry_run else LONG, time.monotonic() + options.seconds
        place = Place(found, Path(name), end, options.cpu_dry_run, card, length, options.only, options.at_once, options.model)
        for proof in options.proofs:
            folder = Path(name) / proof
            folder.mkdir()
            lines[proof] = []
            begun = time.monotonic()
            for line in PROOFS[proof](replace(place, folder=folder)):
                print(json.dumps({"proof": proof, **line})[:1500], flush=True)
                lines[proof].append(line)
                dump(lines, options.results)
            shutil.rmtree(folder)  # models of 16 GB, in memory perhaps
            print(f"{proof}: {time.monotonic() - begun:.0f} s", flush=True)
    checks = [line for found_lines in lines.values() for line in found_lines if "passes" in line]
    failed = [line for line in checks if not line["passes"]]
    print(f"PROOF checks={len(checks)} failed={len(failed)}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
