"""What an adapter adds to which tensor of its base: W + scale * B A. Pure; names and fields are those of PEFT 0.20.

What would be merged wrongly is refused by name: a merged model that answers nearly right is worse than none.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_runtime.contract.result import Exit, Reason, StepError

from .tensors import FLOATS, Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# (first factor, second factor) as stored: a linear layer's A is rank x in and B is out x rank; an embedding's A is rank x tokens and B is size x rank.
_LINEAR, _EMBEDDING = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")
_OTHERWISE = {
    "use_dora": "DoRA (use_dora)",
    "use_qalora": "QALoRA (use_qalora)",
    "lora_bias": "a bias of its own (lora_bias)",
    "modules_to_save": "whole modules (modules_to_save)",
    "trainable_token_indices": "single tokens (trainable_token_indices)",
    "layer_replication": "replicated layers (layer_replication)",
    "target_parameters": "bare parameters (target_parameters)",
    "fan_in_fan_out": "transposed layers (fan_in_fan_out)",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "use_bdlora": "block-diagonal factors (use_bdlora)",
    "monteclora_config": "sampled factors (monteclora_config)",
    "arrow_config": "routing (arrow_config)",
    "ensure_weight_tying": "tied factors (ensure_weight_tying)",
}
# Initialisations that change the base's own weights; the stored adapter belongs to those.
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Delta:
    """What is added to the tensor `target` of the base: scale * B A, transposed for an embedding."""

    target: str
    a: Tensor
    b: Tensor
    scale: float
    embedding: bool = False

    @property
    def rank(self) -> int:
        """Rank of the product."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the tensor that it is added to."""
        inner, outer = self.a.shape[1], self.b.shape[0]
        return (inner, outer) if self.embedding else (outer, inner)


def deltas(config_text: bytes, tensors: Mapping[str, Tensor]) -> dict[str, Delta]:
    """All that an adapter adds, by tensor of the base. `tensors`: of its weights. Raises StepError InvalidConfig for what cannot be merged."""
    config = _config(config_text)
    if why := _refusal(config):
        raise invalid(f"The adapter has {why}, which cannot be merged")
    found: dict[str, Delta] = {}
    used: set[str] = set()
    for name in tensors:
        for kinds in (_LINEAR, _EMBEDDING):
            if name.endswith(f".{kinds[0]}"):
                stem = name.removesuffix(kinds[0])
                delta = _delta(config, stem, tensors[name], tensors.get(stem + kinds[1]), embedding=kinds is _EMBEDDING)
                found[delta.target] = delta
                used |= {name, stem + kinds[1]}
    if strange := sorted(set(tensors) - used):
        raise invalid(f"The adapter has {strange[0]} ({len(strange)} such tensors), which is no part of a plain LoRA and cannot be merged")
    if not found:
        raise invalid("The adapter changes no tensor")
    return found


def invalid(what: str) -> StepError:
    """Merging is not possible, and what is."""
    message = f"{what}: set the endpoint's quantization to AsTrained or None, which serve the adapter as it is."
    return StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, message)


def _config(text: bytes) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
        rank, alpha = config["r"], config["lora_alpha"]
    except (ValueError, KeyError, TypeError) as error:
        raise invalid(f"{CONFIG_FILE} of the adapter cannot be read ({type(error).__name__})") from error
    if not all(isinstance(number, int | float) and number > 0 for number in (rank, alpha)):
        raise invalid(f"{CONFIG_FILE} of the adapter has no rank (r) or no lora_alpha")
    return dict(config)


def _refusal(config: Mapping[str, Any]) -> str:
    """What of the adapter is more than W + scale * B A, in words; empty when nothing is."""
    if config.get("peft_type") != "LORA":
        return f"the type {config.get('peft_type')}, not LORA"
    for field, words in _OTHERWISE.items():
        if config.get(field):
            return words
    if config.get("bias", "none") != "none":
        return f"trained biases (bias: {config['bias']})"
    how = config.get("init_lora_weights", True)
    if isinstance(how, str) and how.lower().startswith(_OTHER_BASE):
        return f"a base of its own (init_lora_weights: {how})"
    return ""


def _delta(config: Mapping[str, Any], stem: str, a: Tensor, b: Tensor | None, *, embedding: bool) -> Delta:
    module = stem.removesuffix(".").removeprefix(_PREFIX)
    if b is None:
        raise invalid(f"The adapter has only one of the two factors for {module}")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise invalid(f"The adapter's factors for {module} do not fit together ({a.shape} and {b.shape}; layers other than linear ones are not merged)")
    if wrong := next((tensor.dtype for tensor in (a, b) if tensor.dtype not in FLOATS), ""):
        raise invalid(f"The adapter has {module} in {wrong}")
    rank, alpha = (_own(config, f"{kind}_pattern", module, config[field]) for kind, field in (("rank", "r"), ("alpha", "lora_alpha")))
    if rank != a.shape[0]:
        raise invalid(f"The adapter's configuration says rank {rank} for {module}, and its weights have {a.shape[0]}")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Delta(f"{module}.weight", a, b, scale, embedding)


def _own(config: Mapping[str, Any], field: str, module: str, general: float) -> float:
    """A module's own value where a pattern matches its name, as PEFT matches them."""
    patterns: Mapping[str, float] = config.get(field) or {}
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), general)
