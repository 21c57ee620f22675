"""Head and loss over a few target positions at a time, so that their logits never stand whole.

The loss is a sum over positions, so a chunk's gradients are known as soon as its logits are: they
are taken at once, and the backward pass only scales them. Nothing is computed twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from factory.errors import RunError
from student.batches import Batch
from student.objectives import Weights, combine, per_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits of a chunk, and its fewest positions: every chunk adds to a gradient as large as the head.
CPU_CHUNK, DEVICE_CHUNK, FEWEST = 1 << 22, 1 << 26, 256
Work = Callable[[Tensor, Sequence[Tensor], slice], Tensor]


class _Known(torch.nn.Module):
    """Stands for a backbone whose last hidden states are known."""

    def __init__(self, kind: type[Any]) -> None:
        super().__init__()
        self.kind, self.hidden = kind, torch.empty(0)

    def forward(self, *_: Any, **__: Any) -> Any:
        """What the backbone would return."""
        return self.kind(last_hidden_state=self.hidden)


class ChunkedHead:
    """What a model does after its backbone: the head, and whatever changes its logits.

    It is the model's own forward pass over a backbone that already knows its answer, so that no
    scale or cap of an architecture has to be known here.

    Raises:
        RunError: the model does not part into a backbone and a head in this way.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if model.base_model is model:
            raise _refused(model)
        self._shell = copy.copy(model)
        with torch.inference_mode():
            ids = torch.arange(3)[None]
            inputs = {"input_ids": ids, "use_cache": False}
            if model.config.is_encoder_decoder:
                inputs["decoder_input_ids"] = ids
            trained = model.training
            model.eval()
            made, wanted = model.base_model(**inputs), model(**inputs).logits
            model.train(trained)
        self._known = _Known(type(made))
        self._shell._modules = {**model._modules, model.base_model_prefix: self._known}
        self._names = [name for name, _ in self._shell.named_parameters()]
        self._vocabulary = wanted.shape[-1]
        with torch.inference_mode():
            got = self._logits(made.last_hidden_state[0], self._parameters())
        if not torch.allclose(got, wanted[0], atol=1e-5 * float(wanted.abs().max())):
            raise _refused(model)

    def loss(
        self, hidden: Tensor, batch: Batch, weights: Weights
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of a batch's terms, and what each term is at each target.

        Args:
            hidden: [n, width] of the positions that predict the n targets.
            batch: targets, mask, and what the teacher makes of them.
            weights: which terms there are.

        Returns:
            A number to differentiate by `hidden` and the head, once; and of each term [n].
        """
        names: list[str] = []

        def work(piece: Tensor, parameters: Sequence[Tensor], part: slice) -> Tensor:
            logits = self._logits(piece, parameters)
            teacher = type(batch.teacher)(*_cut(batch.teacher, part)) if batch.teacher else None
            realised = type(batch.realised)(*_cut(batch.realised, part)) if batch.realised else None
            given = (batch.targets[part], teacher, batch.mask[part], weights, realised)
            terms = per_token(logits, *given)
            names[:] = terms
            return torch.stack([combine(terms, weights), *terms.values()])

        elements = CPU_CHUNK if hidden.device.type == "cpu" else DEVICE_CHUNK
        size = max(FEWEST, elements // self._vocabulary)
        loss, values = _InChunks.apply(hidden, work, size, *self._parameters())  # type: ignore[no-untyped-call]
        return loss, dict(zip(names, values, strict=True))

    def _parameters(self) -> list[Tensor]:
        return [parameter for _, parameter in self._shell.named_parameters()]

    def _logits(self, hidden: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """[n, vocabulary] of hidden states [n, width]."""
        self._known.hidden = hidden[None]
        given = dict(zip(self._names, parameters, strict=True))
        options = {"input_ids": None, "use_cache": False}
        logits: Tensor = functional_call(self._shell, given, (), options).logits[0]
        return logits


class _InChunks(torch.autograd.Function):
    """The sum of the first row that `work` gives of each chunk, differentiable; and the rest."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, work: Work, size: int, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        leaves = [p.detach().requires_grad_(p.requires_grad) for p in parameters]
        trained = [leaf for leaf in leaves if leaf.requires_grad]
        exact = [torch.zeros_like(leaf, dtype=_exact(leaf)) for leaf in trained]
        gradient, values = torch.empty_like(hidden), []
        for first in range(0, len(hidden), size):
            part = slice(first, first + size)
            piece = hidden[part].detach().requires_grad_()
            with torch.enable_grad():
                found = work(piece, leaves, part)
                gradient[part], *more = torch.autograd.grad(found[0].sum(), [piece, *trained])
            for whole, new in zip(exact, more, strict=True):
                whole.add_(new)
            values.append(found.detach())
        ctx.save_for_backward(
            gradient, *(g.to(p.dtype) for g, p in zip(exact, trained, strict=True))
        )
        ctx.trained = [leaf.requires_grad for leaf in leaves]
        losses, others = torch.cat(values, -1).tensor_split([1])
        ctx.mark_non_differentiable(others)
        return losses.sum(), others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradient, *rest = (saved * given for saved in ctx.saved_tensors)
        left = iter(rest)
        return (gradient, None, None, *(next(left) if t else None for t in ctx.trained))


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _cut(tensors: Sequence[Tensor], part: slice) -> list[Tensor]:
    return [tensor[part] for tensor in tensors]


def _refused(model: PreTrainedModel) -> RunError:
    remedy = f"{model.config.model_type} has no head that stands apart: leave it out"
    return RunError("student.chunked_head", True, remedy)
