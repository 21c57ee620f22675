"""Which rows train together: the same optimiser steps whatever the number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from student.dataset import StageRows
from student.objectives import Drawn, Realised, Sparse, Teacher

Indices = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
Row = dict[str, Array]
POOL_STEPS = 32  # optimiser steps whose rows are sorted by length together


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass. Padding stands on the right, so that causal attention needs no mask.

    Packed rows are one row here, whose `position_ids` begin anew with each: by them transformers
    keeps attention within a row.

    Attributes:
        inputs: int64 tensors as the model takes them.
        predicts: bool [rows, length], where the output predicts a target token.
        targets: int64 [n], those target tokens, row by row.
        mask: bool [n], False for what only fills a place.
        teacher: the distributions of the same n positions, if they are asked for.
        realised: what the teacher makes of the n target tokens, if that is asked for.
    """

    inputs: dict[str, Tensor]
    predicts: Tensor
    targets: Tensor
    mask: Tensor
    teacher: Teacher | None
    realised: Realised | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; from pinned memory nobody waits for the copy."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch where an accelerator copies from by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        inputs = {name: change(tensor) for name, tensor in self.inputs.items()}
        teacher = type(self.teacher)(*map(change, self.teacher)) if self.teacher else None
        rest = (change(self.predicts), change(self.targets), change(self.mask))
        realised = Realised(*map(change, self.realised)) if self.realised else None
        return Batch(inputs, *rest, teacher, realised)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model takes its input. `start` begins a decoder's input; None is a decoder alone.

    `packed` puts the rows of a micro-batch one after another in one sequence.
    """

    pad: int
    start: int | None = None
    packed: bool = False


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
    step: Indices,
    lengths: npt.NDArray[np.integer[Any]],
    world: int,
    limit: int,
    packed: bool = False,
) -> list[list[Indices]]:
    """Share a step out: for each accumulation round, one micro-batch for each process.

    As few rounds as keep every micro-batch within `limit` padded tokens, of which packed rows have
    none; a process without rows in a round gets an empty one.
    """
    sizes = lengths[step]
    rounds = max(1, -(-int(sizes.sum()) // (limit * world)))
    while True:
        pieces = _balanced(step, sizes, rounds * world)
        widest = max(_size(lengths[p], packed) for p in pieces if len(p))
        if widest <= limit or rounds * world >= len(step):
            return [pieces[i * world : (i + 1) * world] for i in range(rounds)]
        rounds += 1


def collate(
    rows: StageRows,
    indices: Sequence[int] | Indices,
    layout: Layout,
    teacher: bool,
    realised: Mapping[int, npt.NDArray[np.float32]] | None = None,
) -> Batch:
    """Tensors of some rows, with the teacher's distributions if asked for.

    No rows at all make a batch of a row that is masked, for a process that has to keep step.
    `realised` holds what `Realised` does, [4, target tokens], of every row of the step.
    """
    idle = next(iter(realised)) if realised else 0
    chosen = [int(index) for index in indices] or [idle]
    parts = [rows.row(index) for index in chosen]
    arrange = _arrangement(layout)
    inputs, predicts = arrange(parts, layout)
    targets = torch.from_numpy(np.concatenate([part["target_ids"] for part in parts])).long()
    return Batch(
        {name: torch.from_numpy(array) for name, array in inputs.items()},
        torch.from_numpy(predicts),
        targets,
        torch.full(targets.shape, len(indices) > 0),
        _teacher(parts) if teacher else None,
        _realised([realised[index] for index in chosen]) if realised else None,
    )


def _size(lengths: npt.NDArray[np.integer[Any]], packed: bool) -> int:
    return int(lengths.sum() if packed else len(lengths) * lengths.max())


def _arrangement(layout: Layout) -> Callable[[list[Row], Layout], tuple[dict[str, Array], Array]]:
    if layout.start is not None:
        return _encoder_decoder
    return _packed if layout.packed else _decoder


def _packed(parts: list[Row], _: Layout) -> tuple[dict[str, Array], Array]:
    """All rows in one sequence; the last position of a row predicts nothing of the next."""
    joined = [np.concatenate([part["prompt_ids"], part["target_ids"]]) for part in parts]
    places = [np.arange(len(whole)) for whole in joined]
    predicts = [
        (place >= len(part["prompt_ids"]) - 1) & (place < len(place) - 1)
        for part, place in zip(parts, places, strict=True)
    ]
    ids = np.concatenate(joined).astype(np.int64)
    return (
        {"input_ids": ids[None], "position_ids": np.concatenate(places)[None]},
        np.concatenate(predicts)[None],
    )


def _decoder(parts: list[Row], layout: Layout) -> tuple[dict[str, Array], Array]:
    """Prompt and target in one sequence; the position before a token predicts it."""
    joined = [np.concatenate([part["prompt_ids"], part["target_ids"]]) for part in parts]
    ids = _padded(joined, layout.pad)
    predicts = np.zeros(ids.shape, dtype=bool)
    for i, (part, whole) in enumerate(zip(parts, joined, strict=True)):
        predicts[i, len(part["prompt_ids"]) - 1 : len(whole) - 1] = True
    return {"input_ids": ids}, predicts


def _encoder_decoder(parts: list[Row], layout: Layout) -> tuple[dict[str, Array], Array]:
    """Prompts for the encoder; targets, one place to the right, for the decoder."""
    prompts = [part["prompt_ids"] for part in parts]
    shifted = [np.concatenate([[layout.start or 0], part["target_ids"][:-1]]) for part in parts]
    inputs = {
        "input_ids": _padded(prompts, layout.pad),
        "attention_mask": _lengths_mask(prompts).astype(np.int64),
        "decoder_input_ids": _padded(shifted, layout.pad),
    }
    return inputs, _lengths_mask(shifted)


def _padded(lists: list[Array], pad: int) -> Array:
    ids = np.full((len(lists), max(map(len, lists))), pad, dtype=np.int64)
    ids[_lengths_mask(lists)] = np.concatenate(lists)
    return ids


def _lengths_mask(lists: list[Array]) -> Array:
    lengths = np.array([len(entry) for entry in lists])
    mask: Array = np.arange(lengths.max()) < lengths[:, None]
    return mask


def _teacher(parts: list[Row]) -> Teacher:
    """Distributions of all positions, as wide as the widest by entries without mass."""
    flat = {
        name: np.concatenate([part[name] for part in parts])
        for name in ("widths", "topk_ids", "topk_logprobs", "tail_logprob", "counts")
    }
    ids = torch.from_numpy(_filled(flat["topk_ids"], flat["widths"], 0)).long()
    if parts[0]["draws"][0] == 0:
        logprobs = _filled(flat["topk_logprobs"], flat["widths"], -np.inf)
        return Sparse(ids, torch.from_numpy(logprobs), torch.from_numpy(flat["tail_logprob"]))
    counts = torch.from_numpy(_filled(flat["counts"], flat["widths"], 0)).float()
    return Drawn(ids, counts / counts.sum(-1, keepdim=True))


def _realised(parts: list[npt.NDArray[np.float32]]) -> Realised:
    return Realised(*torch.from_numpy(np.concatenate(parts, axis=1)))


def _filled(values: Array, widths: Array, filler: float) -> Array:
    """Flat entries as [positions, widest]; a position that has fewer ends in fillers."""
    widest = int(widths.max())
    if widths.min() == widest:
        return values.reshape(len(widths), widest)
    filled = np.full((len(widths), widest), filler, values.dtype)
    filled[np.arange(widest) < widths[:, None]] = values
    return filled


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
