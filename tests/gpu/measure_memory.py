"""Compares contract/sizing.py with what the training command takes on a real GPU: models of real shapes with random weights, three steps, one evaluation.

    PYTHONPATH=images/runtime:. python3 tests/gpu/measure_memory.py --seconds 500

Prints a JSON line for each configuration, all sizes in GiB, and at the end "configs=N worst_percent=P mean_percent=M": how far the estimates are off.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_runtime import hardware
from finetune_runtime.contract.artefact import TRAIN_FILE, VALIDATION_FILE
from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.model_shape import ModelShape, from_tensors
from finetune_runtime.contract.sizing import GIB, estimate
from finetune_runtime.hardware import Hardware
from finetune_runtime.train.command import Inputs, arguments, environment
from tests.fixtures.make_tiny_model import save_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
PROBE = Path(__file__).with_name("memory_probe.py")
STEPS = 3  # the first one has no optimizer state yet
ACCUMULATION = 2  # with gradients of the micro-batch before
WORD = " you"  # one token each, so that rows are as long as they are meant to be


@dataclass(frozen=True)
class Architecture:
    """A published model's sizes: what from_config needs."""

    family: str  # transformers' model_type
    swift: str  # ms-swift's
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = True


MODELS = {
    "tiny": Architecture("qwen3", "qwen3", 128, 256, 2, 4, 2, 32, 1024),
    "tiny-llama": Architecture("llama", "llama", 128, 256, 2, 4, 2, 32, 1024),
    "tiny-qwen2": Architecture("qwen2", "qwen2", 128, 256, 2, 4, 2, 32, 1024),
    "SmolLM2-135M": Architecture("llama", "llama", 576, 1536, 30, 9, 3, 64, 49152),
    "Qwen3-0.6B": Architecture("qwen3", "qwen3", 1024, 3072, 28, 16, 8, 128, 151936),
    "Llama-3.2-1B": Architecture("llama", "llama", 2048, 8192, 16, 32, 8, 64, 128256),
    "Qwen2.5-1.5B": Architecture("qwen2", "qwen2", 1536, 8960, 28, 12, 2, 128, 151936),
    "Qwen3-1.7B": Architecture("qwen3", "qwen3", 2048, 6144, 28, 16, 8, 128, 151936),
    "Qwen3-4B": Architecture("qwen3", "qwen3", 2560, 9728, 36, 32, 8, 128, 151936),
    "Qwen3-8B": Architecture("qwen3", "qwen3", 4096, 12288, 36, 32, 8, 128, 151936, tied=False),
}


@dataclass(frozen=True)
class Case:
    """A configuration to measure. bits 16: LoRA."""

    model: str
    bits: int
    length: int
    rows: int
    rank: int
    checkpointing: bool = True
    dropout: str = "0.05"
    optim: str = "adamw_torch_fused"

    def config(self) -> JobConfig:
        """The job as its user would write it."""
        quantised = {"method": "LoRA"} if self.bits == 16 else {"method": "QLoRA", "quantization": {"bits": self.bits}}
        return JobConfig.model_validate(
            {
                "job": {"namespace": "measure", "name": "memory", "uid": "0"},
                "model": {"source": "pvc://models/unused"},
                "dataset": {"train": [{"source": "pvc://data/unused"}]},
                "tuning": {**quantised, "lora": {"rank": self.rank, "alpha": 2 * self.rank, "dropout": self.dropout}},
                "training": {
                    "maxLength": self.length,
                    "microBatchSize": self.rows,
                    "effectiveBatchSize": self.rows * ACCUMULATION,
                    "gradientCheckpointing": "On" if self.checkpointing else "Off",
                    "evalSteps": STEPS,
                    "extraArgs": {"optim": self.optim},
                },
                "checkpoints": {},
                "storage": {"uri": "s3://unused/unused"},
                "cpuThreads": 4,
            }
        )


# Smallest models first: what a short budget cuts off is what takes longest.
CASES = (
    Case("SmolLM2-135M", 4, 1024, 8, 16),
    Case("Qwen3-0.6B", 4, 512, 1, 8),
    Case("Qwen3-0.6B", 4, 2048, 4, 64, checkpointing=False),
    Case("Qwen3-0.6B", 8, 1024, 4, 32),
    Case("Llama-3.2-1B", 4, 1024, 4, 64),
    Case("Llama-3.2-1B", 16, 2048, 2, 16, checkpointing=False),
    Case("Qwen2.5-1.5B", 4, 2048, 2, 32, dropout="0"),
    Case("Qwen2.5-1.5B", 16, 1024, 8, 64),
    Case("Qwen3-1.7B", 8, 1024, 2, 64, checkpointing=False),
    Case("Qwen3-1.7B", 4, 512, 8, 128, optim="adamw_8bit"),
    Case("Qwen3-4B", 4, 1024, 1, 64),
    Case("Qwen3-4B", 4, 2048, 2, 16, checkpointing=False),
    Case("Qwen3-4B", 8, 1024, 4, 32),
    Case("Qwen3-8B", 4, 1024, 1, 64),
    Case("Qwen3-8B", 4, 1024, 8, 64, dropout="0"),
    Case("Qwen3-8B", 8, 512, 2, 16),
    Case("Qwen3-8B", 16, 1024, 1, 8),
)
DRY_CASES = (
    Case("tiny", 4, 128, 2, 8),
    Case("tiny", 16, 64, 1, 4, checkpointing=False),
    Case("tiny-llama", 8, 64, 2, 4, optim="adamw_torch"),
    Case("tiny-qwen2", 4, 64, 1, 4, dropout="0"),
)


