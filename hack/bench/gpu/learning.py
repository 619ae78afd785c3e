"""Whether bfloat16 adapters learn at a learning rate whose updates are smaller than bfloat16's spacing: 200 steps at 3e-6 beside float32 adapters.

All begin with the same adapters and see the same rows. What is lost shows in the distance that the adapters have gone, and in the loss at the end.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from .plans import plan_for
from .trainings import Result, Run, job
from .workload import Trained, write_rows

STEPS = 200
BATCH = 1
LAST = 20  # steps whose losses are averaged
NEARLY = 0.95  # of float32's way, and of the loss that it lost, is as good as all
STOCHASTIC = "bfloat16, stochastic"
RATE = ("--learning_rate", "3e-6")


def runs(model: Trained, folder: Path, length: int, budget: int, steps: int = STEPS) -> list[Run]:
    """Float32 with the optimizer of the plan for a small card, and with torch's; bfloat16 as that plan has it, and as torch's optimizer rounds it."""
    rows = write_rows(model.directory, [length] * BATCH * 100, folder / "learning")
    config = job(effectiveBatchSize=BATCH, fastPath="Required")
    small = plan_for(model, config, [length], budget)
    sides = {
        "float32": {"lora_dtype": "float32", "masters": "none"},
        "float32, AdamW of 32 bits": {"lora_dtype": "float32", "masters": "none", "optimizer": "adamw_torch_fused"},
        f"bfloat16, {small.masters}": {},
        "bfloat16, to nearest": {"masters": "none", "optimizer": "adamw_torch_fused"},
    }
    found = []
    for name, change in sides.items():
        probe = {"seed": 7, "adapters": str(rows / f"{name.replace(' ', '-').replace(',', '')}.pt")}
        plan = small.model_copy(update=change)
        found.append(Run(f"learning: {name}", model, rows, config, plan.micro_batch, steps, plan, extra=RATE, probe=probe))
    begin = {"seed": 7, "adapters": str(rows / "begin.pt")}
    found.append(
        Run(
            "learning: begin",
            model,
            rows,
            config,
            small.micro_batch,
            1,
            small.model_copy(update={"lora_dtype": "float32"}),
            extra=("--learning_rate", "0"),
            probe=begin,
        )
    )
    return found


def compare(made: Sequence[Run], results: Mapping[str, Result], *, judged: bool = True) -> list[dict[str, Any]]:
    """For each side: mean loss of the last steps, and for A and B the part of float32's way that it went and how far from its end it came out.

    `judged`: says whether stochastic rounding passes.
    """
    import torch

    done = {run.name.removeprefix("learning: "): run for run in made if run.name in results and not results[run.name].return_code}
    if not {"begin", "float32"} <= set(done):
        return [{"side": name, "error": results[name].error[-600:]} for name in results if results[name].return_code]
    begin, exact = (torch.load(done[name].probe["adapters"]) for name in ("begin", "float32"))
    lines = []
    for name, run in done.items():
        if name == "begin":
            continue
        line: dict[str, Any] = {"side": name, "loss": fmean(results[run.name].losses[-LAST:]), "first": results[run.name].losses[0]}
        end = torch.load(run.probe["adapters"])
        for part in ("lora_A", "lora_B"):
            names = [tensor for tensor in begin if part in tensor]
            way = {tensor: exact[tensor] - begin[tensor] for tensor in names}
            gone = {tensor: end[tensor] - begin[tensor] for tensor in names}
            norm = sum(float(way[tensor].double().square().sum()) for tensor in names) ** 0.5
            along = sum(float((way[tensor].double() * gone[tensor].double()).sum()) for tensor in names) / norm**2
            off = sum(float((way[tensor] - gone[tensor]).double().square().sum()) for tensor in names) ** 0.5 / norm
            line |= {f"{part} along": round(along, 4), f"{part} off": round(off, 4)}
        lines.append(line)
    fallen = {line["side"]: line["first"] - line["loss"] for line in lines}
    for line in lines:
        if line["side"] == STOCHASTIC and judged:
            # By chance it also goes off to the sides, which costs no loss; "to nearest" only shows what is lost without.
            line["passes"] = min(line["lora_A along"], line["lora_B along"], fallen[STOCHASTIC] / fallen["float32"]) >= NEARLY
    return lines
