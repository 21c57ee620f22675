"""The student's log-probabilities at a few tokens of each position, and nothing as wide as all.

Written out in PyTorch, logsumexp and each gather make a [positions, vocabulary] tensor of their own
for the backward pass. Here one gradient is put together, in the dtype of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits that are float32 at once. On a CPU so many stay in the cache; an accelerator wants more,
# because every chunk costs it some launches.
CPU_CHUNK = 1 << 20
DEVICE_CHUNK = 1 << 24


def chosen_logprobs(logits: Tensor, ids: Tensor, average: bool = False) -> Tensor:
    """Natural log-probabilities of some tokens of each position, in float32 at least.

    Args:
        logits: [n, vocabulary], any float dtype; −inf is no mass.
        ids: int64 [n, m]; a token may stand twice.
        average: add a last column, the mean of log q over the vocabulary.

    Returns:
        [n, m] or [n, m + 1], in nats; float64 where the logits are. Differentiable once.
    """
    chosen: Tensor = _Chosen.apply(logits, ids, average)  # type: ignore[no-untyped-call]
    return chosen


class _Chosen(torch.autograd.Function):
    """∂ log q_i / ∂z_v = [i = v] − q_v, so that all g_i make Σ_i g_i·[i = v] − q_v·Σ_i g_i."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, average: bool) -> Tensor:
        exact = torch.promote_types(logits.dtype, torch.float32)
        (n, _), m = logits.shape, ids.shape[-1]
        # Whole from the start: small results between freed chunks would keep the heap in pieces.
        sums = logits.new_empty(n, 1, dtype=exact)
        found = logits.new_empty(n, m + average, dtype=exact)
        for part in _parts(logits):
            wide = logits[part].to(exact)
            sums[part] = wide.logsumexp(-1, keepdim=True)
            found[part, :m] = wide.gather(-1, ids[part])
            if average:
                found[part, m] = wide.mean(-1)
        ctx.save_for_backward(logits, ids, sums)
        return found.sub_(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None, None]:
        logits, ids, sums = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for part in _parts(logits):
            wide = (logits[part] - sums[part]).exp_()
            wide.mul_(-given[part].sum(-1, keepdim=True))
            if given.shape[-1] > ids.shape[-1]:
                wide.add_(given[part, -1:] / logits.shape[-1])
            wide.scatter_add_(-1, ids[part], given[part, : ids.shape[-1]])
            gradient[part] = wide
        return gradient, None, None


def _parts(logits: Tensor) -> Iterator[slice]:
    elements = CPU_CHUNK if logits.device.type == "cpu" else DEVICE_CHUNK
    rows = max(1, elements // logits.shape[-1])
    return (slice(first, first + rows) for first in range(0, len(logits) or 1, rows))
