"""Which of ms-swift's model types and chat templates a model is."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.contract.spec import ModelSpec

_NO_CHAT = ("_emb", "_reranker")


@dataclass(frozen=True)
class Identity:
    """ms-swift's model_type and template."""

    type: str
    template: str


@dataclass(frozen=True)
class Known:
    """What ms-swift knows. `sharing`: types with the model's architecture; `published`: type and template ("" if several) by its name."""

    types: Mapping[str, tuple[str, ...]]  # every model type and its templates
    templates: Collection[str]
    sharing: tuple[str, ...]
    published: Identity | None


def look_up(name: str, architecture: str) -> Known:
    """What ms-swift knows about a model called `name` whose config.json names `architecture`."""
    from swift.model import MODEL_MAPPING, get_matched_model_meta
    from swift.template import TEMPLATE_MAPPING

    sharing = tuple(key for key, meta in MODEL_MAPPING.items() if architecture in meta.architectures)
    meta = get_matched_model_meta(name)
    # A directory may be called like a published model and hold another: its architecture must agree.
    published = Identity(meta.model_type, meta.template or "") if meta and meta.model_type in sharing else None
    return Known({key: tuple(meta.candidate_templates) for key, meta in MODEL_MAPPING.items()}, TEMPLATE_MAPPING.keys(), sharing, published)


def identify(spec: ModelSpec, architecture: str, known: Known) -> Identity:
    """The user's word first, then the published name, then the architecture. Raises StepError with all choices in one message."""
    for field, value, valid in (("type", spec.type, known.types), ("template", spec.template, known.templates)):
        if value and value not in valid:
            close = difflib.get_close_matches(value, valid, 5) or sorted(valid)[:5]
            raise _invalid(f"ms-swift knows no model {field} {value!r}: set spec.model.{field} to one that it knows, for example {', '.join(close)}.")
    # Types that share an architecture differ in how rows are put into words, not in weights or layers. Embedding and reranking
    # types may be left out safely: a job always trains answers, so nobody who starts one means them.
    chat = [key for key in known.sharing if not key.endswith(_NO_CHAT)]
    types = [spec.type] if spec.type else [known.published.type] if known.published else chat
    if not types:
        raise _invalid(f"ms-swift does not know the architecture {architecture!r} of {spec.source}: set spec.model.type to a type that is built alike.")
    choices = {key: _templates(spec, key, known) for key in types}
    if len(choices) == 1 and len(templates := choices[types[0]]) == 1:
        return Identity(types[0], templates[0])
    if len(choices) == 1:
        listed = ", ".join(choices[types[0]] or sorted(known.templates))
        raise _invalid(f"{spec.source} is of type {types[0]}, which has several chat templates: set spec.model.template to one of: {listed}.")
    several = any(len(templates) > 1 for templates in choices.values())
    listed = ", ".join(f"{key} ({' | '.join(templates)})" if len(templates) > 1 else key for key, templates in choices.items())
    also = ", and spec.model.template to one of those in brackets" if several else ""
    raise _invalid(f"{spec.source} has the architecture {architecture}, which several types share: set spec.model.type to one of: {listed}{also}.")


def _templates(spec: ModelSpec, key: str, known: Known) -> tuple[str, ...]:
    if spec.template:
        return (spec.template,)
    if known.published and known.published.type == key and known.published.template:
        return (known.published.template,)
    return known.types[key]


def _invalid(message: str) -> StepError:
    return StepError(Exit.MODEL_INVALID, Reason.MODEL_INVALID, message)
