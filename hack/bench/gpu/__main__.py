"""Training speed and memory of the fast path beside plain ms-swift and Unsloth, all in one run on one GPU.

    python3 -m hack.bench.gpu [--seconds 540] [--results FILE]

A step is 16 rows of 1024 tokens, QLoRA of 4 bits with rank 64 on a Qwen3-8B of random weights. Prints a table, and at the end
`fast=S plain=S unsloth=S unsloth_best=S gib=G small_gib=G small_s=S`: seconds for each step of the fast path on this GPU, of plain ms-swift with Liger's
kernels, of Unsloth with gradient checkpointing and without, GiB that the fast path reserved, then GiB and seconds with the settings of an 8 GB card.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from finetune_runtime import hardware
from finetune_runtime.hardware import Hardware
from tests.gpu.measure_memory import MODELS, roomy

from .cards import CARDS, Card, named
from .figures import Row, last_line, table
from .plans import plan_for
from .trainings import ROOT, Result, Run, dump, job, one_after_the_other
from .workload import LONG, Trained, make, short_lengths, write_rows

STEPS = 7
UNSLOTH_SECONDS = 170  # it compiles for 15 to 45 s in each first step
BATCH = 16
PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "ms-swift", "bitsandbytes", "liger-kernel", "datasets")
# Rows x accumulation and checkpointing; without it 16 rows need nearly all of an 80 GB card, so 8 rows stand in where they do not fit.
UNSLOTH = (("unsloth", (f"{BATCH}x1:on",)), ("unsloth best", (f"{BATCH}x1:off", f"{BATCH // 2}x2:off")))


def fast_runs(model: Trained, rows: Path, length: int, cards: Sequence[Card], steps: int) -> list[Run]:
    """The fast path with the settings that the trainer chooses for each card; the first card is the GPU itself."""
    runs = []
    for number, card in enumerate(cards):
        config = job(fastPath="Required")
        plan = plan_for(model, config, [length], card.budget)
        name = "fast" if number == 0 else f"fast {card.name}"
        limit = 0 if number == 0 else card.budget
        runs.append(Run(name, model, rows, config, plan.micro_batch, steps, plan, limit_bytes=limit))
    return runs


def other_runs(model: Trained, rows: Path, short: Path, whole_card: Card, steps: int) -> list[Run]:
    """Plain ms-swift, and rows of 93 to 373 tokens on both paths."""
    off, required = job(fastPath="Off"), job(fastPath="Required")
    plan = plan_for(model, required, short_lengths(1000), whole_card.budget)
    return [
        Run("plain", model, rows, off, BATCH, steps),
        Run("fast short rows", model, short, required, plan.micro_batch, 2 * steps, plan),
        Run("plain short rows", model, short, off, BATCH, steps),
    ]


def row(run: Run, result: Result) -> Row:
    note = "" if result.return_code == 0 else "failed"
    if run.plan:
        plan = run.plan
        kept = "+".join(f"{plan.keep.count(level)}x{level}" for level in (2, 1, 0) if level in plan.keep)
        note = " ".join(filter(None, [note, f"{plan.micro_batch}x{plan.accumulation}, layers {kept}, {plan.lora_dtype}, {plan.optimizer}"]))
        if result.outcome and not result.outcome.used:
            note += f", NOT USED: {result.outcome.reason}"
    return Row(run.name, result.seconds, result.reserved, result.whole, run.plan.predicted_bytes if run.plan else 0, note)


def unsloth(model: Trained, rows: Path, folder: Path, end: float, python_path: str) -> tuple[list[Row], list[dict[str, Any]]]:
    """Unsloth's rows, and its raw lines; without the package, rows that say so."""
    paths = [python_path or os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "images/runtime")]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('unsloth') is None)"], env=variables, check=False
    )
    if found.returncode:
        return [Row(name, 0.0, note="the package unsloth is not installed: pip install unsloth") for name, _ in UNSLOTH], []
    readings, log = folder / "unsloth.jsonl", folder / "unsloth.log"
    specs = [spec for _, specs in UNSLOTH for spec in specs]
    left = end - time.monotonic()
    note = ""
    try:
        with log.open("wb") as output:
            command = [sys.executable, "-m", "hack.bench.gpu.unsloth_side", str(model.directory), str(rows / "train.jsonl"), str(readings), *specs]
            done = subprocess.run(command, env=variables, cwd=folder, stdout=output, stderr=output, timeout=max(1.0, left), check=False)
            note = "" if done.returncode == 0 else f"failed: {log.read_text(errors='replace')[-1500:]}"
    except subprocess.TimeoutExpired:
        note = "cut off by --seconds"
    lines = [json.loads(line) for line in readings.read_text().splitlines()] if readings.exists() else []
    rows_of = []
    for name, wanted in UNSLOTH:
        ran = [line for line in lines if line.get("spec") in wanted and "seconds" in line]
        best = min(ran, key=lambda line: line["seconds"], default=None)
        rows_of.append(
            Row(name, best["seconds"], best["reserved"], note=best["spec"]) if best else Row(name, 0.0, note=note.splitlines()[-1] if note else "did not run")
        )
    return rows_of, [*lines, *([{"log": note}] if note else [])]


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return found


