"""Whether the fast path learns what plain ms-swift learns: a real model on real text, and the loss on rows that it has not seen.

The text is Python's language reference, which comes with every Python (pydoc's topics, 0.5 MB): a row asks for the second half of a passage by its first.
How far apart two trainings may end is measured and not chosen: two plain ones whose seeds differ, which draws other adapters and another order of rows.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from finetune_runtime.contract.artefact import TRAIN_FILE, VALIDATION_FILE
from finetune_runtime.contract.model_shape import from_config
from finetune_runtime.contract.sizing import GIB
from tests.gpu.measure_memory import MODELS

from .plans import plan_for
from .trainings import Result, Run, job
from .workload import Trained

STEPS = 320
EVALUATIONS = 4
BATCH = 4
SEEDS = (1, 2)
PASSAGE = 480  # characters of a row: about 120 tokens
HELD_OUT = 64  # rows
LENGTH = 256  # tokens of a row at most
BUDGET = 8 * GIB
_SHUFFLE = 0  # seed of which rows are held out, the same for all sides


def of_directory(directory: Path) -> Trained:
    """SmolLM2-135M or another model of Llama's kind. Raises ValueError for a config.json of another kind."""
    shape = from_config(json.loads((directory / "config.json").read_text()))
    if shape is None:
        raise ValueError(f"{directory}/config.json is not that of a model like Llama")
    return Trained(directory, MODELS["SmolLM2-135M"], shape)


def write(directory: Path) -> Path:
    """Rows for training and validation. Returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    passages = [part for name in sorted(topics) for part in _passages(" ".join(topics[name].split()))]
    random.Random(_SHUFFLE).shuffle(passages)  # noqa: S311  rows, not secrets
    rows = [json.dumps({"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]}) + "\n" for ask, answer in passages]
    (directory / VALIDATION_FILE).write_text("".join(rows[:HELD_OUT]))
    (directory / TRAIN_FILE).write_text("".join(rows[HELD_OUT:]))
    return directory


def _passages(text: str) -> list[tuple[str, str]]:
    """First and second halves of the whole passages of a text, cut at blanks."""
    found = []
    while len(text) > PASSAGE:
        middle, end = text.rindex(" ", 0, PASSAGE // 2), text.rindex(" ", 0, PASSAGE)
        found.append((text[:middle], text[middle + 1 : end]))
        text = text[end + 1 :]
    return found


def runs(model: Trained, folder: Path, steps: int = STEPS) -> list[Run]:
    """Plain with each seed, then the fast path with the first one: the rows in the same order, from the same adapters."""
    rows = write(folder / "real-text")
    every = str(max(1, steps // EVALUATIONS))
    extra = ("--val_dataset", str(rows / VALIDATION_FILE), "--eval_strategy", "steps", "--eval_steps", every, "--per_device_eval_batch_size", str(BATCH))
    sides = [("plain", "Off", seed) for seed in SEEDS] + [("fast", "Required", SEEDS[0])]
    found = []
    for path, wanted, seed in sides:
        training = {"maxLength": LENGTH, "effectiveBatchSize": BATCH, "learningRate": "2e-4", "seed": seed}
        config = job(tuning={"lora": {"rank": 16, "alpha": 32}}, fastPath=wanted, **training)
        plan = plan_for(model, config, [LENGTH], BUDGET) if path == "fast" else None
        found.append(Run(f"real text: {path}, seed {seed}", model, rows, config, plan.micro_batch if plan else BATCH, steps, plan, extra=extra))
    return found


def compare(made: Sequence[Run], results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """Losses on the rows held out, and whether the fast path ended no further from plain than another seed does."""
    lines: list[dict[str, Any]] = []
    for run in made:
        result = results.get(run.name)
        losses = [round(r["eval_loss"], 5) for r in result.readings if "eval_loss" in r] if result else []
        error = result.error[-600:] if result else "no time left"
        lines.append({"side": run.name, "steps": len(result.steps) if result else 0, "evalLosses": losses, "error": error})
    if not all(run.name in results and results[run.name].return_code == 0 and line["evalLosses"] for run, line in zip(made, lines, strict=True)):
        return [*lines, {"passes": False}]
    one, other, fast = (line["evalLosses"][-1] for line in lines)
    return [*lines, {"apart": round(abs(fast - one), 5), "noise": round(abs(one - other), 5), "passes": abs(fast - one) <= abs(one - other)}]
