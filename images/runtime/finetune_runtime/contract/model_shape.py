"""What of a model decides how much memory its training needs. Read by the prepare step, judged by the operator."""

import re
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from pydantic import Field

from .base import Model

Tensor = tuple[str, tuple[int, ...], int]  # name, shape, bytes of an element

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.(.+)\.weight$")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.weight$")
# Towers of other modalities get no adapter, and a mixture's experts are one tensor in memory, which bitsandbytes does not quantise.
_OTHER = re.compile(r"(?:^|\.)(?:visual|vision\w*|audio\w*|experts|mtp)\.")
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
_NAMES = {  # by the names of config.json: Llama's, then those of GPT-2's family
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "attention_heads": ("num_attention_heads", "n_head"),
    "vocabulary_size": ("vocab_size",),
}


class ModelShape(Model):
    """Sizes of a decoder-only language model. Parameters are counted once, also where embedding and head are one tensor."""

    parameters: int = Field(ge=0, description="All parameters.")
    linear_parameters: int = Field(ge=0, description="Those of the linear layers, which are what is quantised and gets adapters.")
    embedding_parameters: int = Field(ge=0, description="Those of the embedding and the output head, which stay in 16 bits.")
    largest_linear: int = Field(ge=0, description="Parameters of the largest linear layer.")
    adapter_widths: dict[str, int] = Field(
        max_length=64, description="Inputs plus outputs of all linear layers of one name; times the rank: parameters of their adapters."
    )
    weight_bytes: int = Field(default=2, ge=1, description="Bytes of a parameter in the files.")
    layers: int = Field(ge=1, description="Transformer blocks.")
    hidden_size: int = Field(ge=1, description="Width between the blocks.")
    intermediate_size: int = Field(ge=1, description="Inner width of the MLP; of a mixture of experts, of all that one token passes through.")
    attention_heads: int = Field(ge=1, description="Query heads of a block.")
    key_value_heads: int = Field(ge=1, description="Key and value heads of a block.")
    head_dim: int = Field(ge=1, description="Width of a head.")
    vocabulary_size: int = Field(ge=1, description="Entries of the embedding.")
    tie_word_embeddings: bool = Field(default=False, description="Whether the head is the embedding.")

    @property
    def other_parameters(self) -> int:
        """Norms, biases, towers of other modalities, experts: what is neither quantised nor an embedding."""
        return self.parameters - self.linear_parameters - self.embedding_parameters


def tensors(header: Mapping[str, Any]) -> list[Tensor]:
    """The tensors of a safetensors header, of which its metadata are none. Raises KeyError, TypeError or ValueError for one that is not sound."""
    return [(name, tuple(int(size) for size in entry["shape"]), _BYTES.get(entry["dtype"], 1)) for name, entry in header.items()]


def from_tensors(found: Iterable[Tensor], config: Mapping[str, Any]) -> ModelShape | None:
    """The shape by what the weight files hold, so exact for any architecture. None when config.json lacks what the files do not say.

    None also for weights that are quantised already: their tensors are packed and have shapes of their own.
    """
    sizes = None if config.get("quantization_config") else _sizes(config)
    linear = embedding = total = largest = head = 0
    widths: dict[str, int] = {}
    parameters_of: dict[int, int] = {}
    for name, shape, width in found:
        count = prod(shape)
        total += count
        parameters_of[width] = parameters_of.get(width, 0) + count
        layer = _LAYER.search(name)
        if _EMBEDDING.search(name):
            embedding += count
        elif _HEAD.search(name) and not layer:
            head = count
        elif layer and len(shape) == 2 and not _OTHER.search(name):
            linear += count
            largest = max(largest, count)
            module = layer[2].rpartition(".")[2]
            widths[module] = widths.get(module, 0) + sum(shape)
    if sizes is None or not linear or not embedding:
        return None
    if sizes["tie_word_embeddings"]:  # some files hold the tied head once more; in memory it is one tensor
        total, head = total - head, 0
    return ModelShape(
        parameters=total,
        linear_parameters=linear,
        embedding_parameters=embedding + head,
        largest_linear=largest,
        adapter_widths=widths,
        weight_bytes=max(parameters_of, key=lambda width: parameters_of[width]),
        **sizes,
    )


def from_config(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape by config.json alone, as Llama and its relatives are built, for weights whose names cannot be read. None for any other config."""
    sizes = _sizes(config)
    if sizes is None or "n_embd" in config or _text(config).get("num_experts") or _text(config).get("num_local_experts"):
        return None
    hidden, inner, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["layers"]
    query, key = sizes["attention_heads"] * sizes["head_dim"], sizes["key_value_heads"] * sizes["head_dim"]
    linear = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key),
        "v_proj": (hidden, key),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    embedding = sizes["vocabulary_size"] * hidden * (1 if sizes["tie_word_embeddings"] else 2)
    norms = hidden * (2 * layers + 1)
    parameters = layers * sum(prod(shape) for shape in linear.values())
    return ModelShape(
        parameters=parameters + embedding + norms,
        linear_parameters=parameters,
        embedding_parameters=embedding,
        largest_linear=max(prod(shape) for shape in linear.values()),
        adapter_widths={name: layers * sum(shape) for name, shape in linear.items()},
        weight_bytes=4 if _text(config).get("torch_dtype", _text(config).get("dtype")) == "float32" else 2,
        **sizes,
    )


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a multimodal model's configuration that its language model reads."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _sizes(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Fields of a ModelShape that config.json gives; None when one is missing or not a positive whole number."""
    text = _text(config)
    sizes: dict[str, Any] = {field: next((text[name] for name in names if text.get(name)), None) for field, names in _NAMES.items()}
    if not all(type(size) is int and size > 0 for size in sizes.values()):
        return None
    hidden, heads = sizes["hidden_size"], sizes["attention_heads"]
    experts = text.get("num_experts_per_tok") if text.get("moe_intermediate_size") or text.get("num_local_experts") else None
    inner = text.get("moe_intermediate_size") if experts else None
    sizes["intermediate_size"] = (inner or text.get("intermediate_size") or text.get("n_inner") or 4 * hidden) * (experts or 1)
    sizes["key_value_heads"] = text.get("num_key_value_heads") or heads
    sizes["head_dim"] = text.get("head_dim") or max(1, hidden // heads)
    if not all(type(size) is int and size > 0 for size in sizes.values()):
        return None
    return {**sizes, "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)) is True}
