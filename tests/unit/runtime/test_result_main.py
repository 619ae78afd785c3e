"""Every way a step can end is a termination message of at most 4 KiB and an exit code of the contract."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runtime.contract import config as contract
from finetune_runtime.contract.result import MAX_MESSAGE_BYTES, DataSummary, Exit, Reason, StepResult, TrainSummary
from finetune_runtime.serve import ready

PACKAGE = Path(__file__).parents[3] / "images/runtime"
VALID: dict[str, Any] = {
    "job": {"namespace": "n", "name": "j", "uid": "u"},
    "model": {"source": "hf://Qwen/Qwen3-8B"},
    "dataset": {"train": [{"source": "s3://datasets/train.json"}]},
    "tuning": {},
    "training": {},
    "checkpoints": {},
    "storage": {"uri": "s3://models/finetune", "secretRef": {"name": "s3-keys"}},
}


@given(message=st.text(max_size=9000), warnings=st.lists(st.text(max_size=2000), max_size=12))
def test_a_message_always_fits_and_is_json(message: str, warnings: list[str]) -> None:
    train = TrainSummary(step=1, total_steps=2, adapter=contract.AdapterRef(uri="s3://" + "x" * 900, manifest_sha256="0" * 64))
    result = StepResult(
        step="train", reason=Reason.TRAINING_CRASHED, message=message, train=train, data=DataSummary(train_rows=1, validation_rows=1, warnings=warnings)
    )
    text = result.encode()
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    decoded = StepResult.model_validate_json(text)
    assert (decoded.step, decoded.reason, decoded.train) == ("train", Reason.TRAINING_CRASHED, train)


def run(step: str, tmp_path: Path, document: str | None, **environment: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, termination message and log of a step with this configuration."""
    config, message = tmp_path / "config.json", tmp_path / "message"
    if document is not None:
        config.write_text(document)
    process = subprocess.run(
        [sys.executable, "-m", "finetune_runtime", step],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(PACKAGE),
            "FINETUNE_CONFIG": str(config),
            "FINETUNE_TERMINATION_LOG": str(message),
            "FINETUNE_SCRATCH": str(tmp_path / "scratch"),
        }
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return process.returncode, json.loads(message.read_text()) if message.exists() else {}, process.stderr


@pytest.mark.parametrize("step", ["prepare", "train", "fetch", "serve", "evaluate"])
@pytest.mark.parametrize(
    ("document", "cause"),
    [
        (None, "No such file"),
        ("", "EOF"),
        ("{broken", "JSON"),
        ("[]", "the document"),
        ("{}", "Field required"),
    ],
)
def test_a_configuration_that_does_not_parse_is_invalid_config(step: str, document: str | None, cause: str, tmp_path: Path) -> None:
    code, message, _ = run(step, tmp_path, document)
    assert code == Exit.INVALID_CONFIG
    assert message["step"] == step
    assert message["reason"] == "InvalidConfig"
    assert cause in message["message"]


def test_the_faulty_field_is_named_but_not_its_value(tmp_path: Path) -> None:
    document = json.dumps(VALID | {"storage": {"uri": "s3://models/finetune", "endpoint": "user:hunter2@server"}})
    code, message, log = run("train", tmp_path, document)
    assert code == Exit.INVALID_CONFIG
    assert "storage.endpoint" in message["message"]
    assert "hunter2" not in json.dumps(message) + log


def test_a_step_error_is_its_reason_and_code(tmp_path: Path) -> None:
    code, message, log = run("train", tmp_path, json.dumps(VALID))
    assert code == Exit.STORAGE_UNAVAILABLE
    assert message["reason"] == "AccessDenied"
    assert "s3-keys" in message["message"]
    assert "Traceback" not in log
    assert message["train"]["step"] == 0


def test_anything_else_is_an_internal_error_with_the_traceback_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/adapter-manifest.json").write_text("{}")  # not what fetch writes
    document = {
        "model": {"source": "hf://Qwen/Qwen3-8B"},
        "storage": {"uri": "s3://models"},
        "adapter": {"uri": "s3://models/a", "manifestSha256": "0" * 64},
        "engine": "vLLM",
        "quantization": "AsTrained",
        "servedName": "support",
        "maxLength": 1024,
    }
    code, message, log = run("serve", tmp_path, json.dumps(document))
    assert code == Exit.CRASH
    assert message["reason"] == "InternalError"
    assert message["message"].startswith("ValidationError: ")
    assert "\n" not in message["message"]
    assert "Traceback" in log


def test_an_unwritable_message_file_changes_nothing(tmp_path: Path) -> None:
    code, message, log = run("train", tmp_path, "{}", FINETUNE_TERMINATION_LOG="/nonexistent/termination-log")
    assert (code, message) == (Exit.INVALID_CONFIG, {})
    assert '"reason":"InvalidConfig"' in log


def test_ready_agrees_with_the_contract_that_it_cannot_afford_to_import() -> None:
    assert (ready.CONFIG_PATH, ready.SCRATCH_DIR, ready.SERVING_PORT) == (contract.CONFIG_PATH, contract.SCRATCH_DIR, contract.SERVING_PORT)


def test_ready_is_quick_light_and_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"servedName": "support"}')
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "finetune_runtime", "ready"],
        env={"PYTHONPATH": str(PACKAGE), "FINETUNE_CONFIG": str(tmp_path / "config.json"), "FINETUNE_SERVING_PORT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - started < 20
    assert process.returncode == 1
    assert process.stdout.startswith("not ready: ")
    assert process.stdout.count("\n") == 1
    assert not [name for name in ("pydantic", "boto3", "finetune_runtime.contract") if f" {name}" in process.stderr]
