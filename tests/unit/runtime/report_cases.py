"""Jobs to make report pages of."""

import math
from datetime import UTC, datetime
from typing import Any

from finetune_runtime.contract.config import AdapterRef, JobConfig
from finetune_runtime.contract.result import TrainSummary
from finetune_runtime.report.data import Answer, Answers, ReportData, State, Turn

WRITTEN = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)

CONFIG = JobConfig.model_validate(
    {
        "job": {"namespace": "team-a", "name": "support-qwen3", "uid": "0b7c6c1e-0000-4000-8000-000000000001"},
        "model": {"source": "hf://Qwen/Qwen3-8B"},
        "dataset": {"train": [{"source": "s3://datasets/support/clean_train.json"}]},
        "tuning": {"lora": {"rank": 64, "alpha": 128}},
        "training": {"epochs": 3, "effectiveBatchSize": 16},
        "checkpoints": {},
        "storage": {"uri": "s3://models/finetune"},
    }
)

DATASET: dict[str, Any] = {
    "model": {"source": "hf://Qwen/Qwen3-8B", "revision": "9c925d64d72725edaf899c6cb9c377fd0709d9c5", "type": "qwen3", "template": "qwen3"},
    "chatTemplate": {"origin": "ms-swift", "checked": 24, "inexact": 0},
    "rows": {
        "train": {
            "files": 3,
            "read": 2900,
            "valid": 2573,
            "invalid": 27,
            "sampledOut": 300,
            "causes": {"TooLong": 20, "RoleOrder": 7},
            "sources": [
                {"source": "s3://datasets/support/clean_train.json", "format": "JSON list", "encoding": "UTF-8", "read": 2400, "valid": 2373, "invalid": 27},
                {"source": "s3://datasets/archive/", "format": "CSV", "encoding": "GB18030", "read": 500, "valid": 200, "invalid": 0, "sampledOut": 300},
            ],
        },
        "validation": None,
    },
    "split": {"train": 2445, "validation": 128},
    "tokens": {
        "total": 512_340,
        "trainable": 201_100,
        "trainableShare": 0.3925,
        "percentiles": {"50": 188, "90": 402, "95": 517, "99": 803, "100": 1019},
        "histogram": [
            {"upTo": limit, "rows": rows}
            for limit, rows in ((16, 0), (32, 12), (64, 211), (128, 604), (256, 902), (384, 410), (512, 190), (768, 84), (1024, 32), (2048, 0))
        ],
    },
    "duplicates": 14,
    "leaks": 0,
    "invalid": [
        {"source": "s3://datasets/support/clean_train.json", "row": 17, "fault": "RoleOrder", "cause": "message 3: two turns of user in a row"},
        {"source": "s3://datasets/support/clean_train.json", "row": 88, "fault": "TooLong", "cause": "1388 tokens, training.maxLength allows 1024"},
    ],
    "sha256": "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
    "warnings": ["27 invalid rows were left out; report.json lists the first 27", "14 rows are exact copies of others: they weigh more in training"],
}

RESUMES = [
    {"from": 200, "because": "NewPod", "lostSteps": 31, "microBatch": 4, "time": "2026-11-25T09:14:07+00:00"},
    {"from": 200, "because": "OutOfMemory", "microBatch": 2, "time": "2026-11-25T09:20:41+00:00"},
]


def records(steps: int, evaluated_every: int = 50) -> list[dict[str, Any]]:
    """A training that learns, with the noise of a real one, evaluations, and a resume behind step 200."""
    made = []
    for step in range(1, steps + 1):
        noise = math.sin(step * 12.9898) * 0.12 + math.sin(step * 3.7) * 0.06
        record: dict[str, Any] = {
            "step": step,
            "epoch": round(3 * step / steps, 4),
            "loss": round(0.9 + 1.6 * math.exp(-4 * step / steps) + noise, 6),
            "learningRate": 3e-6 * 0.5 * (1 + math.cos(math.pi * step / steps)),
            "gradNorm": round(0.4 + 0.9 * math.exp(-5 * step / steps) + abs(noise), 4),
            "tokensPerSecond": round(1480 + 160 * noise, 1),
            "gpuMemoryGiB": 21.437 if step <= 200 else 16.8,
            "seconds": round(step * 2.31, 3),
        }
        if step % evaluated_every == 0:
            record["evalLoss"] = round(1.02 + 1.4 * math.exp(-4.4 * step / steps), 6)
        if step == 201:
            record |= {"resumedFrom": 200, "resumes": RESUMES}
        made.append(record)
    return made


ANSWERS = Answers(
    step=459,
    max_tokens=96,
    answers=[
        Answer(
            prompt=[Turn(role="system", content="You are the clinic's support assistant."), Turn(role="user", content="Can I move my appointment to Friday?")],
            expected="Yes. Tell me the booking number and I will look for a free time on Friday.",
            base="As an AI language model, I don't have access to your appointments. You may want to contact your clinic directly. They can tell you [...]",
            tuned="Yes, of course. Please give me your booking number, and I will look for a free time on Friday.",
        ),
        Answer(
            prompt=[Turn(role="user", content="Do you take my insurance?\nIt is the public one.")],
            expected="We take all public insurances.\n\nPlease bring your card.",
            base="",
            tuned="We take all public insurances. Please bring your card.",
        ),
    ],
)

TRAINED = TrainSummary(
    step=459,
    total_steps=459,
    resumed_from=200,
    committed_step=459,
    loss=0.9134,
    eval_loss=1.0402,
    micro_batch=2,
    adapter=AdapterRef(uri="s3://models/finetune/team-a/support-qwen3/0b7c6c1e-0000-4000-8000-000000000001/adapter", manifest_sha256="ab" * 32),
    adapter_step=450,
    command="python3 -m swift.cli.sft --model /scratch/model --model_type qwen3 --template qwen3 --dataset /scratch/dataset/train.jsonl --tuner_type lora "
    "--lora_rank 64 --lora_alpha 128 --quant_method bnb --quant_bits 4 --learning_rate 3e-6 --num_train_epochs 3",
    versions={"ms-swift": "4.6.0", "torch": "2.11.0", "transformers": "5.19.0", "peft": "0.20.0", "bitsandbytes": "0.50.2"},
)


def finished(**changes: Any) -> ReportData:
    """A job that was interrupted, ran out of memory, and came to its end."""
    fields: dict[str, Any] = {
        "config": CONFIG,
        "state": State.COMPLETED,
        "written": WRITTEN,
        "dataset": DATASET,
        "records": records(459),
        "train": TRAINED,
        "hardware": "NVIDIA L4 (22.5 GiB)",
        "answers": ANSWERS,
    }
    return ReportData(**fields | changes)
