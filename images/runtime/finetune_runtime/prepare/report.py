"""What prepare tells: report.json for the record, warnings for the user's eyes."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune_runtime.contract.config import JobConfig
from finetune_runtime.contract.result import DataSummary

from .collect import Collected
from .ending import Ending
from .identify import Identity
from .split import duplicates, leaks
from .template import ChatTemplate

FEW_ROWS = 100


@dataclass(frozen=True)
class Prepared:
    """Everything that the report is made of. `held_out`: rows of `train` that became validation rows."""

    identity: Identity
    revision: str
    template: ChatTemplate
    ending: Ending
    train: Collected
    validation: Collected | None
    held_out: Collection[int]

    def pick(self, values: Sequence[int], *, held_out: bool) -> list[int]:
        """Values of the training rows on one side of the split."""
        return [value for number, value in enumerate(values) if (number in self.held_out) is held_out]


def percentile(ordered: Sequence[int], share: float) -> int:
    """Nearest-rank percentile of ascending values; 0 without values."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)] if ordered else 0


def summarise(prepared: Prepared, sha256: str, warnings: list[str]) -> DataSummary:
    """The part that travels in the pod's result."""
    tokens = prepared.pick(prepared.train.tokens, held_out=False)
    return DataSummary(
        train_rows=len(tokens),
        validation_rows=prepared.validation.valid if prepared.validation else len(prepared.held_out),
        invalid_rows=prepared.train.invalid + (prepared.validation.invalid if prepared.validation else 0),
        tokens=sum(tokens),
        longest=max(tokens, default=0),
        sha256=sha256,
        warnings=warnings,
    )


def warn(prepared: Prepared) -> list[str]:
    """What does not stop the job and should be known before GPU hours are spent, most important first."""
    train, validation = prepared.train, prepared.validation
    rows = train.valid - len(prepared.held_out)
    found = []
    if invalid := train.invalid + (validation.invalid if validation else 0):
        found.append(f"{invalid} invalid rows were left out; report.json lists the first {min(invalid, len(_examples(prepared)))}")
    if rows < FEW_ROWS:
        found.append(f"only {rows} training rows: fewer than {FEW_ROWS} rarely teach more than their wording")
    learned = prepared.pick(train.digests, held_out=False)
    held_out = list(validation.digests) if validation else prepared.pick(train.digests, held_out=True)
    if not held_out:
        found.append("no validation rows: there will be no evaluation loss (validation.splitRatio is 0)")
    if leaked := leaks(learned, held_out):
        found.append(f"{leaked} training rows are also validation rows: the evaluation loss will look better than it is")
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


def report(prepared: Prepared, config: JobConfig, summary: DataSummary) -> dict[str, Any]:
    """Content of report.json."""
    tokens, trainable = (prepared.pick(values, held_out=False) for values in (prepared.train.tokens, prepared.train.trainable))
    ordered = sorted(tokens)
    return {
        "model": {"source": config.model.source, "revision": prepared.revision, **asdict(prepared.identity)},
        "chatTemplate": {"origin": prepared.template.origin, "checked": prepared.template.examples, "inexact": prepared.template.inexact},
        "ending": asdict(prepared.ending),
        "rows": {"train": _counts(prepared.train), "validation": _counts(prepared.validation) if prepared.validation else None},
        "split": {"train": summary.train_rows, "validation": summary.validation_rows},
        "tokens": {
            "total": summary.tokens,
            "trainable": sum(trainable),
            "trainableShare": round(sum(trainable) / max(1, summary.tokens), 4),
            "percentiles": {str(share): percentile(ordered, share / 100) for share in (50, 90, 95, 99, 100)},
        },
        "duplicates": duplicates(prepared.train.digests),
        "invalid": [asdict(row) for row in _examples(prepared)],
        "sha256": summary.sha256,
        "warnings": summary.warnings,
    }


def _examples(prepared: Prepared) -> list[Any]:
    return prepared.train.first_invalid + (prepared.validation.first_invalid if prepared.validation else [])


def _counts(rows: Collected) -> dict[str, Any]:
    return {"files": rows.files, "read": rows.read, "valid": rows.valid, "invalid": rows.invalid, "causes": {str(key): rows.faults[key] for key in rows.faults}}
