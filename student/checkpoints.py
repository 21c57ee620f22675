"""What a killed stage continues from, and the model it leaves behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from factory.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Whole = Callable[[torch.nn.Parameter], AbstractContextManager[Any]]


@dataclass(slots=True)
class Position:
    """How far a stage has come. `step` counts optimiser steps of the stage, `epoch` from 1.

    `within` is how many steps of the present epoch are done. Of every model that was exported
    `steps` and `epochs` say when (a part of an epoch is a fraction), `scores` how well it writes
    (empty where nothing validates); `best` is the number, from 1, of the one that is kept.
    """

    key: str
    step: int = 0
    epoch: int = 1
    within: int = 0
    best: int = 0
    scores: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    seconds: float = 0.0
    target_tokens: int = 0

    @property
    def begun(self) -> int:
        """Epochs that were begun."""
        return self.epoch if self.within else self.epoch - 1

    def stalled(self, patience: int | None) -> bool:
        """Whether so many scores have passed since the best."""
        return patience is not None and len(self.scores) - self.best >= patience


class Checkpoints:
    """The folder of one stage's checkpoints: the newest state, and the best model.

    `newest.json` names the state that is whole; everything else in the folder is left over.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key

    def resume(self, engine: Any) -> Position:
        """Load the newest state into the engine; a stage of another key begins anew."""
        newest = self.folder / "newest.json"
        record = read_json(newest) if newest.is_file() else {}
        dist.barrier()  # nobody tidies up before everybody has read
        if record.get("key") != self.key:
            self._first_rank_only(shutil.rmtree, self.folder, True)
            return Position(self.key)
        _, state = engine.load_checkpoint(str(self.folder), tag=record["tag"])
        return Position(**state["position"])

    def save(self, engine: Any, position: Position) -> None:
        """Write the state of all processes, name it the newest, and remove what it replaces."""
        tag = f"step-{position.step}"
        state = {"position": asdict(position)}
        engine.save_checkpoint(str(self.folder), tag=tag, client_state=state, save_latest=False)
        dist.barrier()
        self._first_rank_only(self._name_newest, tag, position)

    def model(self, number: int) -> Path:
        """Where an exported model waits until the stage is done."""
        return self.folder / f"model-{number}"

    def _name_newest(self, tag: str, position: Position) -> None:
        record = {"key": self.key, "tag": tag, "step": position.step}
        write_json(self.folder / "newest.json", record)
        kept = {tag, self.model(position.best).name}
        for other in self.folder.iterdir():
            if other.is_dir() and other.name not in kept:
                shutil.rmtree(other)

    @staticmethod
    def _first_rank_only(work: Any, *arguments: Any) -> None:
        if dist.get_rank() == 0:
            work(*arguments)
        dist.barrier()


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, whole: Whole
) -> None:
    """Write the present model as a Hugging Face folder; all processes take part.

    `whole` makes one parameter whole while a body runs, so that no process holds more than the
    first, and that one no more than the model.
    """
    state = {}
    for name, parameter in model.named_parameters():
        with whole(parameter):
            if dist.get_rank() == 0:
                state[name] = parameter.detach().cpu().clone()
    if dist.get_rank() == 0:
        saved = model.state_dict()
        buffers = {n: b.cpu() for n, b in model.named_buffers() if n in saved}
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, state_dict=state | buffers)
        tokenizer.save_pretrained(folder)
    dist.barrier()
