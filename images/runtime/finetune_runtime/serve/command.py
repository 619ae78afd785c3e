"""Command lines and environments of the two engines: pure functions of configuration, manifest and hardware.

Two parities decide what users get. Prompt: both engines render requests with the chat template that the adapter carries.
Quantisation: the base is held in memory as it was in training, unless the user asks for 16 bits. Merged, the adapter is part of the model: neither
engine hears of it, and there is no base beside it.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_runtime.contract.artefact import CHAT_TEMPLATE_FILE, Manifest
from finetune_runtime.contract.config import SERVED_BASE, SERVING_PORT, ServeConfig
from finetune_runtime.contract.result import Exit, Reason, StepError
from finetune_runtime.hardware import Hardware

from .drain import Drain
from .switch import Switch

_HOST = "0.0.0.0"  # noqa: S104  the pod's address; who may reach it is the network policy's matter
# The ranks that vLLM has kernels for.
VLLM_CACHE = "cache/vllm"  # below the scratch volume
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Seconds that running requests get once the engine has to end. The pod's grace period is 60 s beyond its preStop hook.
SHUTDOWN_SECONDS = 50
# What puts reasoning beside the answer instead of into it, by ms-swift's template. These parsers need <think> and </think> to be tokens, as in these models.
_REASONING_PARSERS = {
    "qwen3": "qwen3",
    "qwen3_thinking": "qwen3",
    "qwen3_5": "qwen3",
    "qwq": "deepseek_r1",
    "deepseek_r1": "deepseek_r1",
}
# vLLM sizes itself for servers; on a CPU these keep a start under half a minute and the pod under 2 GiB. Prompts are taken in whole: to go on with half
# of one, vLLM sets the random numbers of a request with a seed back, which those of a CPU cannot do, and the engine dies.
_VLLM_CPU = ["--enforce-eager", "--max-num-seqs", "8", "--kv-cache-memory-bytes", "256M", "--no-enable-chunked-prefill", "--max-num-batched-tokens"]
_VLLM_CPU_TOKENS = 256
_MIDDLEWARE = [f"{each.__module__}.{each.__qualname__}" for each in (Drain, Switch)]
_LIVE_SERVER = [sys.executable, "-m", "finetune_runtime.serve.vllm_server"]
_SECRETS = ("AWS_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check_served(config: ServeConfig, manifest: Manifest) -> None:
    """Refuses what could only answer badly. Raises StepError InvalidConfig."""
    if config.served_name == SERVED_BASE:
        raise _invalid(f"The endpoint's servedName is {SERVED_BASE}, under which every endpoint serves its base model: choose another one.")
    if manifest.base_model != config.model.source:
        raise _invalid(
            f"{config.adapter.uri} was trained on {manifest.base_model}, the endpoint serves {config.model.source}: "
            "an adapter works on its own base only. Set the endpoint's model to it, or create another endpoint."
        )
    quantization = _quantization(config, manifest)
    # vLLM quantises bitsandbytes bases as nf4 with nested constants. That an adapter may have been trained without the nesting makes
    # a difference of rounding only.
    if config.engine == "vLLM" and quantization and (quantization["bits"], quantization["type"]) != (4, "nf4"):
        what = "8 bits" if quantization["bits"] == 8 else quantization["type"]
        raise _invalid(
            f"{config.adapter.uri} was trained on a base in {what}, which vLLM cannot load (bitsandbytes nf4 only): set inference.engine to Swift, "
            "or inference.quantization to None for a 16-bit base."
        )


@dataclass(frozen=True, slots=True)
class Adapter:
    """A fetched adapter and the name that it is served under."""

    name: str
    manifest: Manifest
    directory: Path


def check_together(config: ServeConfig, manifests: Sequence[Manifest]) -> None:
    """Refuses adapters that one server cannot serve as they were trained. `manifests` in the order of config.adapters. Raises StepError InvalidConfig."""
    first, *others = zip(config.adapters, manifests, strict=True)
    if others and config.engine != "vLLM":
        raise _invalid(f"Engine {config.engine} serves one adapter only, not {len(manifests)}: set spec.engine to vLLM, or give each an endpoint of its own.")
    if others and config.quantization == "Merged":
        raise _invalid("Merged weights are one model: set spec.quantization to AsTrained or None, or give each adapter an endpoint of its own.")
    known = _shared(config, first[1])
    for named, manifest in others:
        for what, mine in _shared(config, manifest).items():
            if mine != known[what]:
                raise _invalid(
                    f"{named.name} and {first[0].name} cannot be served by one server, which has one {what} for all: {named.adapter.uri} was trained with "
                    f"{mine or 'none'}, {first[0].adapter.uri} with {known[what] or 'none'}. "
                    f"Train one of them like the other, or give {named.name} an endpoint of its own."
                )


def _shared(config: ServeConfig, manifest: Manifest) -> dict[str, str]:
    """What a server has once for all its adapters. The system prompt of a training is in its chat template."""
    details, quantization = manifest.details, _quantization(config, manifest)
    template = next((f"{CHAT_TEMPLATE_FILE} of SHA-256 {entry.sha256[:12]}" for entry in manifest.files if entry.path == CHAT_TEMPLATE_FILE), "")
    return {
        "revision of the base model": manifest.base_revision,
        "quantisation of the base model": f"{quantization['bits']} bits {quantization['type']}" if quantization else "",
        "type to compute in": str(details["computeDtype"]),
        "chat template": template,
        "way to take reasoning out of answers": f"reasoning by template {details['template']}" if details.get("reasons") else "",
    }


def vllm(config: ServeConfig, manifest: Manifest, hardware: Hardware, *, model: Path, adapter: Path, others: Sequence[Adapter] = ()) -> list[str]:
    """`vllm serve` with the base and the adapters, or with one merged into it. They share what `check_together` demands, so `manifest` is that of any.

    Where adapters come and go it starts without any, and has room for those that it is given here and for more.
    """
    command = [*(_LIVE_SERVER if config.live else ["vllm"]), "serve", str(model), "--host", _HOST, "--port", str(SERVING_PORT)]
    adapters = [Adapter(config.served_name, manifest, adapter), *others]
    command += ["--served-model-name", config.served_name] if config.quantization == "Merged" else _lora(config, adapters)
    # Text is text, as it was when the template was proven: left alone, vLLM guesses from the template's source how it takes contents.
    command += ["--chat-template", str(adapter / CHAT_TEMPLATE_FILE), "--chat-template-content-format", "string"]
    command += ["--max-model-len", str(config.max_length), "--dtype", _dtype(config, manifest, hardware)]
    if _quantization(config, manifest):
        command += ["--quantization", "bitsandbytes"]
    if config.model.trust_remote_code:
        command += ["--trust-remote-code"]
    command += ["--shutdown-timeout", str(SHUTDOWN_SECONDS)]  # the default cuts running requests off
    for middleware in _MIDDLEWARE if config.live else _MIDDLEWARE[:1]:
        command += ["--middleware", middleware]
    if config.live:
        command += ["--disable-access-log-for-endpoints", "/v1/models"]  # the sidecar asks every second
    # Only where the adapter reasons: without it, the prompt's empty block of reasoning has ended it, and this parser takes such answers for reasoning.
    if manifest.details.get("reasons") and (parser := _REASONING_PARSERS.get(manifest.details["template"])):
        command += ["--reasoning-parser", parser]
    return command + ([*_VLLM_CPU, str(max(_VLLM_CPU_TOKENS, config.max_length))] if hardware.cpu_only else [])


def _lora(config: ServeConfig, adapters: Sequence[Adapter]) -> list[str]:
    live, ranks = config.live, [int(each.manifest.details["loraRank"]) for each in adapters]
    if live and live.max_lora_rank:
        ranks.append(live.max_lora_rank)
    # One slot more than there is room for, so that what a gate asks does not take the place of what users ask. Those beyond take turns.
    slots = live.max_adapters + 1 if live else len(adapters)
    rank = next(allowed for allowed in _VLLM_RANKS if allowed >= max(ranks))
    words = ["--served-model-name", SERVED_BASE, "--enable-lora", "--max-loras", str(slots), "--max-lora-rank", str(rank)]
    modules = [json.dumps({"name": each.name, "path": str(each.directory), "base_model_name": SERVED_BASE}) for each in adapters]
    return words if live else [*words, "--lora-modules", *modules]


def swift(config: ServeConfig, manifest: Manifest, hardware: Hardware, *, model: Path, adapter: Path) -> list[str]:
    """ms-swift's server on transformers. `model` is a directory whose chat template is the adapter's, see `run.engine_model`."""
    details = manifest.details
    flags: dict[str, Any] = {
        "model": model,
        "model_type": details["modelType"],
        "template": details["template"],
        "load_args": False,  # the adapter's args.json holds paths of the pod that trained it
        **({"served_model_name": config.served_name} if config.quantization == "Merged" else _swift_lora(config, adapter)),
        "infer_backend": "transformers",
        "host": _HOST,
        "port": SERVING_PORT,
        "max_model_len": config.max_length,
        "torch_dtype": _dtype(config, manifest, hardware),
        # With its own templates ms-swift puts the prefix of the prompt, such as an empty think block, before every answer as well.
        # Rendered by Jinja the prompt has it, and an empty response_prefix keeps it out of the answer.
        "template_backend": "jinja",
        "response_prefix": "",
        "verbose": False,  # else it logs what users ask
        "log_interval": -1,
    }
    if (reasons := details.get("reasons")) is not None:
        # ms-swift always tells the chat template whether to reason, and by itself says no wherever a model can do without.
        flags["enable_thinking"] = reasons
    if details.get("system"):
        flags["system"] = details["system"]  # else ms-swift fills in the template's default one
    if quantization := _quantization(config, manifest):
        flags |= {"quant_method": "bnb", "quant_bits": quantization["bits"]}
        if quantization["bits"] == 4:
            flags |= {
                "bnb_4bit_compute_dtype": flags["torch_dtype"],
                "bnb_4bit_quant_type": quantization["type"],
                "bnb_4bit_use_double_quant": quantization["doubleQuant"],
            }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))]
    return [sys.executable, "-m", "finetune_runtime.serve.swift_server", *words]


def _swift_lora(config: ServeConfig, adapter: Path) -> dict[str, Any]:
    return {"adapters": f"{config.served_name}={adapter}", "served_model_name": SERVED_BASE}


def environment(base: Mapping[str, str], scratch: Path, hardware: Hardware, *, threads: int) -> dict[str, str]:
    """Environment of either engine: no downloads, no telemetry, no secrets, all caches in the scratch volume."""
    result = {name: value for name, value in base.items() if not name.startswith(_SECRETS)} | {
        "HOME": str(scratch / "home"),
        "HF_HOME": str(scratch / "cache/huggingface"),
        "MODELSCOPE_CACHE": str(scratch / "cache/modelscope"),
        "VLLM_CACHE_ROOT": str(scratch / VLLM_CACHE),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if hardware.cpu_only:
        # vLLM would compile C++ at every start; threads that wait should leave the cores to others.
        result |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1"}
    return result


def _quantization(config: ServeConfig, manifest: Manifest) -> dict[str, Any] | None:
    return manifest.details.get("quantization") if config.quantization == "AsTrained" else None


def _dtype(config: ServeConfig, manifest: Manifest, hardware: Hardware) -> str:
    """The type that the training computed in, as far as engine and hardware have it."""
    trained = str(manifest.details["computeDtype"])
    sixteen_bits = config.engine == "vLLM" and _quantization(config, manifest)  # its bitsandbytes layers do not start in float32
    if hardware.cpu_only and not hardware.bfloat16 and not sixteen_bits:
        return "float32"
    wanted = "bfloat16" if sixteen_bits and trained == "float32" else trained
    return "float16" if wanted == "bfloat16" and not (hardware.bfloat16 or hardware.cpu_only) else wanted


def _invalid(message: str) -> StepError:
    return StepError(Exit.INVALID_CONFIG, Reason.INVALID_CONFIG, message)
