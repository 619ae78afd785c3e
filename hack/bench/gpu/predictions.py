"""What the sizing predicts against what torch reserves at the peak: models, budgets, ranks, lengths and kinds of rows, three steps each.

A training alone in its process, but several processes on the GPU at once: that changes times, which nobody reads here, not what torch reserves. Where rows
differ in length the prediction is for the longest micro-batch that is likely, which three steps need not meet: there it is a bound.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cards import GIB
from .plans import plan_for
from .trainings import Result, Run, job
from .workload import Trained, write_rows

STEPS = 3
TARGET_PERCENT = 7.0


@dataclass(frozen=True)
class Case:
    """`gib`: the budget. `spread`: rows are from so much of the length to all of it."""

    model: str
    gib: float
    length: int = 1024
    rank: int = 64
    batch: int = 16
    bits: int = 4
    spread: float = 1.0
    dropout: str = "0"

    @property
    def name(self) -> str:
        kind = "" if self.spread == 1.0 else f", rows from {self.spread:.0%}"
        return f"{self.model}, {self.gib:g} GiB, {self.bits} bits, r={self.rank}, {self.batch}x{self.length}{kind}, dropout {self.dropout}"


CASES = (
    Case("SmolLM2-135M", 3.0, rank=16),
    Case("SmolLM2-135M", 12.0, 2048, 16, 8, spread=0.2),
    Case("Qwen3-0.6B", 6.0, 512, 8, 32),
    Case("Qwen3-0.6B", 14.0, 2048, 64, 8, dropout="0.05"),
    Case("Llama-3.2-1B", 6.8, 1024, 64, 8),
    Case("Llama-3.2-1B", 22.0, 1024, 16, 16, spread=0.3),
    Case("Qwen2.5-1.5B", 8.0, 2048, 32, 8),
    Case("Qwen3-1.7B", 10.0, 1024, 64, 16, bits=8),
    Case("Qwen3-1.7B", 6.8, 2048, 128, 4),
    Case("Qwen3-4B", 6.8, 1024, 64, 16),
    Case("Qwen3-4B", 14.8, 2048, 16, 8, dropout="0.05"),
    Case("Qwen3-4B", 22.8, 4096, 32, 8),
    Case("Qwen3-8B", 6.85),
    Case("Qwen3-8B", 8.5, 512),
    Case("Qwen3-8B", 10.8),
    Case("Qwen3-8B", 14.8),
    Case("Qwen3-8B", 22.8),
    Case("Qwen3-8B", 38.8),
    Case("Qwen3-8B", 14.8, 1024, 16, 16, bits=8),
    Case("Qwen3-8B", 22.8, 1024, spread=0.1),
)
DRY_CASES = (Case("tiny", 3.0, 64, 8, 4), Case("tiny-llama", 3.0, 64, 8, 4, bits=8), Case("tiny-qwen2", 3.0, 64, 8, 4, spread=0.2))


def run(case: Case, model: Trained, folder: Path) -> Run:
    """The training of a case, held to its budget by the allocator."""
    count = case.batch * STEPS
    lengths = [max(16, round(case.length * (case.spread + (1 - case.spread) * number / max(1, count - 1)))) for number in range(count)]
    rows = write_rows(model.directory, lengths, folder / f"rows-{abs(hash(case))}")
    tuning = {"lora": {"rank": case.rank, "alpha": 2 * case.rank, "dropout": case.dropout}, "quantization": {"bits": case.bits}}
    config = job(tuning=tuning, maxLength=case.length, effectiveBatchSize=case.batch, fastPath="Required")
    plan = plan_for(model, config, lengths, int(case.gib * GIB))
    return Run(case.name, model, rows, config, plan.micro_batch, STEPS, plan, limit_bytes=plan.budget_bytes)


def line(case: Case, made: Run, result: Result) -> dict[str, Any]:
    """Sizes in GiB, and by how many percent of the measured one the prediction is too high."""
    plan = made.plan
    if plan is None:
        raise ValueError(f"{made.name} has no plan")
    found = {"case": case.name, "plan": plan.model_dump(mode="json", by_alias=True), "loading": loading(result)}
    if result.return_code or not result.outcome or not result.outcome.used:
        return found | {"error": result.error[-800:] or (result.outcome.reason if result.outcome else "no outcome")}
    percent = 100 * (plan.predicted_bytes / result.reserved - 1) if result.reserved else 0.0
    outcome = result.outcome.model_dump(mode="json", by_alias=True)
    return found | {
        "predicted": round(plan.predicted_bytes / GIB, 3),
        "measured": round(result.reserved / GIB, 3),
        "percent": round(percent, 1),
        "bound": case.spread < 1.0,  # of uneven rows a run need not meet the longest micro-batch
        "outcome": outcome,
    }


def loading(result: Result) -> float:
    return next((round(reading["reserved"] / GIB, 3) for reading in result.readings if reading["kind"] == "loaded"), 0.0)
