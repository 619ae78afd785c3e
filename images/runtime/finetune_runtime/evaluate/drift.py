"""By how much answers change because a version is not served on the quantisation that it was trained on.

The training process answered a few prompts of its validation data when it had ended, on the very base that it trained on. The served version is asked
the same: greedily, what it answers, and how likely it finds the training's answers, token by token. No second engine with the other base is needed.
A statement, not a demand: whatever goes wrong here is told, and the gate decides without it.
"""

import logging
from collections.abc import Sequence
from statistics import fmean

from pydantic import ValidationError

from finetune_runtime import artefacts
from finetune_runtime.contract.artefact import ADAPTER_DIR, ANSWERS_FILE, REPORT_DIR, Manifest
from finetune_runtime.contract.config import DriftConfig, EvaluateConfig
from finetune_runtime.contract.evaluation import QuantizationDrift
from finetune_runtime.contract.result import StepError
from finetune_runtime.report.data import CUT, Answer, Answers
from finetune_runtime.report.evaluation_data import DriftedAnswer
from finetune_runtime.s3.store import ObjectNotFound, Store

from .client import Client, Limits, UnansweredError

log = logging.getLogger(__name__)

_LONGEST = 256  # characters of unmeasured


class _UnknownError(Exception):
    """There is nothing to compare with; the text says why."""


def measure(config: EvaluateConfig, store: Store, limits: Limits | None = None) -> tuple[QuantizationDrift | None, list[DriftedAnswer]]:
    """The figures and what they were made of; (None, []) where the version is served as it was trained."""
    wanted = config.drift
    if wanted is None:
        return None, []
    trained = ""
    try:
        manifest = artefacts.load(store, wanted.adapter.uri)
        trained = _held(manifest)
        if manifest and not trained:
            return None, []  # trained in 16 bits: nothing differs but rounding
        client = Client(config.candidate.url, config.candidate.model, limits=limits)
        compared = [found for answer in _recorded(wanted, manifest, store) if (found := _compare(client, wanted, answer))]
        return summary(trained, wanted.quantization, compared), compared
    except (StepError, UnansweredError, _UnknownError) as error:
        log.warning("how much answers change is not known: %s", error)
        return QuantizationDrift(trained=trained, served=wanted.quantization, unmeasured=str(error)[:_LONGEST]), []


def summary(trained: str, served: str, compared: Sequence[DriftedAnswer]) -> QuantizationDrift:
    """The figures of answers that were compared."""
    if not compared:
        raise _UnknownError("the engine takes none of the training's prompts")
    common = [_common(found.trained, found.served) for found in compared if not found.same]
    differences = [abs(before - now) for found in compared for before, now in zip(found.trained_logprobs, found.served_logprobs, strict=False)]
    return QuantizationDrift(
        trained=trained,
        served=served,
        prompts=len(compared),
        same_answers=f"{sum(found.same for found in compared) / len(compared):.2f}",
        first_difference=f"{fmean(common):.0f}" if common else None,
        logprob_difference=f"{fmean(differences):.4f}" if differences else None,
    )


def _held(manifest: Manifest | None) -> str:
    """How the base was held in training; empty: in 16 bits, or nobody knows."""
    found = (manifest and manifest.details.get("quantization")) or {}
    return "" if not found else f"{found.get('bits')} bits" if found.get("bits") != 4 else str(found.get("type"))


def _recorded(wanted: DriftConfig, manifest: Manifest | None, store: Store) -> list[Answer]:
    """Answers of the training, of the very checkpoint that became the adapter."""
    if manifest is None:
        raise _UnknownError("the adapter's manifest is gone")
    found = _answers(wanted.adapter.uri.rstrip("/"), store)
    if found is None:
        raise _UnknownError("the training left no answers beside the adapter, for example because it had no validation data")
    if found.step != manifest.step:
        raise _UnknownError(f"the training's answers are those of step {found.step}, and the adapter is that of step {manifest.step}")
    usable = [answer for answer in found.answers if answer.tokens and answer.prompt_tokens]
    if not usable:
        raise _UnknownError("the training's answers have no token ids, as those of older releases")
    return usable


def _answers(adapter: str, store: Store) -> Answers | None:
    job, _, directory = adapter.rpartition("/")
    if directory != ADAPTER_DIR:
        return None
    try:
        return Answers.model_validate_json(store.read(f"{job}/{REPORT_DIR}/{ANSWERS_FILE}"))
    except (ObjectNotFound, ValidationError):
        return None


def _compare(client: Client, wanted: DriftConfig, answer: Answer) -> DriftedAnswer | None:
    """What the served version makes of a prompt; None when it takes the prompt not at all, for example because it is too long."""
    seconds, length = 60.0 + len(answer.tokens), len(answer.tokens)
    logprobs: list[float] = []
    text = None
    if wanted.engine == "vLLM":  # takes token ids, so that neither a template nor a parser of reasoning comes between
        # The training answered without penalties, which vLLM else takes from the model's generation_config.json.
        said = client.complete(answer.prompt_tokens, seconds=seconds, max_tokens=length, temperature=0, extra_body={"repetition_penalty": 1.0})
        text = said.text if said else None
        told = client.complete([*answer.prompt_tokens, *answer.tokens], seconds=seconds, max_tokens=1, temperature=0, logprobs=1, echo=True)
        found = told.logprobs[len(answer.prompt_tokens) : len(answer.prompt_tokens) + length] if told else []
        logprobs = [value for value in found if value is not None]
        logprobs = logprobs if len(logprobs) == length else []
    else:
        said_in_chat = client.ask([turn.model_dump() for turn in answer.prompt], seconds=seconds, max_tokens=length, temperature=0)
        text = None if said_in_chat.refused else said_in_chat.text
    if text is None:
        return None
    trained = answer.tuned.removesuffix(CUT)
    return DriftedAnswer(
        prompt=answer.prompt,
        trained=trained,
        served=text,
        same=_plain(trained) == _plain(text),
        trained_logprobs=answer.logprobs if logprobs else [],
        served_logprobs=logprobs,
    )


def _plain(text: str) -> str:
    """A cut may go through a character."""
    return text.strip(" \n\r\t\ufffd")


def _common(left: str, right: str) -> int:
    """Characters that two texts have in common at their beginning."""
    left, right = _plain(left), _plain(right)
    return next((place for place, (one, other) in enumerate(zip(left, right, strict=False)) if one != other), min(len(left), len(right)))