def driver() -> str:
    if not shutil.which("nvidia-smi"):
        return "no nvidia-smi"
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def memory_of(found: Hardware) -> Card:
    if not found.gpus:
        return Card("CPU", 64 * 2**30)
    return Card(found.gpus[0].name, found.gpus[0].memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800, help="after which it stops and prints what it has")
    parser.add_argument("--results", type=Path, default=ROOT / "build/bench-gpu.json", help="raw results")
    parser.add_argument("--folder", type=Path, default=roomy(), help="for the model: 17 GB")
    parser.add_argument("--cards", type=int, nargs="*", default=[8, 12, 24], help="smaller cards to play, in GB: " + ", ".join(card.name for card in CARDS))
    parser.add_argument("--unsloth-path", default="", help="PYTHONPATH of Unsloth and its own transformers, where they are not beside the trainer's packages")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--profile", action="store_true", help="one step more of the fast and the plain path, with its kernels by kind")
    parser.add_argument("--cpu-dry-run", action="store_true", help="a tiny model on the CPU: everything but the figures")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    if importlib.util.find_spec("swift") is None:
        sys.exit(
            "error: ms-swift is not installed\n  cure: run this where the trainer's packages are (images/trainer/*.lock), for example in the trainer image"
        )
    found = hardware.find(allow_cpu=options.cpu_dry_run)
    this = memory_of(found)
    length = 64 if options.cpu_dry_run else LONG
    rows_of: list[Row] = []
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model = make(MODELS["tiny" if options.cpu_dry_run else "Qwen3-8B"], folder / "model")
        rows = write_rows(model.directory, [length] * BATCH * options.steps, folder / "long")
        short = write_rows(model.directory, short_lengths(BATCH * options.steps * 2), folder / "short")
        print(f"{driver()}; {versions()}; model made after {options.seconds - end + time.monotonic():.0f} s", flush=True)
        fast, *smaller = fast_runs(model, rows, length, [this, *map(named, options.cards)], options.steps)
        plain, *short_rows = other_runs(model, rows, short, this, options.steps)
        runs = [fast, plain, *smaller, *short_rows]  # what the last line needs comes first
        if options.profile:
            runs = [profiled(run) if run.name in ("fast", "plain", "fast 8 GB") else run for run in runs]
        for run, result in one_after_the_other(runs, found, folder, end - (UNSLOTH_SECONDS if options.unsloth_path else 0)):
            rows_of.append(row(run, result))
            records.append(result.record() | {"plan": run.plan and run.plan.model_dump(mode="json", by_alias=True), "limit": run.limit_bytes})
            print(
                json.dumps({key: records[-1][key] for key in ("name", "returnCode", "seconds", "whole", "times", "reserved", "outcome", "losses", "error")}),
                flush=True,
            )
        others, raw = unsloth(model, rows, folder, end, options.unsloth_path)
        rows_of += others
    print(table(rows_of, "fast"))
    line = last_line({row.name: row for row in rows_of})
    dump({"gpu": driver(), "versions": versions(), "rows": [vars(row) for row in rows_of], "runs": records, "unsloth": raw, "line": line}, options.results)
    print(line)


def profiled(run: Run) -> Run:
    return replace(run, steps=run.steps + 1, probe={**run.probe, "profile_step": run.steps + 1})


if __name__ == "__main__":
    main()
