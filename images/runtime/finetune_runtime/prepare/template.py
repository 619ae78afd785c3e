"""The chat template that serving must use.

Prompt parity: for a row, the token ids that training has before the first trainable token of the last answer are the ids of the
rendered request (the messages without that answer, add_generation_prompt=True). What is served with another prompt than it was
trained with answers worse, up to nonsense, without any error; so the job does not start unless parity is shown.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune_runtime.contract.result import Exit, Reason, StepError

from .chat_jinja import Pieces, generate, with_default_system
from .encode import Encoder
from .faults import RowError
from .parity import Proven, choose
from .rows import Message
from .sample import Example, as_request

log = logging.getLogger(__name__)

_TURNS = ("How are you?", "Fine, thanks.", "Where is the station?", "Over the bridge.", "Is it far?", "Five minutes.")


@dataclass(frozen=True)
class ChatTemplate:
    """A template that has shown parity. `reasons`: requests that say nothing get answers with reasoning. `samples`: for parity.json.

    `inexact`: examples that differ in white space only.
    """

    text: str
    origin: str
    reasons: bool
    inexact: int
    examples: int
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class _Mismatch:
    trained: str
    served: str
    where: str

    def __str__(self) -> str:
        return f"training has {self.trained!r}, the served prompt has {self.served!r}{f' ({self.where})' if self.where else ''}"


def derive(encoder: Encoder, examples: list[Example], system: str, *, reasons: bool) -> ChatTemplate:
    """The tokenizer's own template if it shows parity, else one made from ms-swift's. Raises StepError ModelInvalid with the difference.

    `examples`: rows of the data; the kinds of conversation that they lack are added. `system`: the job's system prompt.
    `reasons`: most answers open with their reasoning.
    """
    examples = [*examples, *_probes(encoder, system)]
    name = encoder.template.template_meta.template_type
    refusals = []
    try:
        for origin, text in _candidates(encoder, system, reasons=reasons):
            mismatch, proven = _show(encoder, text, examples, reasons=reasons)
            if mismatch is None:
                return ChatTemplate(text, origin, reasons, len(examples) - len(proven), len(examples), choose(proven))
            log.info("the chat template of %s does not show parity: %s", origin, mismatch)
            refusals.append(f"with the template of {origin}, {mismatch}")
    except RowError as error:
        raise _invalid(f"The template {name} does not take a plain conversation ({error.cause})") from error
    raise _invalid(f"No chat template gives a served request the prompt that the template {name} trains on: {'; '.join(refusals)}")


def _invalid(cause: str) -> StepError:
    return StepError(Exit.MODEL_INVALID, Reason.MODEL_INVALID, f"{cause}. Set spec.model.template to the one that belongs to this model.")


def _candidates(encoder: Encoder, system: str, *, reasons: bool) -> Iterator[tuple[str, str]]:
    own = _own_template(encoder.tokenizer)
    # A template with today's date shows parity today only.
    if own and "strftime_now" not in own:
        yield "the tokenizer", with_default_system(own, system) if system else own
    yield "ms-swift", _generated(encoder, system, reasons=reasons)


def _own_template(tokenizer: Any) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:  # none, or several of which none is the default
        return ""


def _generated(encoder: Encoder, system: str, *, reasons: bool) -> str:
    meta, tokenizer = encoder.template.template_meta, encoder.tokenizer
    begin, end = _automatic_tokens(encoder) if meta.auto_add_bos else ("", "")

    def text(prompt: Iterable[str | list[int]] | None) -> str:
        return "".join(part if isinstance(part, str) else encoder.decode(part) for part in prompt or [])

    pieces = Pieces(
        prefix=begin + text(meta.prefix),
        system_prefix=None if meta.system_prefix is None else begin + text(meta.system_prefix),
        prompt=text(meta.prompt),
        last_prompt=text(meta.system_prompt) if meta.is_post_system else None,
        chat_sep=None if meta.chat_sep is None else text(meta.chat_sep),
        suffix=text(meta.suffix) + end,
    )
    default = system or meta.default_system or ""
    # What training puts before an answer without learning it is measured, because templates compute it in code.
    probe = _example(["How are you?", "Fine, thanks."], "")
    trained = encoder.decode(encoder.tokens(probe.messages).prompt_ids())
    bare = _render(tokenizer, generate(pieces, meta.default_system or ""), probe, {})
    if trained.startswith(bare):
        pieces = replace(pieces, answer_prefix=trained.removeprefix(bare))
    return generate(pieces, default, reasons=reasons)


def _automatic_tokens(encoder: Encoder) -> tuple[str, str]:
    """What the tokenizer itself adds before and behind a text; ms-swift takes it over for templates with auto_add_bos."""
    bare = encoder.tokenizer.encode("a", add_special_tokens=False)
    full = encoder.tokenizer.encode("a")
    start = full.index(bare[0])
    return encoder.decode(full[:start]), encoder.decode(full[start + len(bare) :])


def _probes(encoder: Encoder, system: str) -> list[Example]:
    """Conversations of one to three rounds, without, with the job's and with another system prompt, as far as the template takes them."""
    meta = encoder.template.template_meta
    rounds = range(1, 4) if meta.support_multi_round else range(1, 2)
    systems = ["", "You speak briefly."] if meta.support_system else [""]
    probes = [_example(list(_TURNS[: 2 * count]), prompt) for count in rounds for prompt in systems]
    if not system:
        return probes
    head: Message = {"role": "system", "content": system}
    filled = [[head, *probe.messages] for probe in probes if probe.messages[0]["role"] != "system"]
    asked = [probe for probe in probes if probe.messages[0]["role"] == "system"]
    return [*asked, *(Example(messages, as_request(messages, system_filled_in=True)) for messages in filled)]


