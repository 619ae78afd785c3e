"""How much memory of one GPU a training needs at its peak, and what to change so that it fits. Arithmetic only.

It counts what the command of the training pod really does: ms-swift 4.6 with PEFT and bitsandbytes, adapters in float32 under autocast,
SDPA attention, Liger's kernels. Terms are bytes; `width` is the bytes of a number in the type that is computed in.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

from pydantic.alias_generators import to_camel

from .base import Model
from .model_shape import ModelShape
from .spec import Toggle, Training, Tuning

GIB = 2**30
# Measured beside the allocator's memory: CUDA context and the kernels of torch, cuBLAS and bitsandbytes (0.72 to 0.75 GiB on an H100).
CONTEXT = int(0.75 * GIB)
# NCCL's buffers for the sums over several GPUs, outside of torch's memory. Not measured: they grow with NVLink's channels, about 10 MiB for each.
NCCL = int(0.5 * GIB)
# cuBLAS's workspaces, and what the allocator rounds up in its pool of small blocks.
_WORKSPACE = int(0.1 * GIB)
# Share of what comes and goes that the allocator holds beside it, because blocks of one size do not fit the next tensor.
_FRAGMENTATION = 0.1
# Bytes of the optimizer's state for each trained parameter. Paged states move to the host's memory when the GPU is full.
STATES: Mapping[str, float] = {
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "adamw_8bit": 2 + 2 * 4 / 256,  # two moments of one byte, and a scale for each block of 256
    "paged_adamw_8bit": 0,
    "paged_adamw_32bit": 0,
    "adafactor": 0.1,  # a row and a column for each matrix
    "sgd": 0,
}


@dataclass(frozen=True)
class Estimate:
    """Bytes on one GPU at the peak, by what holds them."""

    base: int  # the frozen linear layers
    embeddings: int  # embedding, head, norms, biases: never quantised
    adapter: int
    gradients: int
    optimizer: int
    hidden_states: int  # between the layers, kept from the forward to the backward pass
    layer: int  # inside the layers: of all of them, or of the one that is being recomputed
    loss: int  # what the loss needs beyond the layers, which are not there then
    dequantised: int  # the largest linear layer in the type that is computed in
    overhead: int  # the allocator's and the libraries'
    nccl: int = 0  # not torch's: what the sums over several GPUs need

    @property
    def reserved(self) -> int:
        """What torch reserves."""
        return sum(self.parts.values()) - self.nccl

    @property
    def required(self) -> int:
        """What the GPU must have free: beside torch's memory NCCL's and the driver's context."""
        return self.reserved + self.nccl + CONTEXT

    @property
    def parts(self) -> dict[str, int]:
        return asdict(self)


