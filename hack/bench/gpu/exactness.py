"""Losses and gradients of the adapters, fast path and plain ms-swift, each against the same model in float32.

The reference multiplies the dequantised weights in float32, activations in float32, with torch's own attention and loss. Both sides get the same adapters
(B not zero), the same rows and a learning rate of zero, so that every step measures the same weights on other rows. A path passes when its errors are no
larger than plain ms-swift's own, beyond the spread that a few steps leave.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.fast_path import FastPlan
from tests.gpu.measure_memory import MODELS, Architecture

from .plans import plan_for
from .trainings import Result, Run, job
from .workload import Trained, cut, short_lengths, write_rows

STEPS = 6
ROWS = 4  # of a step
GRADIENT_SPREAD = 1.03  # of the mean error over the steps
LOSS_SPREAD = 1.5  # of the root mean square over the steps: few numbers, and each the difference of two large ones
LOSS_NOISE = 1e-3  # of losses near 12: plain ms-swift's own came out at 2.6e-4 and at 7.9e-4 in two runs of one case
MISTRAL = Architecture("mistral", "mistral", 4096, 14336, 2, 32, 8, 128, 32768, tied=False)
ZERO = ("--learning_rate", "0", "--max_grad_norm", "0")
FLOAT32 = ("--torch_dtype", "float32", "--bf16", "false", "--fp16", "false", "--use_liger_kernel", "false")
Change = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Variants of the fast path on one model and one kind of rows. `tuning` as in the job; `variants`: changes of the plan by name."""

    name: str
    architecture: Architecture
    variants: Mapping[str, Change]
    tuning: Mapping[str, Any] = field(default_factory=dict)
    short: bool = False
    rows_at_a_time: int = ROWS  # of plain ms-swift

    @property
    def dropout(self) -> bool:
        return str(self.tuning.get("lora", {}).get("dropout", "0")) != "0"


def kept(architecture: Architecture, *levels: int) -> list[int]:
    """The levels over the layers, the last one for all that are left."""
    return [*levels, *[levels[-1]] * architecture.layers][: architecture.layers]


def variants(architecture: Architecture, names: Sequence[str]) -> dict[str, Change]:
    one_row = {"micro_batch": 1, "accumulation": ROWS}
    graph = one_row | {"graph_tokens": 8192, "max_graphs": 4}
    small = graph | {"keep": kept(architecture, 0), "lora_dtype": "bfloat16", "optimizer": "adamw_8bit", "masters": "stochastic"}
    known: dict[str, Change] = {
        "keep all": {"keep": kept(architecture, 2)},
        "keep attention": {"keep": kept(architecture, 1)},
        "keep input": {"keep": kept(architecture, 0)},
        "mixed": {"keep": kept(architecture, 0, 2)},
        "graph": graph | {"keep": kept(architecture, 2)},
        "graph, keep input": graph | {"keep": kept(architecture, 0)},
        "8 GB": small | {"embedding_on_cpu": not architecture.tied},
    }
    return {name: known[name] for name in names}


def cases(*, tiny: bool) -> list[Case]:
    """All of them; `tiny`: the same on models that a CPU can train."""
    wide = MODELS["tiny"] if tiny else cut("Qwen3-8B", 2)
    some = ("keep all", "graph, keep input")
    others = {
        "Qwen2.5": MODELS["tiny-qwen2"] if tiny else cut("Qwen2.5-1.5B", 4),
        "Llama 3.2": MODELS["tiny-llama"] if tiny else cut("Llama-3.2-1B", 4),
        "Mistral": MODELS["tiny"] if tiny else MISTRAL,
        "SmolLM2": MODELS["tiny"] if tiny else cut("SmolLM2-135M", 30),
    }
    return [
        Case("Qwen3", wide, variants(wide, ("keep all", "keep attention", "keep input", "mixed", "graph", "8 GB"))),
        Case("Qwen3, short rows", wide, variants(wide, ("keep all", "graph")), short=True),
        Case("Qwen3, dropout 0.05", wide, variants(wide, ("keep all", "graph, keep input")), {"lora": {"dropout": "0.05"}}),
        Case("Qwen3, 8 bits", wide, variants(wide, some), {"quantization": {"bits": 8}}),
        *(Case(name, architecture, variants(architecture, some)) for name, architecture in others.items()),
    ]


