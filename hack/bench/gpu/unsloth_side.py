"""Unsloth on the same model and rows, in a process of its own, because it patches torch, transformers and PEFT when it is imported.

    python3 -m hack.bench.gpu.unsloth_side MODEL ROWS READINGS ROWSxACCUMULATION:CHECKPOINTING...

CHECKPOINTING is on, off or unsloth (its own, which keeps activations in the host's memory; it goes with no other). Of several configurations with one kind of
checkpointing the first one that fits is trained. Writes a JSON line for each.
"""

import json
import statistics
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from unsloth import FastLanguageModel  # isort: skip  # first: it patches what the others import
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from hack.bench.gpu.workload import LONG, conversation_text

STEPS = 6
PACKAGES = ("unsloth", "unsloth_zoo", "torch", "transformers", "peft", "trl", "bitsandbytes")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Times(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Seconds of each optimizer step, and the losses."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        torch.cuda.synchronize()
        self._begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        torch.cuda.synchronize()
        self.times.append(time.perf_counter() - self._begun)

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def dataset(tokenizer: Any, rows: Path) -> Dataset:
    """Token ids and labels as the template makes them: the answer and its end are trained."""
    encoded = []
    for line in rows.read_text().splitlines():
        question, answer = (message["content"] for message in json.loads(line)["messages"])
        ids = tokenizer(conversation_text(question, answer))["input_ids"][:LONG]
        asked = len(tokenizer(conversation_text(question, "").removesuffix("<|im_end|>\n"))["input_ids"])
        encoded.append({"input_ids": ids, "labels": [-100] * asked + ids[asked:], "attention_mask": [1] * len(ids)})
    return Dataset.from_list(encoded)


def train(model: Any, data: Dataset, spec: str) -> dict[str, Any]:
    """One configuration's line."""
    shape, _, checkpointing = spec.partition(":")
    rows, _, accumulation = shape.partition("x")
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = checkpointing != "off"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    times = Times()
    arguments = TrainingArguments(
        "unsloth-output",
        per_device_train_batch_size=int(rows),
        gradient_accumulation_steps=int(accumulation),
        max_steps=STEPS,
        learning_rate=3e-6,
        bf16=True,
        optim="adamw_8bit",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=checkpointing != "off",
    )
    Trainer(model=model, train_dataset=data, data_collator=default_data_collator, args=arguments, callbacks=[times]).train()
    free, total = torch.cuda.mem_get_info()
    return {
        "spec": spec,
        "seconds": statistics.median(times.times[1:]),
        "times": [round(seconds, 4) for seconds in times.times],
        "losses": times.losses,
        "reserved": torch.cuda.max_memory_reserved(),
        "allocated": torch.cuda.max_memory_allocated(),
        "driver": total - free,
    }


def main() -> None:
    directory, rows, readings, *specs = sys.argv[1:]
    model, tokenizer = FastLanguageModel.from_pretrained(directory, max_seq_length=LONG, load_in_4bit=True, dtype=torch.bfloat16, local_files_only=True)
    model = FastLanguageModel.get_peft_model(
        model, r=64, lora_alpha=128, lora_dropout=0.0, target_modules=TARGETS, use_gradient_checkpointing="unsloth", random_state=0
    )
    data = dataset(tokenizer, Path(rows))
    write(Path(readings), {"versions": {name: metadata.version(name) for name in PACKAGES}})
    if not any(spec.endswith(":unsloth") for spec in specs):
        from unsloth_zoo.gradient_checkpointing import unpatch_unsloth_smart_gradient_checkpointing

        with suppress(Exception):  # what it patched is not the same in all versions
            unpatch_unsloth_smart_gradient_checkpointing()
    done: set[str] = set()
    for spec in specs:
        if spec.partition(":")[2] in done:
            continue
        try:
            line = train(model, data, spec)
            done.add(spec.partition(":")[2])
        except torch.OutOfMemoryError as error:
            line = {"spec": spec, "error": f"out of memory: {error}"[:300]}
        write(Path(readings), line)


def write(readings: Path, line: dict[str, Any]) -> None:
    with readings.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
