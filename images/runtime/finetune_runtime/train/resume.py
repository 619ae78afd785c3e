"""Which checkpoints a run may go on from: a pure choice, so that it can be shown to be right."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_runtime.contract.artefact import Manifest
from finetune_runtime.contract.result import Exit, Reason, StepError


@dataclass(frozen=True)
class Candidate:
    """A complete checkpoint of this very run."""

    step: int
    uri: str
    manifest: Manifest

    @property
    def finished(self) -> bool:
        """Nothing is left to do. ms-swift would train one step too many if it were resumed."""
        return self.manifest.final

    @property
    def only_evaluated(self) -> bool:
        """The last step is made, and SIGTERM cut its evaluation."""
        return not self.finished and self.step >= self.manifest.total_steps > 0

    @property
    def micro_batch(self) -> int:
        """The micro-batch that the run had come down to, 0 when unknown."""
        return int(self.manifest.details.get("microBatch", 0))


def candidates(found: Sequence[tuple[int, str, Manifest]], config_hash: str, dataset_sha256: str) -> list[Candidate]:
    """Complete checkpoints in the order in which to try them. Raises StepError CheckpointMismatch.

    Checkpoints are never skipped over for belonging to another configuration: resumed silently they would give an adapter that
    nobody asked for, and started over silently the work in them would be lost.
    """
    for step, uri, manifest in found:
        if (manifest.config_hash, manifest.dataset_sha256) != (config_hash, dataset_sha256):
            what = "configuration" if manifest.config_hash != config_hash else "dataset"
            raise StepError(
                Exit.INVALID_CONFIG,
                Reason.CHECKPOINT_MISMATCH,
                f"{uri} was written by a run with another {what}, so step {step} cannot be resumed. Create a new FineTuneJob, or delete "
                f"{uri.rpartition('/')[0]}/ to start this one over.",
            )
    return [Candidate(*entry) for entry in sorted(found, key=lambda entry: entry[0], reverse=True)]