def runs(case: Case, model: Trained, folder: Path, length: int) -> list[Run]:
    """Reference, plain, and the variants; each leaves its gradients beside the rows."""
    lengths = [max(16, n * length // 1024) for n in short_lengths(ROWS * STEPS)] if case.short else [length] * ROWS * STEPS
    rows = write_rows(model.directory, lengths, folder / f"rows-{case.name.replace(' ', '-')}")

    def run(name: str, config: JobConfig, rows_at_a_time: int, plan: FastPlan | None = None, extra: Sequence[str] = (), *, exact: bool = False) -> Run:
        probe = {"seed": 7, "gradients": str(rows / f"{name.replace(' ', '-')}.pt"), "exact_base": exact}
        return Run(f"{case.name}: {name}", model, rows, config, rows_at_a_time, STEPS, plan, extra=[*ZERO, *extra], probe=probe)

    def config(tuning: Mapping[str, Any], fast: str) -> JobConfig:
        return job(tuning=dict(tuning), effectiveBatchSize=ROWS, fastPath=fast, maxLength=1024)

    eight = case.tuning.get("quantization", {}).get("bits") == 8
    without_dropout = {key: value for key, value in case.tuning.items() if key != "lora"}
    exact = [*FLOAT32, *([] if eight else ["--bnb_4bit_compute_dtype", "float32"])]
    found = [
        run("reference", config(without_dropout, "Off"), 1, extra=exact, exact=eight),
        run("plain", config(case.tuning, "Off"), case.rows_at_a_time),
    ]
    required = config(case.tuning, "Required")
    base = plan_for(model, required, lengths, 70 * 2**30).model_copy(update={"graph_tokens": 0, "max_graphs": 0})
    for name, change in case.variants.items():
        plan = base.model_copy(update=change)
        found.append(run(name, required, plan.micro_batch, plan))
    return found


def compare(case: Case, made: Sequence[Run], results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """A line for each side: errors against the reference, and whether they are no larger than plain ms-swift's."""
    names = {run.name.removeprefix(f"{case.name}: "): run for run in made}
    reference = results[names["reference"].name]
    if reference.return_code:
        return [{"case": case.name, "side": "reference", "error": reference.error[-600:], "passes": False}]
    lines: list[dict[str, Any]] = []
    plain: dict[str, Any] = {}
    for name, run in names.items():
        if name == "reference":
            continue
        result = results.get(run.name)
        line: dict[str, Any] = {"case": case.name, "side": name}
        if result is None or result.return_code:
            lines.append(line | {"error": result.error[-600:] if result else "no time left", "passes": False})
            continue
        line |= errors(Path(names["reference"].probe["gradients"]), Path(run.probe["gradients"]), reference.losses, result.losses)
        if name == "plain":
            plain = line
        used = run.plan is None or (result.outcome is not None and result.outcome.used)
        line["passes"] = used and bool(plain) and no_looser(line, plain, dropout=case.dropout)
        if not used:
            line["error"] = result.outcome.reason if result.outcome else "no outcome"
        lines.append(line)
    return lines


def no_looser(line: Mapping[str, float], plain: Mapping[str, float], *, dropout: bool) -> bool:
    """With dropout both are far from a reference without it, by what the dropout does: then neither may be the farther one by much."""
    if dropout:
        return line["gradient"] <= 1.1 * plain["gradient"] and line["loss"] <= max(2 * plain["loss"], 1e-2)
    return line["gradient"] <= GRADIENT_SPREAD * plain["gradient"] and line["loss"] <= max(LOSS_SPREAD * plain["loss"], LOSS_NOISE)


def errors(reference: Path, side: Path, exact: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Relative error of the whole gradient and of its worst tensor (means over the steps), and the root mean square of the losses' errors."""
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    wholes, worsts = [], []
    for right, found in zip(torch.load(reference, mmap=True), torch.load(side, mmap=True), strict=True):
        pairs = {name: (tensor.to(place).double(), found[name].to(place).double()) for name, tensor in right.items()}
        squares = {name: float((a - b).square().sum()) for name, (a, b) in pairs.items()}
        sizes = {name: float(a.square().sum()) for name, (a, _) in pairs.items()}
        wholes.append(sqrt(sum(squares.values()) / sum(sizes.values())))
        worsts.append(max(sqrt(squares[name] / max(sizes[name], 1e-30)) for name in squares))
    differences = [(a - b) ** 2 for a, b in zip(exact[:STEPS], losses[:STEPS], strict=True)]
    return {"gradient": fmean(wholes), "worst": fmean(worsts), "loss": sqrt(fmean(differences)), "lossOfReference": exact[0]}
