"""Layout and manifests of what a job leaves in S3.

A directory is complete only when its manifest.json exists. The manifest is written last, with If-None-Match: *, and
readers trust nothing without it.
"""

import hashlib
import re
from enum import StrEnum
from typing import Any

from pydantic import Field

from .base import Model

MANIFEST = "manifest.json"
DATASET_DIR = "dataset"
CHECKPOINTS_DIR = "checkpoints"
ADAPTER_DIR = "adapter"
MERGED_DIR = "merged"
REPORT_DIR = "report"
REPORT_PAGE = "report.html"
ANSWERS_FILE = "answers.json"  # beside the page: what the model answered at the end of its training
TRAIN_FILE = "train.jsonl"
VALIDATION_FILE = "val.jsonl"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
PARITY_FILE = "parity.json"  # beside the chat template: requests, and the token ids that training had for them

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class Kind(StrEnum):
    """What a manifest describes."""

    DATASET = "Dataset"
    CHECKPOINT = "Checkpoint"
    ADAPTER = "Adapter"
    MERGED = "Merged"


class FileEntry(Model):
    """One file, relative to its manifest."""

    path: str
    size: int = Field(ge=0)
    sha256: str


class Manifest(Model):
    """Everything needed to decide whether a directory may be used."""

    kind: Kind
    files: list[FileEntry]
    config_hash: str
    base_model: str
    base_revision: str = ""
    dataset_sha256: str = ""
    step: int = 0
    total_steps: int = 0
    eval_loss: float | None = None  # of a checkpoint: measured at this very step
    final: bool = False  # nothing is left to train: the last step, or stopped early
    created_at: str = ""
    details: dict[str, Any] = {}

    def encode(self) -> bytes:
        """Bytes as stored; their SHA-256 names the artefact."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()

    def digest(self) -> str:
        """SHA-256 of the stored bytes, hexadecimal."""
        return hashlib.sha256(self.encode()).hexdigest()


def checkpoint_step(name: str) -> int | None:
    """Step of a directory named checkpoint-N; None for anything else (checkpoint-N-merged and the like)."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None