def _example(turns: list[str], system: str) -> Example:
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]
    return Example(messages, as_request(messages, system_filled_in=False))


def _show(encoder: Encoder, template: str, examples: list[Example], *, reasons: bool) -> tuple[_Mismatch | None, list[Proven]]:
    """The first mismatch, and the examples before it that are exactly the same. Others may differ in white space."""
    proven: list[Proven] = []
    for example in examples:
        trained = encoder.tokens(example.messages).prompt_ids()
        options = _options(example, reasons=reasons)
        try:
            text = _render(encoder.tokenizer, template, example, options)
        except Exception as error:  # noqa: BLE001  a template is a program of the model's authors and may raise anything
            return _Mismatch(encoder.decode(trained)[-80:], f"the error {error}", example.where), proven
        served = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        if trained == served:
            proven.append(Proven(example, options, trained))
        elif not _same_but_for_white_space(encoder, example, trained, served):
            return _difference(encoder, example, trained, served), proven
    return None, proven


def _same_but_for_white_space(encoder: Encoder, example: Example, trained: list[int], served: list[int]) -> bool:
    """What no template can change, and a few such rows do no harm.

    Training encodes earlier answers apart from what surrounds them, serving encodes one text: next to white space, the same text
    may be divided into other tokens. And behind an empty block of reasoning the loss leaves out the white space before an answer.
    """
    lead = example.answer[: len(example.answer) - len(example.answer.lstrip())]
    text, seen = encoder.decode(served), encoder.decode(trained)
    return (example.has_history and seen == text) or (bool(lead) and seen in (text, text + lead))


def _options(example: Example, *, reasons: bool) -> dict[str, bool]:
    """Requests for what most rows do say nothing; for the other kind of answer they set what users of hybrid models know."""
    return {} if example.reasons is reasons else {"enable_thinking": example.reasons}


def _render(tokenizer: Any, template: str, example: Example, options: Mapping[str, bool]) -> str:
    return str(tokenizer.apply_chat_template(example.request, chat_template=template, tokenize=False, add_generation_prompt=True, **options))


def _difference(encoder: Encoder, example: Example, trained: list[int], served: list[int]) -> _Mismatch:
    pairs = zip(trained, served, strict=False)
    at = next((number for number, (left, right) in enumerate(pairs) if left != right), min(len(trained), len(served)))
    here = [ids[max(0, at - 8) : at + 16] for ids in (trained, served)]
    left, right = (encoder.decode(ids) for ids in here)
    if left == right:  # the same text, divided into other tokens
        left, right = (f"{left} (tokens {ids})" for ids in here)
    return _Mismatch(left, right, example.where)
