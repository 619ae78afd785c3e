"""Which files a merged model has, and what is added to which tensor of them. Pure.

A base whose output layer is its embedding (tied) keeps one tensor for both. An adapter that changes one of the two only, or each in its own way, parts
them: the output layer becomes a tensor of its own, in a further file.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_runtime.contract.result import Exit, Reason, StepError

from .adapter import Delta, invalid

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
OUTPUT = "lm_head.weight"
EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight", "model.decoder.embed_tokens.weight", "model.language_model.embed_tokens.weight")


@dataclass(frozen=True)
class Untied:
    """The output layer that gets a tensor of its own, in the file `name`: made of the tensor `source`, with `delta` added if there is one."""

    source: str
    delta: Delta | None
    name: str


@dataclass(frozen=True)
class Plan:
    """`deltas`: by tensor of the base. `parted`: output layer and embedding are one no more. `names`: of files that are called otherwise than the base's."""

    deltas: Mapping[str, Delta]
    parted: bool = False
    untied: Untied | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def name(self, shard: str) -> str:
        """The merged file of one of the base."""
        return self.names.get(shard, shard)


def shards(files: Iterable[str], index: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Files of weights that loading reads; some repositories hold the same weights a second time under other names. Raises StepError ModelInvalid."""
    there = {path for path in files if path.endswith(".safetensors")}
    wanted = sorted(set(index["weight_map"].values())) if index else [SINGLE_FILE] if SINGLE_FILE in there else sorted(there)
    if not wanted:
        raise _unusable("The base model has no safetensors files, which is what an adapter is merged into")
    if missing := [path for path in wanted if path not in there]:
        raise _unusable(f"The base model's {INDEX_FILE} names {missing[0]}, which is not there")
    return tuple(wanted)


def check_base(config: Mapping[str, Any]) -> None:
    """Raises StepError InvalidConfig for a base that is quantised itself."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and (how := part.get("quantization_config")):
            kind = how.get("quant_method", "it does not say how") if isinstance(how, Mapping) else "it does not say how"
            raise invalid(f"The base model is quantised itself ({kind}), so an adapter cannot be merged into it")


def make(found: Mapping[str, Delta], base: Collection[str], files: tuple[str, ...], config: Mapping[str, Any]) -> Plan:
    """The merged model of an adapter's deltas and a base with these tensors, files of weights and configuration. Raises StepError InvalidConfig."""
    wanted, untied, names = dict(found), None, {}
    embedding = next((name for name in EMBEDDINGS if name in base), "")
    parted = _may_be_tied(config, stored=OUTPUT in base) and (OUTPUT in wanted or embedding in wanted)
    if parted and OUTPUT not in base:
        # A loader that finds model.safetensors looks no further.
        names = {SINGLE_FILE: "model-00001-of-00002.safetensors"} if files == (SINGLE_FILE,) else {}
        untied = Untied(embedding, wanted.pop(OUTPUT, None), "model-00002-of-00002.safetensors" if names else "model-output.safetensors")
    asked = [*wanted, *([untied.source] if untied else [])]
    if missing := [name for name in asked if name not in base]:
        raise invalid(
            f"The adapter changes {missing[0] or OUTPUT} ({len(missing)} such tensors), which the base model's files do not have under this name. "
            "Models that are stored otherwise than they are loaded cannot be merged"
        )
    return Plan(wanted, parted, untied, names)


def merged_config(text: bytes, plan: Plan) -> bytes:
    """config.json of the merged model."""
    if not plan.parted:
        return text
    config = json.loads(text)
    if isinstance(nested := config.get("text_config"), dict) and "tie_word_embeddings" in nested:
        nested["tie_word_embeddings"] = False
    config["tie_word_embeddings"] = False
    return json.dumps(config, indent=2).encode()


def merged_index(index: Mapping[str, Any] | None, plan: Plan, tensors: Mapping[str, str], size: int) -> bytes | None:
    """Index of the merged model: `tensors` with the merged files they are in, `size` bytes in all; None where the base needs none."""
    if index is None and plan.untied is None:
        return None
    metadata = {**((index or {}).get("metadata") or {}), "total_size": size}
    return json.dumps({"metadata": metadata, "weight_map": dict(sorted(tensors.items()))}, indent=2).encode()


def _may_be_tied(config: Mapping[str, Any], *, stored: bool) -> bool:
    """Whether the output layer is the embedding. Configurations leave the default out, which differs: then it is what is not stored by itself."""
    text = config.get("text_config")
    nested = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    said = config.get("tie_word_embeddings", nested)
    return bool(said) if isinstance(said, bool) else not stored


def _unusable(what: str) -> StepError:
    return StepError(Exit.MODEL_INVALID, Reason.MODEL_INVALID, f"{what}. Correct spec.model.source, or set the endpoint's quantization to AsTrained or None.")