def estimate(
    shape: ModelShape, tuning: Tuning, training: Training, *, micro_batch: int, longest: int | None = None, liger: bool = True, gpus: int = 1
) -> Estimate:
    """Memory of a training with `micro_batch` rows at a time.

    `longest`: tokens of the longest row, where it is known to be less than training.maxLength. `liger`: with Liger's kernels. `gpus`: of the training.
    Never less for more rows, longer rows, a higher rank or more layers.
    """
    length = min(training.max_length, longest or training.max_length)
    tokens = micro_batch * length
    width = _width(tuning)
    trained = tuning.lora.rank * _adapter_width(shape, tuning)
    checkpointing = training.gradient_checkpointing is not Toggle.OFF
    one_layer, passing = _layer(shape, tuning, liger=liger), _passing(shape, tuning)
    scores = _scores(shape, training, micro_batch, length)
    # The output of each layer is the next one's input, which both ways of training keep.
    hidden = shape.layers * tokens * shape.hidden_size * width
    inside = (1 if checkpointing else shape.layers) * (tokens * one_layer + scores)
    # Autocast keeps 16-bit copies of the adapters until the forward pass is over; without checkpointing the graph holds on to them.
    copies = trained * width if width < 4 else 0
    # With several GPUs DistributedDataParallel sums gradients in buckets, which are another copy of them.
    gradients = 4 * trained * (2 if gpus > 1 else 1)
    # Two peaks. In a layer's backward pass the loss is gone; at the loss the layers' insides are there only without checkpointing. An evaluation of as
    # many rows stays below both: with Liger none took more than a step (15 configurations on an H100), without it a step's loss holds more per logit.
    churn = int(_FRAGMENTATION * tokens * (one_layer + passing))
    layer = inside + tokens * passing + (0 if checkpointing else copies)
    backward = hidden + layer + churn
    forward = hidden + (0 if checkpointing else inside) + copies + int((1 + _FRAGMENTATION) * _loss(shape, training, tokens, width, fused=liger))
    return Estimate(
        base=base_bytes(shape, tuning),
        embeddings=(shape.embedding_parameters + shape.other_parameters) * width,
        adapter=4 * trained,  # PEFT holds adapters in float32
        gradients=gradients,
        optimizer=int(STATES[training.extra_args.get("optim", "adamw_torch_fused")] * trained),
        hidden_states=hidden,
        layer=layer,
        loss=max(backward, forward) - backward,
        dequantised=shape.largest_linear * width if tuning.method == "QLoRA" else 0,
        overhead=_WORKSPACE + churn,
        nccl=NCCL if gpus > 1 else 0,
    )


def rows(training: Training, gpus: int = 1) -> int:
    """Rows at a time that must fit: as many as the user asks for, but always a divisor of a GPU's part of a step; one for Auto, which comes down to it."""
    wanted, part = 1 if training.micro_batch_size == "Auto" else training.micro_batch_size, training.effective_batch_size // gpus
    return next(size for size in range(min(wanted, part), 0, -1) if part % size == 0)


def largest_micro_batch(shape: ModelShape, tuning: Tuning, training: Training, usable_bytes: int, *, longest: int | None = None, liger: bool = True) -> int:
    """The most rows at a time that fit, of those that divide the effective batch; 0 when not even one does."""
    needs = partial(estimate, shape, tuning, training, longest=longest, liger=liger)
    return next((size for size in divisors(training.effective_batch_size) if needs(micro_batch=size).required <= usable_bytes), 0)


def divisors(number: int) -> list[int]:
    """All divisors, the largest first."""
    return [size for size in range(number, 0, -1) if number % size == 0]


@dataclass(frozen=True)
class Edit:
    """One field of the job that would have to change. `path` is the user's: spec.training.maxLength."""

    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Change:
    """What makes a job fit, and the bytes that it then needs."""

    edits: tuple[Edit, ...]
    required: int

    def __str__(self) -> str:
        """Reads on after a colon: set spec.training.maxLength to 640 (needs 7.6 GiB)."""
        *others, last = (f"{edit.path} to {edit.new}" for edit in self.edits)
        wanted = f"{', '.join(others)} and {last}" if others else last
        return f"set {wanted} (needs {self.required / GIB:.1f} GiB)"


def smallest_change(
    shape: ModelShape,
    tuning: Tuning,
    training: Training,
    usable_bytes: int,
    *,
    longest: int | None = None,
    gpus: int = 1,
    required: Callable[[Tuning, Training], int] | None = None,
) -> Change | None:
    """The change of the fewest fields, and of those the least harmful one, after which a job fits that does not. None: it takes a larger GPU.

    `required`: bytes that a job needs, where it is not trained in ms-swift's own way. Never more for a job with less of anything.
    """

    def needs(job: "_Job") -> int:
        if required:
            return required(job.tuning, job.training)
        size = estimate(shape, job.tuning, job.training, micro_batch=rows(job.training, gpus), longest=longest, gpus=gpus)
        return size.required

    def first(steps: Sequence[_Step], job: _Job) -> _Job | None:
        """With one value of each step; of those that let the job fit the least harmful, the first step's before the next one's."""
        if not steps:
            return job if needs(job) <= usable_bytes else None
        step, *others = steps
        values = step.values(job)
        # From value to value a job needs less, so that the first one that fits is found by halving.
        index = bisect_left(range(len(values)), True, key=lambda number: first(others, _with(job, step, values[number])) is not None)
        return first(others, _with(job, step, values[index])) if index < len(values) else None

    start = _Job(tuning=tuning, training=training)
    for count in range(1, len(_STEPS) + 1):
        # The harm of several is that of the worst one.
        for chosen in sorted(combinations(range(len(_STEPS)), count), key=lambda numbers: numbers[::-1]):
            if job := first([_STEPS[number] for number in chosen], start):
                return Change(job.edits, needs(job))
    return None