def make_model(architecture: Architecture, directory: Path) -> ModelShape:
    """Writes a model directory with random weights in bfloat16 and gives its shape, as the prepare step reads it."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        architecture.family,
        hidden_size=architecture.hidden,
        intermediate_size=architecture.inner,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        vocab_size=architecture.vocabulary,
        tie_word_embeddings=architecture.tied,
        max_position_embeddings=4096,
        bos_token_id=None,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="4GB")
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    save_tokenizer(train_tokenizer(iter([(ROOT / "examples/clinic/support.jsonl").read_text() + WORD * 100]), 1024), directory)
    found: dict[str, tuple[int, ...]] = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  not a mapping
    shape = from_tensors([(name, size, 2) for name, size in found.items()], json.loads((directory / "config.json").read_text()))
    assert shape is not None
    return shape


def write_rows(case: Case, tokens_of_frame: int, directory: Path) -> None:
    """Rows of the full length and, so that batches are padded, shorter ones."""
    directory.mkdir(parents=True)

    def rows(count: int) -> str:
        words = [(case.length if number % 2 == 0 else case.length * 3 // 4) - tokens_of_frame for number in range(count)]
        return "".join(json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": WORD * n}]}) + "\n" for n in words)

    (directory / TRAIN_FILE).write_text(rows(case.rows * ACCUMULATION * STEPS))
    (directory / VALIDATION_FILE).write_text(rows(case.rows))


def measure(case: Case, shape: ModelShape, model: Path, found: Hardware, folder: Path, end: float) -> dict[str, Any]:
    """One configuration's line; {"error": ...} when its training fails, {} when there was no time left."""
    left = end - time.monotonic()
    if left < 20:
        return {}
    config, scratch = case.config(), Path(tempfile.mkdtemp(dir=folder))
    write_rows(case, 13, scratch / "data")
    inputs = Inputs(model, scratch / "data", MODELS[case.model].swift, "chatml", validation=True)
    words = arguments(config, inputs, found, micro_batch=case.rows, output=scratch / "output", resume_from=None)
    words[words.index("--external_plugins") + 1 : words.index("--callbacks")] = [words[words.index("--external_plugins") + 1], str(PROBE)]
    words += ["--callbacks", "finetune", "memory", "--max_steps", str(STEPS), "--save_strategy", "no"]
    with (scratch / "events").open("w") as events, (scratch / "log").open("wb") as log:
        variables = environment(config, os.environ, scratch, events_fd=events.fileno(), staging=scratch) | {"MEMORY_PROBE": str(scratch / "peaks.json")}
        try:
            command = [sys.executable, "-m", "swift.cli.sft", *words]
            done = subprocess.run(command, env=variables, stdout=log, stderr=log, pass_fds=[events.fileno()], cwd=scratch, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            return {}
    line: dict[str, Any] = {"case": vars(case)}
    if done.returncode:
        return line | {"error": (scratch / "log").read_text(errors="replace")[-1500:]}
    peaks = json.loads((scratch / "peaks.json").read_text())
    shutil.rmtree(scratch)
    size = estimate(shape, config.tuning, config.training, micro_batch=case.rows, liger=found.liger)
    measured = {phase: peaks[phase]["reserved"] for phase in ("training", "evaluation")}
    line["parts"] = {name: gib(part) for name, part in size.parts.items()}
    line["measured"] = {phase: {name: gib(peak) for name, peak in sizes.items()} for phase, sizes in peaks.items()}
    return line | compared(size.reserved, max(measured.values()))


def compared(estimated: int, measured: int) -> dict[str, float]:
    """Both sizes in GiB, and by how many percent of the measured one the estimate is too high."""
    return {"estimated": gib(estimated), "reserved": gib(measured), "percent": round(100 * (estimated / measured - 1), 1) if measured else 0.0}


def gib(size: int) -> float:
    return round(size / GIB, 3)


def roomy() -> Path:
    """Memory, from where models load fastest, if it has room for the largest one."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 40 * GIB else Path(tempfile.gettempdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=500, help="after which it stops and prints what it has")
    parser.add_argument("--jobs", type=int, default=3, help="trainings at the same time; with 1 the driver's own memory can be read as well")
    parser.add_argument("--folder", type=Path, default=roomy(), help="for one model at a time: 20 GB")
    parser.add_argument("--only", default="", help="models whose names hold this")
    parser.add_argument("--cpu-dry-run", action="store_true", help="a tiny model on the CPU: everything but the memory")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    found = hardware.find(allow_cpu=options.cpu_dry_run)
    cases = [case for case in (DRY_CASES if options.cpu_dry_run else CASES) if options.only in case.model]
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ThreadPoolExecutor(options.jobs) as pool:
        folder = Path(name)
        for model in dict.fromkeys(case.model for case in cases):
            if time.monotonic() > end - 20:
                break
            shape = make_model(MODELS[model], folder / model)
            waiting = [pool.submit(measure, case, shape, folder / model, found, folder, end) for case in cases if case.model == model]
            for future in waiting:
                if line := future.result():
                    print(json.dumps(line), flush=True)
                    lines.append(line)
            shutil.rmtree(folder / model)
    percents = [abs(line["percent"]) for line in lines if "percent" in line]
    print(f"configs={len(percents)} worst_percent={max(percents, default=0)} mean_percent={round(sum(percents) / max(1, len(percents)), 1)}")
    sys.exit(any("error" in line for line in lines))


if __name__ == "__main__":
    main()
