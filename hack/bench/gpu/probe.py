"""Trainer callback `bench`: times of optimizer steps, losses, peaks of memory, and on request gradients, adapters and the kernels of a step.

Loaded by ms-swift beside the product's plugins. It waits for the GPU at both ends of a step, and nowhere else.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from swift.callbacks import TrainerCallback, callbacks_map

from hack.bench.gpu.kinds import by_kind
from hack.bench.gpu.request import REQUEST, Request

CUDA = torch.cuda.is_available()
ASKED = Request.read(os.environ[REQUEST])
if CUDA and ASKED.limit_bytes:
    # Now, before the model is loaded: what loading takes must fit the smaller card as well.
    for device in range(torch.cuda.device_count()):
        torch.cuda.set_per_process_memory_fraction(min(1.0, ASKED.limit_bytes / torch.cuda.get_device_properties(device).total_memory), device)


def now() -> float:
    """Seconds of a monotonic clock, all work of the GPU done."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


class Bench(TrainerCallback):  # type: ignore[misc]  # ms-swift is untyped
    """One instance per process; only rank 0 writes."""

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(args, trainer)
        self._writes = int(os.environ.get("RANK", "0")) == 0
        self._begun = self._ended = 0.0
        self._gradients: list[dict[str, torch.Tensor]] = []
        self._profile: Any = None

    def on_train_begin(self, _args: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        self._adapters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if ASKED.seed:
            self._set_adapters()
        if ASKED.exact_base:
            exact_int8(model)
        dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in self._adapters.values()})
        self._say("loaded", trained=sum(parameter.numel() for parameter in self._adapters.values()), dtypes=dtypes, steps=state.max_steps, **self._memory())

    def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        step = state.global_step + 1
        self._begun = now()
        if ASKED.profile_step == step:
            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA if CUDA else torch.profiler.ProfilerActivity.CPU])
            self._profile.__enter__()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        if ASKED.gradients:
            self._gradients.append({name: parameter.grad.detach().float().cpu().clone() for name, parameter in self._adapters.items()})

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        ended = now()
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
            self._report_kernels(ended - self._begun)
            self._profile = None
        whole = ended - self._ended if self._ended else None
        self._say("step", step=state.global_step, seconds=ended - self._begun, whole=whole, profiled=ASKED.profile_step == state.global_step, **self._memory())
        self._ended = now()

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        values = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self._say("log", step=state.global_step, **values)

    def on_train_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if self._writes and ASKED.gradients:
            torch.save(self._gradients, ASKED.gradients)
        if self._writes and ASKED.adapters:
            torch.save({name: parameter.detach().float().cpu() for name, parameter in self._adapters.items()}, ASKED.adapters)
        self._say("end", step=state.global_step, at=time.time(), **self._memory())

    def _set_adapters(self) -> None:
        """A as PEFT draws it, B from N(0, 0.01) instead of zeros, so that every gradient is one."""
        source = torch.Generator().manual_seed(ASKED.seed)
        with torch.no_grad():
            for name, parameter in self._adapters.items():
                spread = 0.01 if "lora_B" in name else (1 / parameter.shape[1]) ** 0.5 / 3**0.5
                # bfloat16's values in either type, so that runs of both begin alike
                parameter.copy_((torch.randn(parameter.shape, generator=source) * spread).to(torch.bfloat16))

    def _memory(self) -> dict[str, int]:
        """Bytes: most reserved and allocated by torch so far, and what the driver counts now for the whole GPU."""
        if not CUDA:
            return {"reserved": 0, "allocated": 0, "driver": 0}
        free, total = torch.cuda.mem_get_info()
        return {"reserved": torch.cuda.max_memory_reserved(), "allocated": torch.cuda.max_memory_allocated(), "driver": total - free}

    def _report_kernels(self, seconds: float) -> None:
        rows = [
            (event.key, event.count, time_of / 1e3)
            for event in self._profile.key_averages()
            if (time_of := getattr(event, "self_device_time_total" if CUDA else "self_cpu_time_total", 0)) > 0 and not event.key.startswith(("cuda", "aten::"))
        ]
        top = sorted(rows, key=lambda row: -row[2])[:40]
        self._say("kernels", wall_ms=seconds * 1e3, kinds=by_kind(rows), top=[(name[:90], count, round(ms, 2)) for name, count, ms in top])

    def _say(self, kind: str, **values: Any) -> None:
        if self._writes:
            with Path(ASKED.readings).open("a") as file:
                file.write(json.dumps({"kind": kind, **values}) + "\n")


def exact_int8(model: Any) -> None:
    """8-bit layers multiply their dequantised weights in float32. LLM.int8 also rounds the activations, which is no reference for anything."""
    from bitsandbytes.nn import Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear8bitLt):  # PEFT has a class of this name around it
            module.forward = _exact(module)


def _exact(module: Any) -> Any:
    def forward(rows: torch.Tensor) -> torch.Tensor:
        state, weight = module.state, module.weight
        numbers = state.CB if state.CB is not None else weight.data
        scales = state.SCB if state.SCB is not None else weight.SCB
        bias = None if module.bias is None else module.bias.float()
        return torch.nn.functional.linear(rows.float(), numbers.float() * (scales.float()[:, None] / 127), bias)

    return forward


callbacks_map["bench"] = Bench
