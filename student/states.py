"""Hidden states of some layers at the positions that predict a target token, and their distance."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleDict, ModuleList


def hidden_mse(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Σ over pairs of layers of (1/d)·‖s − t‖², [n]: mean over the width, sum over the layers.

    Intermediate supervision as DistilBART's code has it (arXiv 2010.13002, there in TinyBERT's
    stead, arXiv 1909.10351): divided by tokens and width, and not by the number of layers. Hence
    its weight of 3 means here what it means there, but over target tokens alone.

    Args:
        student: of each pair float [n, d], brought to the teacher's width.
        teacher: of each pair float [n, d].
        mask: bool [n]; where False the value is 0 and no gradient flows.

    Returns:
        Float32 at least, in the square of the states' own unit.
    """
    values = torch.zeros(len(mask), device=mask.device)
    for ours, theirs in zip(student, teacher, strict=True):
        values = values + (_precise(ours) - _precise(theirs)).square().mean(-1)
    return torch.where(mask, values, 0.0)


class States:
    """What chosen layers of a model put out, kept at chosen positions until it is taken.

    A layer's output is what the next one reads: before any norm that follows the last.

    Attributes:
        predicts: bool [rows, length], the positions; set before a forward pass.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.predicts: Tensor | None = None
        self._layers = tuple(layers)
        self._found: dict[int, Tensor] = {}

    def listen(self, blocks: ModuleList) -> None:
        """From now on see what the layers of `blocks` put out.

        To be called when DeepSpeed has the model: ZeRO-3 fetches a layer's weights for the backward
        pass where its own hook has changed the output, and a hook sees the changes of those before.
        """
        for layer in set(self._layers):
            blocks[layer].register_forward_hook(partial(self._keep, layer))

    def take(self) -> list[Tensor]:
        """States of the last forward pass, float [n, width] of each layer; they are let go of."""
        found, self._found = self._found, {}
        return [found[layer] for layer in self._layers]

    def _keep(self, layer: int, _: Module, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self._found[layer] = hidden[self.predicts]


class Taught(Module):
    """A student, and what brings its states to its teacher's width: one module to train.

    Called as the student is; the states of the pass stand in `told` then. Where the widths are
    equal nothing is learned beside the student. Elsewhere each layer has a matrix of its own, W of
    TinyBERT's MSE(H·W, teacher's H). It begins as the identity's leading part: a narrower student
    starts from the leading units of its teacher, and no random number is drawn.

    Attributes:
        student: the model that is exported.
        told: of each layer float [n, teacher's width], of the last forward pass.
    """

    def __init__(self, student: Module, layers: Sequence[int], ours: int, theirs: int) -> None:
        super().__init__()
        self.student, self.states = student, States(layers)
        names = [str(layer) for layer in layers] if ours != theirs else []
        self.projections = ModuleDict({name: _leading(ours, theirs) for name in names})
        self.told: list[Tensor] = []

    def forward(self, **inputs: Any) -> Any:
        """The student's own output."""
        output = self.student(**inputs)
        self.told = self.states.take()
        if self.projections:
            pairs = zip(self.projections.values(), self.told, strict=True)
            self.told = [project(state) for project, state in pairs]
        return output


def _leading(ours: int, theirs: int) -> Linear:
    linear = Linear(ours, theirs, bias=False)
    torch.nn.init.eye_(linear.weight)
    return linear


def _precise(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))
