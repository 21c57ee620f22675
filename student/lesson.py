"""A teacher that is there while its student trains, and what its hidden states make of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import ModuleList

from factory.errors import ManifestError, RunError
from factory.manifest import Manifest
from factory.matching import layers_of, matched_layers
from factory.training import Stage
from student.batches import Batch
from student.initialise import load
from student.packing import check_packing
from student.plan import student_of
from student.states import States, Taught, hidden_mse

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def lesson_of(manifest: Manifest, stage: Stage, student: PreTrainedModel) -> Lesson | None:
    """The lesson of a stage whose objective has the term `hidden`; None for any other.

    Raises:
        ManifestError: the stage names layers that are not there, or the models are not of a kind.
        RunError: the teacher cannot be loaded.
    """
    return Lesson(manifest, stage, student) if stage.objective.hidden else None


class Lesson:
    """A teacher beside the module that is trained, whole in each process: DeepSpeed has it not.

    Attributes:
        layers: the student's and the teacher's layers that are brought together.
        taught: the student with its projections, for DeepSpeed to train.
    """

    def __init__(self, manifest: Manifest, stage: Stage, student: PreTrainedModel) -> None:
        asked, about = manifest.teacher, student_of(manifest)
        if asked is None:
            raise ManifestError("teacher", None, "is missing: hidden needs one")
        dtype = getattr(torch, about.dtype)
        teacher = load(asked.model, asked.revision, "teacher.model", dtype)
        self._teacher = teacher.eval().requires_grad_(False)
        if about.packing:
            check_packing(teacher)
        self.layers = matched_layers(stage, about.init, student.config, teacher.config)
        widths = [m.config.get_text_config().hidden_size for m in (student, teacher)]
        self.taught = Taught(student, list(self.layers), *widths)
        self._states = States(list(self.layers.values()))
        self._read: list[Tensor] = []

    def begin(self, device: torch.device) -> None:
        """Take the teacher to a device, and see the forward passes from now on.

        To be called when DeepSpeed has its module, see `States.listen`.
        """
        self._teacher.to(device)
        self._teacher.get_output_embeddings().register_forward_pre_hook(_nothing)
        self._states.listen(_layers_of(self._teacher))
        self.taught.states.listen(_layers_of(self.taught.student))

    def read(self, batch: Batch) -> None:
        """Let the teacher read a batch, before the student does."""
        self._states.predicts = self.taught.states.predicts = batch.predicts
        with torch.no_grad():
            self._teacher(**batch.inputs, use_cache=False)
        self._read = self._states.take()

    def distance(self, batch: Batch) -> Tensor:
        """How far the student's states are from those read, [n]: `hidden_mse`, once a batch."""
        ours, self.taught.told = self.taught.told, []
        theirs, self._read = self._read, []
        return hidden_mse(ours, theirs, batch.mask)


def _nothing(_: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """No position goes through the teacher's head: nobody asks for its logits."""
    hidden, *rest = arguments
    return (hidden[:, :0], *rest)


def _layers_of(model: Any) -> ModuleList:
    found = layers_of(model, model.config)
    if found is None:
        raise RunError(
            "objective.hidden", model.config.model_type, "its layers cannot be told: leave it out"
        )
    return found
