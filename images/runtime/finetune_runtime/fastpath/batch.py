"""What of a micro-batch is computed on the CPU, while it is collated, so that the GPU is never waited for.

Rows lie one after another without the padding between them. A batch that will run as a CUDA graph has one of few shapes: its tokens are filled up to a
multiple of a bucket with a row of their own that is not trained, and so is the number of rows to a multiple of ROWS with empty ones.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from finetune_runtime.contract.fast_path import FastPlan

from .attention import Rows

FAST = "fast"  # key of the batch
IGNORED = -100
ROWS = 8
_TILE = 256  # tokens: what products and attention work off at once

Batch = dict[str, Any]


@dataclass(frozen=True)
class Shapes:
    """The shapes of a plan's graphs: so many tokens at most, in multiples of a bucket; tokens of the longest row."""

    most: int
    bucket: int
    longest: int


def shapes(plan: FastPlan) -> Shapes | None:
    """As many shapes as the plan has graphs, and one more for rows that are all full; None for a plan without graphs."""
    if not plan.max_graphs or not plan.graph_tokens:
        return None
    most = min(plan.graph_tokens, -(-plan.micro_batch * plan.row_tokens // _TILE) * _TILE)
    bucket = -(-most // plan.max_graphs // _TILE) * _TILE
    return Shapes(most, bucket, plan.row_tokens)


def prepare(batch: Batch, graphs: Shapes | None, embedding: torch.Tensor | None) -> Batch:
    """The part of a batch that the fast path reads, of a collated batch of ms-swift: input_ids, labels [B, S] int64; attention_mask, position_ids if any.

    ids: int64 [T], or embedded: [T, H] where the embedding is on the CPU; positions: int64 [P], see ops.rope; rows: number of rows of one length, or
    bounds: int32 [R + 1] and longest (see attention.Rows); labels: int64 [N], the next token of each trained one; trained: int64 [N], which those are,
    or absent in a graph, where N = T and untrained labels are -100; scale: float32 [1], 1 / trained tokens; graph: whether the shape is one of few.
    """
    ids, labels, positions, bounds = _without_padding(batch)
    count = int((labels != IGNORED).sum())
    graph = graphs if graphs and ids.shape[0] <= graphs.most else None
    result: Batch = {"scale": torch.tensor([1 / max(1, count)], dtype=torch.float32), "graph": graph is not None}
    rows = batch["input_ids"].shape[0]
    if graph and (bounds is not None or ids.shape[0] < graph.most):
        if bounds is None:
            bounds = torch.arange(rows + 1, dtype=torch.int32) * (ids.shape[0] // rows)
            positions = positions.repeat(rows)
        ids, labels, positions, bounds = _filled(ids, labels, positions, bounds, graph.bucket)
    if graph:
        result["labels"] = labels
    else:
        result["trained"] = torch.nonzero(labels != IGNORED)[:, 0]
        result["labels"] = labels[result["trained"]]
    if bounds is None:
        result |= {"rows": rows}
    else:
        longest = int((bounds[1:] - bounds[:-1]).max())
        result |= {"rows": 0, "bounds": bounds, "longest": max(longest, graph.longest, graph.bucket) if graph else longest}
    result |= {"positions": positions} | ({"ids": ids} if embedding is None else {"embedded": F.embedding(ids, embedding)})
    return result


def first(part: Batch, tokens: int) -> Batch:
    """A part made by `prepare` without graphs whose loss is that of its first so many trained tokens, at least one."""
    return part | {"trained": part["trained"][:tokens], "labels": part["labels"][:tokens], "scale": torch.full_like(part["scale"], 1 / tokens)}


def rows_of(batch: Batch) -> Rows:
    return Rows(batch["rows"], batch.get("bounds"), batch.get("longest", 0))


def _without_padding(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """ids [T], next tokens [T], positions [T] and bounds; or, where every row is full, positions [S] and no bounds."""
    ids, labels, mask, positions = batch["input_ids"], batch["labels"], batch.get("attention_mask"), batch.get("position_ids")
    count, length = ids.shape
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    if positions is not None and count == 1 and positions.dim() == 2 and bool((positions[0, 1:] == 0).any()):  # rows that ms-swift has packed
        starts = torch.nonzero(positions[0] == 0)[:, 0]
        following[0, starts[1:] - 1] = IGNORED
        return ids[0], following[0], positions[0], F.pad(starts, (0, 1), value=length).to(torch.int32)
    if mask is None or bool(mask.all()):
        return ids.reshape(-1), following.reshape(-1), torch.arange(length), None
    real = mask.bool()
    following[:, :-1][~real[:, 1:]] = IGNORED
    bounds = F.pad(real.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    return ids[real], following[real], (real.cumsum(1) - 1)[real], bounds


def _filled(
    ids: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor, bounds: torch.Tensor, bucket: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    missing = -ids.shape[0] % bucket
    total = ids.shape[0] + missing
    ids, positions, labels = F.pad(ids, (0, missing)), F.pad(positions, (0, missing)), F.pad(labels, (0, missing), value=IGNORED)
    # One more row for the filling, if any; then empty rows.
    return ids, labels, positions, F.pad(bounds, (0, -bounds.shape[0] % ROWS or ROWS), value=total)
