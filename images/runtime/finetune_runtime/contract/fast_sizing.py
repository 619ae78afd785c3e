"""How a training takes the fast path: rows at a time, what each layer keeps, types and places, by the memory that there is. Arithmetic only.

Every term is a tensor that the fast path holds, in bytes. Shapes: T tokens of a micro-batch (rows are put end to end, without padding), H hidden size,
I inner size of the MLP, Q all query heads, K all key heads (as many numbers as all value heads), V vocabulary, r rank. Activations are bfloat16.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil, sqrt
from typing import Literal

from .fast_path import KEEP_ALL, KEEP_ATTENTION, KEEP_INPUT, FastPlan
from .model_shape import ModelShape
from .sizing import CONTEXT, GIB, NCCL, STATES, Estimate, base_bytes, divisors
from .spec import Toggle, Training, Tuning

# Held beside the tensors of a step: workspaces of cuBLAS and cuDNN for two streams, the allocator's pool of small blocks.
_WORKSPACE = int(0.15 * GIB)
# Holes that the loading of the model leaves, in 16-bit weights of the largest layer: they are on the GPU before they are quantised.
_HOLES = {4: 3, 8: 9}
_LOADING = int(0.1 * GIB)
# A plan fills no more than this share of what may be reserved. Predictions were within 6 % of 28 measured peaks, most of them below 4 %.
_FILL = 0.95
# Driver memory that a process takes after its first CUDA call, as kernels are loaded.
_KERNELS = int(0.4 * GIB)
GRAPH_TOKENS = 2048  # a micro-batch of so many tokens or fewer keeps the GPU waiting for launches; above it a graph wins nothing
_MAX_GRAPHS = 4
_GRAPH_GROWTH = 0.05  # of what a step holds, for each further shape: it reuses the pool of the first, but not all of its blocks
_EVEN_ROWS = 0.9  # mean length over the longest: rows so even are of one shape
_DEVIATIONS = 4  # a micro-batch is longer than its mean by more than so many deviations hardly ever; if it is, the plan is stepped down
_LOSS_TOKENS = (256, 2048)
_STEP_DOWN = 0.9
_LOGIT = 2 + 4 + 4  # bytes of a logit in an evaluation: bfloat16, and float32 before and after the logarithm


@dataclass(frozen=True)
class RowLengths:
    """Tokens of the training rows. `deviation`: the standard deviation; None: not known, then the largest that mean and longest allow."""

    longest: int
    mean: float
    deviation: float | None = None

    @property
    def even(self) -> bool:
        """Whether micro-batches are of one shape, as far as memory and graphs are concerned."""
        return self.mean >= _EVEN_ROWS * self.longest

    def tokens(self, rows: int) -> int:
        """Tokens that `rows` rows together hardly ever exceed."""
        spread = sqrt(self.mean * max(0.0, self.longest - self.mean)) if self.deviation is None else self.deviation
        likely = max(rows * self.mean + _DEVIATIONS * sqrt(rows) * spread, self.longest + (rows - 1) * self.mean)
        return max(1, min(rows * self.longest, ceil(likely)))


@dataclass(frozen=True)
class Numbers:
    """Types that a checkpoint's optimizer state depends on: a run that goes on from one keeps them."""

    lora_dtype: Literal["float32", "bfloat16"]
    optimizer: str
    masters: Literal["none", "stochastic"] = "none"


FULL = Numbers("float32", "adamw_torch_fused")
EIGHT_BIT = Numbers("float32", "adamw_8bit")
SMALL = Numbers("bfloat16", "adamw_8bit", "stochastic")


@dataclass(frozen=True)
class Setting:
    """One way of taking the fast path."""

    micro_batch: int
    keep: tuple[int, ...]
    numbers: Numbers
    embedding_on_cpu: bool


