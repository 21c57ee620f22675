"""Which rows train together: the same optimiser steps whatever the number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from student.dataset import StageRows
from student.objectives import Sparse

Indices = npt.NDArray[np.int64]
POOL_STEPS = 32  # optimiser steps whose rows are sorted by length together
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass. Padding stands on the right, so that causal attention needs no mask.

    Attributes:
        inputs: int64 tensors as the model takes them.
        predicts: bool [rows, length], where the output predicts a target token.
        targets: int64 [n], those target tokens, row by row.
        mask: bool [n], False for what only fills a place.
        teacher: the distributions of the same n positions, if they are asked for.
    """

    inputs: dict[str, Tensor]
    predicts: Tensor
    targets: Tensor
    mask: Tensor
    teacher: Sparse | None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        teacher = Sparse(*(t.to(device) for t in self.teacher)) if self.teacher else None
        rest = (self.predicts.to(device), self.targets.to(device), self.mask.to(device))
        return Batch(moved, *rest, teacher)


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on each part."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def plan_epoch(lengths: npt.NDArray[np.integer[Any]], budget: int, seed: int) -> list[Indices]:
    """Cut one epoch into optimiser steps of at most `budget` real tokens each.

    Rows are shuffled, sorted by length within pools of some steps, cut, and the steps shuffled:
    deterministic in `seed`, every row once.

    Args:
        lengths: [rows], prompt and target tokens of each row, none above `budget`.
        budget: tokens of an optimiser step over all processes.
        seed: decides the order.

    Returns:
        Row indices of each step, longest rows first.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths))
    pools = _cut(order, lengths, budget * POOL_STEPS)
    steps = [step for pool in pools for step in _cut(_sorted(pool, lengths), lengths, budget)]
    return [steps[i] for i in random.permutation(len(steps))]


def split_step(
    step: Indices, lengths: npt.NDArray[np.integer[Any]], world: int, limit: int
) -> list[list[Indices]]:
    """Share a step out: for each accumulation round, one micro-batch for each process.

    As few rounds as keep every micro-batch within `limit` padded tokens; a process without rows
    in a round gets an empty one.
    """
    sizes = lengths[step]
    rounds = max(1, -(-int(sizes.sum()) // (limit * world)))
    while True:
        pieces = _balanced(step, sizes, rounds * world)
        widest = max(len(p) * int(lengths[p].max()) for p in pieces if len(p))
        if widest <= limit or rounds * world >= len(step):
            return [pieces[i * world : (i + 1) * world] for i in range(rounds)]
        rounds += 1


def collate(rows: StageRows, indices: Sequence[int] | Indices, pad: int, teacher: bool) -> Batch:
    """Tensors of some rows for a decoder: prompt, target, padding.

    No rows at all make a batch of one masked token, for a process that has to keep step.
    """
    if not len(indices):
        return _idle(rows, pad, teacher)
    parts = [rows.row(int(index)) for index in indices]
    prompts = [len(part["prompt_ids"]) for part in parts]
    ends = [n + len(part["target_ids"]) for n, part in zip(prompts, parts, strict=True)]
    ids = np.full((len(parts), max(ends)), pad, dtype=np.int64)
    predicts = np.zeros(ids.shape, dtype=bool)
    for i, (part, start, end) in enumerate(zip(parts, prompts, ends, strict=True)):
        ids[i, :start] = part["prompt_ids"]
        ids[i, start:end] = part["target_ids"]
        predicts[i, start - 1 : end - 1] = True
    targets = torch.from_numpy(np.concatenate([part["target_ids"] for part in parts])).long()
    return Batch(
        {"input_ids": torch.from_numpy(ids)},
        torch.from_numpy(predicts),
        targets,
        torch.ones_like(targets, dtype=torch.bool),
        _sparse(parts) if teacher else None,
    )


def _idle(rows: StageRows, pad: int, teacher: bool) -> Batch:
    k = int(rows.row(0)["k"][0]) if teacher else 0
    nothing = Sparse(
        torch.zeros(1, k, dtype=torch.long), torch.full((1, k), -torch.inf), torch.zeros(1)
    )
    return Batch(
        {"input_ids": torch.full((1, 2), pad)},
        torch.tensor([[True, False]]),
        torch.zeros(1, dtype=torch.long),
        torch.zeros(1, dtype=torch.bool),
        nothing if teacher else None,
    )


def _sparse(parts: list[dict[str, npt.NDArray[Any]]]) -> Sparse:
    """Distributions of all positions, widened to the largest k by tokens without mass."""
    shapes = [(len(part["target_ids"]), int(part["k"][0])) for part in parts]
    positions, widest = sum(n for n, _ in shapes), max(k for _, k in shapes)
    ids = np.zeros((positions, widest), dtype=np.int64)
    logprobs = np.full((positions, widest), -np.inf, dtype=np.float32)
    first = 0
    for part, (n, k) in zip(parts, shapes, strict=True):
        ids[first : first + n, :k] = part["topk_ids"].reshape(n, k)
        logprobs[first : first + n, :k] = part["topk_logprobs"].reshape(n, k)
        first += n
    tails = np.concatenate([part["tail_logprob"] for part in parts])
    return Sparse(torch.from_numpy(ids), torch.from_numpy(logprobs), torch.from_numpy(tails))


def _sorted(rows: Indices, lengths: npt.NDArray[np.integer[Any]]) -> Indices:
    return rows[np.argsort(-lengths[rows], kind="stable")]


def _cut(rows: Indices, lengths: npt.NDArray[np.integer[Any]], budget: int) -> list[Indices]:
    """Consecutive pieces, each as long as `budget` allows."""
    ends = np.cumsum(lengths[rows])
    pieces, first, spent = [], 0, 0
    while first < len(rows):
        last = max(first + 1, int(np.searchsorted(ends, spent + budget, side="right")))
        pieces.append(rows[first:last])
        first, spent = last, int(ends[last - 1])
    return pieces


def _balanced(step: Indices, sizes: npt.NDArray[np.integer[Any]], pieces: int) -> list[Indices]:
    """Consecutive pieces of about the same number of tokens, none empty while rows suffice."""
    ends = np.cumsum(sizes)
    number = np.arange(1, pieces)
    cuts = np.searchsorted(ends, ends[-1] * number / pieces)
    cuts = np.maximum.accumulate(np.maximum(cuts - number, 0)) + number
    return np.split(step, np.minimum(cuts, np.maximum(len(step) - pieces, 0) + number))