class _Job(Model):
    """What an estimate reads of a job, and how it came to differ from the user's."""

    tuning: Tuning
    training: Training
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class _Step:
    """A field, and the values that it could have instead, each needing less memory and doing more harm than the one before."""

    path: str
    values: Callable[[_Job], Sequence[Any]]


def _instead(value: object, *, of: Sequence[object], get: Callable[[_Job], object]) -> Callable[[_Job], Sequence[Any]]:
    return lambda job: [value] if get(job) in of else []


_SHORTEST = 256  # tokens: hardly a conversation is shorter

# From what only takes time to what changes the result most.
_STEPS = (
    _Step("training.micro_batch_size", lambda job: ["Auto"] if rows(job.training) > 1 else []),
    _Step("training.gradient_checkpointing", _instead(Toggle.ON, of=[Toggle.OFF], get=lambda job: job.training.gradient_checkpointing)),
    _Step(
        "training.extra_args.optim",
        _instead("adamw_8bit", of=[None, "adamw_torch", "adamw_torch_fused"], get=lambda job: job.training.extra_args.get("optim")),
    ),
    _Step("tuning.method", _instead("QLoRA", of=["LoRA"], get=lambda job: job.tuning.method)),
    _Step("tuning.quantization.bits", _instead(4, of=[8], get=lambda job: job.tuning.quantization.bits if job.tuning.method == "QLoRA" else 4)),
    _Step("tuning.quantization.double_quant", _instead(True, of=[False], get=lambda job: job.tuning.quantization.double_quant)),
    _Step("training.max_length", lambda job: range((job.training.max_length - 1) // 64 * 64, _SHORTEST - 1, -64)),
    _Step("tuning.lora.rank", lambda job: [rank for rank in (256, 128, 64, 32, 16, 8) if rank < job.tuning.lora.rank]),
)


def _with(job: _Job, step: _Step, value: Any) -> _Job:
    names = step.path.split(".")
    old: Any = job
    for name in names:
        old = old.get(name, "") if isinstance(old, dict) else getattr(old, name)
    edit = Edit("spec." + ".".join(map(to_camel, names)), *(str(it).lower() if isinstance(it, bool) else str(it) for it in (old, value)))
    changed: _Job = _set(job, names, value)
    return changed.model_copy(update={"edits": (*job.edits, edit)})


def _set(content: Any, names: Sequence[str], value: Any) -> Any:
    if not names:
        return value
    name, *others = names
    if isinstance(content, dict):
        return {**content, name: _set(content.get(name), others, value)}
    return content.model_copy(update={name: _set(getattr(content, name), others, value)})


def _width(tuning: Tuning) -> int:
    return 4 if tuning.method == "QLoRA" and tuning.quantization.compute_dtype == "float32" else 2


def _adapter_width(shape: ModelShape, tuning: Tuning) -> int:
    """Inputs plus outputs of all layers with an adapter. Names that the model does not have count as all: the estimate must not be too low."""
    names = [target.rpartition(".")[2] for target in tuning.lora.target_modules]
    if all(name in shape.adapter_widths for name in names):
        return sum(shape.adapter_widths[name] for name in set(names))
    return sum(shape.adapter_widths.values())


def base_bytes(shape: ModelShape, tuning: Tuning) -> int:
    """Of the frozen linear layers, with their scales."""
    if tuning.method == "LoRA":
        return shape.linear_parameters * 2
    if tuning.quantization.bits == 8:
        return int(shape.linear_parameters * (1 + 4 / shape.hidden_size))  # and a float32 scale for each row
    # Half a byte, and for each block of 64 a scale: float32, or with double quantisation one byte and a float32 for each 256 scales.
    scale = (1 + 4 / 256) if tuning.quantization.double_quant else 4
    return int(shape.linear_parameters * (0.5 + scale / 64))


def _layer(shape: ModelShape, tuning: Tuning, *, liger: bool) -> int:
    """Bytes for each token that a layer's forward pass leaves for its backward pass, without its input."""
    width = _width(tuning)
    hidden, inner = shape.hidden_size, shape.intermediate_size
    query, key = shape.attention_heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    norms = hidden + query + key  # inputs of the second norm and of those of query and key
    attention = 2 * query + 2 * key  # its inputs and its output
    mlp = (2 if liger else 3) * inner  # gate and up; without Liger also the gate after its activation
    unfused = 0 if liger else 4 * (2 * hidden + query + key)  # norms in float32
    inputs = 3 * hidden + query + 2 * hidden + inner  # of the seven linear layers
    shared = hidden + hidden + inner  # of them, those that no other operation keeps, each once
    dropped = float(tuning.lora.dropout) > 0
    if tuning.method == "LoRA":  # PEFT casts the input for each adapter; dropout leaves its mask of one byte
        adapters = inputs * (width + dropped)
    elif dropped:  # each adapter has its own dropped copy and mask; LLM.int8 keeps the whole input as well
        adapters = inputs * (width + 1) + (shared * width if tuning.quantization.bits == 8 else 0)
    else:
        adapters = shared * width
    return int(width * (norms + attention + mlp + 7 * tuning.lora.rank) + unfused + adapters + 4 * shape.attention_heads)


def _passing(shape: ModelShape, tuning: Tuning) -> int:
    """Bytes for each token that come and go in the backward pass of a layer: at most those of its widest linear layer."""
    width = _width(tuning)
    # The base's gradient, the adapter's before and after its dropout; those of an adapter on 16-bit weights are float32.
    widest = max(shape.intermediate_size, shape.hidden_size) * (width + 2 * (4 if tuning.method == "LoRA" else width))
    return widest + 2 * shape.hidden_size * width


def _scores(shape: ModelShape, training: Training, micro_batch: int, length: int) -> int:
    """Bytes of a layer that grow with the square of the rows' length."""
    mask = 3 * micro_batch * length**2 if micro_batch > 1 else 0  # of padded rows: one byte, and as numbers
    eager = 8 * shape.attention_heads * micro_batch * length**2 if training.extra_args.get("attn_impl") == "eager" else 0
    return mask + eager


def _loss(shape: ModelShape, training: Training, tokens: int, width: int, *, fused: bool) -> int:
    """Bytes of the loss. Liger computes logits in chunks about as large as the hidden states; other losses need all logits, four times in float32."""
    smoothed = float(training.extra_args.get("label_smoothing_factor", "0")) > 0
    if not fused or smoothed or training.extra_args.get("enable_dft_loss") == "true":
        return 16 * tokens * shape.vocabulary_size
    chunks = -(-shape.vocabulary_size // shape.hidden_size)
    chunk = min(tokens, 1 << (-(-tokens // chunks) - 1).bit_length())  # the next power of two
    # The chunk before is let go only when the next one is there; beside them the gradient of the hidden states.
    return (2 * chunk * shape.vocabulary_size + 2 * tokens * shape.hidden_size) * width
