"""What prepare tells: report.json for the record, warnings for the user's eyes."""

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.model_shape import ModelShape
from finetune_runtime.contract.result import DataSummary

from .collect import Collected, Counts
from .ending import Ending
from .faults import Fault, InvalidRow
from .identify import Identity
from .readers.text import Encoding
from .report_shape import Bucket, Report, RowsReport, SourceReport
from .split import Mask, duplicates
from .template import ChatTemplate

FEW_ROWS = 100
_PERCENTILES = (50, 90, 95, 99, 100)


@dataclass(frozen=True)
class Prepared:
    """Everything that the report is made of. `held_out`: rows of `train` that became validation rows."""

    identity: Identity
    revision: str
    template: ChatTemplate
    ending: Ending
    train: Collected
    validation: Collected | None
    held_out: Mask
    shape: ModelShape | None
    fast_path: str | None  # why there is none; empty: there is; None: it is off

    @property
    def train_rows(self) -> int:
        """Rows to train on."""
        return len(self.held_out) - self.split_off

    @property
    def validation_rows(self) -> int:
        """Rows to evaluate on."""
        return self.validation.valid if self.validation else self.split_off

    @property
    def split_off(self) -> int:
        """Rows that were taken from the training rows."""
        return int(np.count_nonzero(self.held_out))

    @property
    def tokens(self) -> NDArray[np.uint32]:
        """Tokens of each row to train on."""
        return self.train.tokens[~self.held_out]

    @property
    def trainable(self) -> NDArray[np.uint32]:
        """Tokens of each row to train on that the loss counts."""
        return self.train.trainable[~self.held_out]