@dataclass(frozen=True)
class Job:
    """What a plan is made for. `numbers`: those of the checkpoint that the training goes on from. `correction`: measured over predicted peak of a run of it."""

    shape: ModelShape
    tuning: Tuning
    training: Training
    rows: RowLengths
    gpus: int = 1
    numbers: Numbers | None = None
    correction: float = 1.0

    @property
    def per_gpu(self) -> int:
        """Rows of an optimizer step on one GPU."""
        return max(1, self.training.effective_batch_size // self.gpus)


def usable(free: int, gpus: int = 1) -> int:
    """Bytes that torch may reserve where the driver says that `free` are free to a process that has a CUDA context already. `gpus`: of the training."""
    return max(0, free - _KERNELS - (NCCL if gpus > 1 else 0))


def budget_for(predicted_bytes: int) -> int:
    """The budget that a plan of so many bytes just fits."""
    return ceil(predicted_bytes / _FILL)


def plan(job: Job, budget: int) -> FastPlan:
    """The fastest way that fits `budget` bytes of reserved memory; the smallest one there is where none does.

    The largest micro-batch with which every layer keeps all; layers keep less only where one row, or the rows that the job asks for, would not fit.
    """
    room = int(budget * _FILL)
    return _described(job, _fastest(job, room) or smallest(job), budget)


def smaller(job: Job, current: FastPlan, *, at_once: bool = False) -> FastPlan | None:
    """The next plan after one that did not fit, or the smallest of all `at_once`; None when it was the smallest. The budget was wrong, so it does not count."""
    room = int(current.predicted_bytes * _STEP_DOWN)
    least = smallest(job)
    if predicted(job, least) >= current.predicted_bytes:
        return None
    if at_once:
        return _described(job, least, current.budget_bytes)
    return _described(job, _fastest(job, room) or least, budget_for(room))


def smallest(job: Job) -> Setting:
    """What needs the least memory."""
    numbers, on_cpu = _places(job)[-1]
    least = KEEP_ALL if job.training.gradient_checkpointing is Toggle.OFF else KEEP_INPUT
    return Setting(1, (least,) * job.shape.layers, numbers, on_cpu)


def requirement(job: Job) -> Estimate:
    """Memory that one GPU must have for the job to run at all: with the rows at a time that it asks for, or with one where it leaves that to us."""
    found = smallest(job)
    if isinstance(job.training.micro_batch_size, int):
        found = replace(found, micro_batch=_sizes(job)[0])
    return estimate(job, found)


def predicted(job: Job, setting: Setting) -> int:
    """Bytes that torch will have reserved at the peak."""
    return int(estimate(job, setting).reserved * job.correction)


def estimate(job: Job, setting: Setting, *, tokens: int | None = None) -> Estimate:
    """Memory of one GPU at the peak of a step, by what holds it. `tokens`: those of the micro-batch, where they are known."""
    shape, tuning = job.shape, job.tuning
    tokens, rank = tokens or job.rows.tokens(setting.micro_batch), tuning.lora.rank
    trained = rank * sum(shape.adapter_widths.values())
    width = 4 if setting.numbers.lora_dtype == "float32" else 2
    cast = 0 if width == 2 else 2 * trained // shape.layers  # the bfloat16 copy of one layer's adapter
    embedding = 0 if shape.tie_word_embeddings else shape.vocabulary_size * shape.hidden_size * 2
    tables = (shape.embedding_parameters + shape.other_parameters) * 2
    base, adapter = base_bytes(shape, tuning), trained * width
    dropout = float(tuning.lora.dropout) > 0
    kept, layer = _layers(shape, rank, tokens, setting.keep, dropout=dropout)
    # The gradient of the logits is formed with them: two chunks are there when one follows another, and three hidden states of the last layer.
    loss = 2 * loss_tokens(tokens) * shape.vocabulary_size * 2 + 3 * tokens * shape.hidden_size * 2
    churn = _passing(shape, rank, min(setting.keep), dropout=dropout) * tokens
    holes = _HOLES[tuning.quantization.bits] * 2 * shape.largest_linear if tuning.method == "QLoRA" else 0
    overhead = _WORKSPACE + churn + holes
    growth = _GRAPH_GROWTH * max(0, _graphs(job, setting) - 1)  # by micro-batches that are graphs, so by the short ones only
    step = Estimate(
        base=base,
        embeddings=tables - (embedding if setting.embedding_on_cpu else 0),
        adapter=adapter + cast,
        gradients=adapter,
        optimizer=int(STATES[setting.numbers.optimizer] * trained),
        hidden_states=kept,
        layer=layer,
        loss=max(0, loss - layer),
        dequantised=_weight_buffer(shape, rank),
        overhead=overhead + int(growth * min(1, GRAPH_TOKENS / tokens) * (kept + max(layer, loss))),
        nccl=NCCL if job.gpus > 1 else 0,  # and no more: all processes sum the one gradient buffer where it is
    )
    # Before the first step the whole embedding is on the GPU.
    short = base + tables + adapter + _LOADING - step.reserved
    return replace(step, overhead=step.overhead + short) if short > 0 else step


def loss_tokens(tokens: int) -> int:
    """Tokens whose logits exist at once: a quarter of the micro-batch, a power of two."""
    least, most = _LOSS_TOKENS
    return max(least, min(most, (1 << (tokens - 1).bit_length()) // 4))


def numbers_of(chosen: FastPlan) -> Numbers:
    """The types of a plan."""
    return Numbers(chosen.lora_dtype, chosen.optimizer, chosen.masters)


def required(job: Job) -> int:
    """What the GPU must have free in all."""
    found = requirement(job)
    return int(found.reserved * job.correction) + found.nccl + CONTEXT


def _attention_sizes(shape: ModelShape) -> tuple[int, int]:
    return shape.attention_heads * shape.head_dim, shape.key_value_heads * shape.head_dim


def _kept(shape: ModelShape, rank: int) -> tuple[int, int, int]:
    """Bytes that a layer keeps for each token, by what it keeps. Of Qwen3-8B at rank 64: 8, 37 and 87 KB."""
    query, key = _attention_sizes(shape)
    hidden, inner = shape.hidden_size, shape.intermediate_size
    least = 2 * hidden
    # q, k and v; the attention's output and its float32 normaliser per head; the hidden state after it; the inputs of four adapters after A.
    attention = 2 * (query + 2 * key + query + hidden + 4 * rank) + 4 * shape.attention_heads
    everything = 2 * (2 * inner + 5 * rank)  # gate and up with room for the adapters' part of the product; the other three inputs after A
    return least, least + attention, least + attention + everything


def _passing(shape: ModelShape, rank: int, keep: int, *, dropout: bool) -> int:
    """Bytes for each token that come and go in a layer's backward pass at its peak, which is in its MLP."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    passing = 2 * (2 * hidden + inner)  # gradient of the output, with and without the adapters' part; that of the activation
    if dropout:
        passing += 2 * inner  # the activation after its dropout
    if keep < KEEP_ALL:
        passing += 2 * 2 * inner  # gate and up once more
    if keep < KEEP_ATTENTION:
        least, attention, _ = _kept(shape, rank)
        passing += attention - least
    return passing


def _layers(shape: ModelShape, rank: int, tokens: int, keep: Sequence[int], *, dropout: bool) -> tuple[int, int]:
    """(kept by all layers, what comes on top at the peak of the backward pass). Layers after the one that is computed have let go of theirs by then."""
    bytes_kept = _kept(shape, rank)
    passing = [_passing(shape, rank, level, dropout=dropout) for level in (KEEP_INPUT, KEEP_ATTENTION, KEEP_ALL)]
    so_far = list(accumulate(bytes_kept[level] for level in keep))
    peak = max(kept + passing[level] for kept, level in zip(so_far, keep, strict=True))
    return tokens * so_far[-1], tokens * max(0, peak - so_far[-1])


def _weight_buffer(shape: ModelShape, rank: int) -> int:
    """Bytes of the one buffer that each frozen weight is written into, those of one input side by side and the adapter's matrix beside them."""
    query, key = _attention_sizes(shape)
    hidden, inner = shape.hidden_size, shape.intermediate_size
    groups = ((query + 2 * key, hidden, 3), (hidden, query, 1), (2 * inner, hidden, 2), (hidden, inner, 1))
    return 2 * max(max(rows * (columns + count * rank), (rows + count * rank) * columns) for rows, columns, count in groups)


def _places(job: Job) -> list[tuple[Numbers, bool]]:
    """(types, embedding on the CPU), from what is fastest and most exact to what is smallest."""
    wanted = job.training.extra_args.get("optim")
    if job.numbers:
        choices = [job.numbers]
    elif wanted == "adamw_8bit":
        choices = [EIGHT_BIT, SMALL]
    else:
        choices = [Numbers("float32", wanted)] if wanted else [FULL, EIGHT_BIT, SMALL]
    if job.shape.tie_word_embeddings:
        return [(numbers, False) for numbers in choices]
    places = [(numbers, False) for numbers in choices if numbers.lora_dtype == "float32"] or [(choices[0], False)]
    on_cpu = [(numbers, True) for numbers in choices if numbers != FULL or len(choices) == 1]
    return [*places, *on_cpu]


def _sizes(job: Job) -> list[int]:
    """Rows at a time that may be tried, the most first."""
    wanted = job.training.micro_batch_size
    return [size for size in divisors(job.per_gpu) if wanted == "Auto" or size <= wanted]


def _fastest(job: Job, room: int) -> Setting | None:
    return next((setting for setting in _ways(job, room) if predicted(job, setting) <= room), None)


def _ways(job: Job, room: int) -> Iterator[Setting]:
    """Ways from the fastest to the slowest; those of mixed layers keep as much as `room` allows."""
    layers, places, sizes = job.shape.layers, _places(job), _sizes(job)
    full = [place for place in places if place[0].lora_dtype == "float32"] or places
    less = job.training.gradient_checkpointing is not Toggle.OFF
    asked = job.training.micro_batch_size != "Auto"
    for size in sizes:
        yield from (Setting(size, (KEEP_ALL,) * layers, *place) for place in (places if size == 1 and not less else full))
        if less and (asked or size == 1):
            # The last of the exact places first, then those that round.
            yield from (_mixed(job, size, place, room) for place in (full[-1], *(place for place in places if place not in full)))
    if not less:
        yield Setting(1, (KEEP_ALL,) * layers, *places[-1])


def _mixed(job: Job, size: int, place: tuple[Numbers, bool], room: int) -> Setting:
    """As many layers as possible keep all, then as many as possible what the attention made.

    They are the last ones: when the backward pass comes to layers that compute everything once more, these have let go of theirs.
    """
    layers = job.shape.layers

    def most(of: int, levels: Callable[[int], tuple[int, ...]]) -> int:
        """The largest number of layers up to `of` that fits; found by halving, as each one adds."""
        low, high = 0, of
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if predicted(job, Setting(size, levels(middle), *place)) <= room else (low, middle - 1)
        return low

    everything = most(layers, lambda count: (KEEP_INPUT,) * (layers - count) + (KEEP_ALL,) * count)
    rest = layers - everything
    attention = most(rest, lambda count: (KEEP_INPUT,) * (rest - count) + (KEEP_ATTENTION,) * count + (KEEP_ALL,) * everything)
    return Setting(size, (KEEP_INPUT,) * (rest - attention) + (KEEP_ATTENTION,) * attention + (KEEP_ALL,) * everything, *place)


def _graphs(job: Job, setting: Setting) -> int:
    """Shapes that run as CUDA graphs."""
    if setting.micro_batch * job.rows.mean > GRAPH_TOKENS:
        return 0
    return 1 if job.rows.even else _MAX_GRAPHS


def _evaluation_batch(job: Job, setting: Setting) -> int:
    """Rows of an evaluation, which goes ms-swift's way: it computes all logits, padding included, where a step has its activations."""
    found = estimate(job, setting)
    row = job.rows.longest * _LOGIT * job.shape.vocabulary_size
    return max(1, min(setting.micro_batch, (found.hidden_states + found.layer + found.loss) // row))


def _described(job: Job, setting: Setting, budget: int) -> FastPlan:
    graphs = _graphs(job, setting)
    return FastPlan(
        micro_batch=setting.micro_batch,
        accumulation=max(1, job.per_gpu // setting.micro_batch),
        keep=list(setting.keep),
        row_tokens=job.rows.longest,
        graph_tokens=GRAPH_TOKENS if graphs else 0,
        max_graphs=graphs,
        lora_dtype=setting.numbers.lora_dtype,
        optimizer=setting.numbers.optimizer,
        masters=setting.numbers.masters,
        embedding_on_cpu=setting.embedding_on_cpu,
        evaluation_batch=_evaluation_batch(job, setting),
        loss_tokens=loss_tokens(job.rows.tokens(setting.micro_batch)),
        predicted_bytes=predicted(job, setting),
        budget_bytes=budget,
    )