def percentile(ordered: NDArray[np.uint32], share: int) -> int:
    """Nearest-rank percentile of ascending values, `share` in percent; 0 without values."""
    return int(ordered[max(0, -(-share * len(ordered) // 100) - 1)]) if len(ordered) else 0


def histogram(tokens: NDArray[np.uint32]) -> list[Bucket]:
    """Rows in buckets that end at 16, 24, 32, 48, 64 and so on, up to that of the longest row."""
    bounds = [16]
    while bounds[-1] < int(tokens.max(initial=0)):
        bounds.append(bounds[-1] * 3 // 2 if len(bounds) % 2 else bounds[-2] * 2)
    rows = np.bincount(np.searchsorted(bounds, tokens), minlength=len(bounds))
    return [{"upTo": bound, "rows": int(count)} for bound, count in zip(bounds, rows, strict=True)]


def summarise(prepared: Prepared, sha256: str, warnings: list[str]) -> DataSummary:
    """The part that travels in the pod's result."""
    tokens = prepared.tokens
    return DataSummary(
        train_rows=prepared.train_rows,
        validation_rows=prepared.validation_rows,
        invalid_rows=prepared.train.invalid + (prepared.validation.invalid if prepared.validation else 0),
        tokens=int(tokens.sum(dtype=np.uint64)),
        longest=int(tokens.max(initial=0)),
        sha256=sha256,
        model_revision=prepared.revision,
        model_type=prepared.identity.type,
        template=prepared.identity.template,
        shape=prepared.shape,
        warnings=warnings,
        fast_path=prepared.fast_path,
    )


def warn(prepared: Prepared, gpus: int = 1) -> list[str]:
    """What does not stop the job and should be known before GPU hours are spent, most important first."""
    train, validation = prepared.train, prepared.validation
    rows = prepared.train_rows
    found = []
    if invalid := train.invalid + (validation.invalid if validation else 0):
        found.append(f"{invalid} invalid rows were left out; report.json lists the first {min(invalid, len(_examples(prepared)))}")
    if rows < FEW_ROWS:
        found.append(f"only {rows} training rows: fewer than {FEW_ROWS} rarely teach more than their wording")
    if rest := rows % gpus:
        found.append(f"{rest} of {rows} training rows are left out: each of {gpus} GPUs gets as many rows as the others")
    if not prepared.validation_rows:
        found.append("no validation rows: there will be no evaluation loss (validation.splitRatio is 0)")
    found += [warning for side in _sides(prepared) for counts in side.sources for warning in _source_warnings(counts)]
    if copies := duplicates(train.digests):
        found.append(f"{copies} rows are exact copies of others: they weigh more in training")
    if 0 < train.reasoning < train.valid:
        found.append(f"{train.reasoning} of {train.valid} rows open with <think>, the others do not; requests choose with the template option enable_thinking")
    if unused := train.unused_columns + (validation.unused_columns if validation else Counter()):
        found.append(f"columns that nothing was taken from: {', '.join(sorted(unused)[:10])}")
    if ending := prepared.ending.warning():
        found.append(ending)
    if prepared.template.inexact:
        found.append(
            f"{prepared.template.inexact} of {prepared.template.examples} checked conversations are served as the same text in slightly other tokens than they "
            "were trained on; white space around answers is the usual cause"
        )
    return found


def _source_warnings(counts: Counts) -> list[str]:
    found = []
    if counts.samples is not None and counts.valid < counts.samples:
        found.append(
            f"{counts.source} has {counts.valid} rows that can be trained on, fewer than the {counts.samples} samples that were asked for: all are taken"
        )
    if files := counts.encodings[Encoding.GB18030]:
        found.append(f"{counts.source}: {files} files are read as Chinese text in GB18030; if they are in another encoding, save them as UTF-8")
    return found


def report(prepared: Prepared, config: JobConfig, summary: DataSummary) -> Report:
    """Content of report.json."""
    sides = _sides(prepared)
    trainable = int(prepared.trainable.sum(dtype=np.uint64))
    ordered = np.sort(prepared.tokens)
    too_long = sum(side.faults[Fault.LENGTH] for side in sides)
    return {
        "model": {"source": config.model.source, "revision": prepared.revision, **asdict(prepared.identity)},
        "chatTemplate": {"origin": prepared.template.origin, "checked": prepared.template.examples, "inexact": prepared.template.inexact},
        "ending": asdict(prepared.ending),
        "rows": {"train": _rows(prepared.train), "validation": _rows(prepared.validation) if prepared.validation else None},
        "split": {"train": summary.train_rows, "validation": summary.validation_rows},
        "tokens": {
            "total": summary.tokens,
            "trainable": trainable,
            "trainableShare": round(trainable / max(1, summary.tokens), 4),
            "tooLongShare": round(too_long / max(1, sum(side.read for side in sides)), 4),
            "percentiles": {str(share): percentile(ordered, share) for share in _PERCENTILES},
            "histogram": histogram(ordered),
        },
        "duplicates": duplicates(prepared.train.digests),
        "leaks": prepared.train.faults[Fault.LEAK],
        "invalid": [asdict(row) for row in _examples(prepared)],
        "sha256": summary.sha256,
        "warnings": summary.warnings,
    }


def _sides(prepared: Prepared) -> list[Collected]:
    return [side for side in (prepared.train, prepared.validation) if side]


def _examples(prepared: Prepared) -> list[InvalidRow]:
    return [row for side in _sides(prepared) for row in side.first_invalid]


def _rows(rows: Collected) -> RowsReport:
    return {
        "files": rows.files,
        "read": rows.read,
        "valid": rows.valid,
        "invalid": rows.invalid,
        "sampledOut": sum(counts.sampled_out for counts in rows.sources),
        "causes": _causes(rows.faults),
        "sources": [_source(counts) for counts in rows.sources],
    }


def _source(counts: Counts) -> SourceReport:
    return {
        "source": counts.source,
        "samples": counts.samples,
        "files": counts.files,
        "format": ", ".join(sorted(counts.formats)),
        "encoding": ", ".join(sorted(counts.encodings)),
        "read": counts.read,
        "valid": counts.valid,
        "invalid": counts.invalid,
        "sampledOut": counts.sampled_out,
        "causes": _causes(counts.faults),
    }


def _causes(faults: Counter[Fault]) -> dict[str, int]:
    return {str(fault): rows for fault, rows in faults.items()}
