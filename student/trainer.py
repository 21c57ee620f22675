"""One stage: a fresh DeepSpeed engine and schedule, from the previous stage's model to its best."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist

from factory.errors import StepFailed
from factory.manifest import Manifest
from factory.progress import Advance
from factory.prompting.tokenizing import load_tokenizer
from factory.records import RunDirectory
from factory.training import Stage, Student
from student.batches import Batch, Layout, seed_of
from student.checkpoints import Checkpoints, Position, export
from student.chunks import ChunkedHead
from student.course import Course
from student.dataset import StageRows
from student.entry import stop_if_abandoned
from student.feed import Feed, Piece
from student.initialise import load
from student.log import TrainLog
from student.objectives import Weights, combine, per_token
from student.plan import PlannedStage, student_of
from student.schedule import freeze, learning_rate, parameter_groups
from student.validation import Validator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NEVER = 1 << 30


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one optimiser step came to: each term and the loss, per target token."""

    loss: float
    terms: dict[str, float]
    tokens: int


def join_processes() -> None:
    """Form the group of the processes that were launched together.

    On a CPU, DeepSpeed would compile an all-reduce of its own for half a minute: gloo has one. The
    processes share the cores, unless the user has said how.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // dist.get_world_size()))


class TargetHead:
    """Lets only those positions through a model's head that predict a target token.

    The head is the widest layer: prompts and padding need not go through it. What a model does to
    its logits afterwards is elementwise, so that it works on the chosen rows alike. Where `keeps`,
    none pass: they wait for whoever takes them to the head himself.
    """

    def __init__(self, model: Any, keeps: bool = False) -> None:
        self.predicts: torch.Tensor | None = None
        self._keeps, self._kept = keeps, torch.empty(0)
        model.get_output_embeddings().register_forward_pre_hook(self._choose)

    def kept(self) -> torch.Tensor:
        """The hidden states of those positions, [n, width]; the head is free again."""
        self.predicts = None
        return self._kept

    def _choose(self, _: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *rest = arguments
        if self.predicts is None:
            return arguments
        chosen = hidden[self.predicts]
        if self._keeps:
            self._kept, chosen = chosen, chosen[:0]
        return (chosen, *rest)


def layout_of(model: Any, tokenizer: PreTrainedTokenizerFast, packed: bool = False) -> Layout:
    """How a model takes its input; padding may be any token, since it is never looked at."""
    pad = tokenizer.pad_token_id
    start = model.config.decoder_start_token_id if model.config.is_encoder_decoder else None
    return Layout(int(pad if pad is not None else tokenizer.eos_token_id), start, packed)


def _weights_of(stage: Stage) -> Weights:
    asked = stage.objective
    shapes = (asked.jsd_beta, asked.skew_alpha, asked.temperature)
    return Weights(asked.terms, stage.label_smoothing, *shapes)


class StageTrainer:
    """Trains one stage; every process of the launch holds one and keeps step with the others."""

    def __init__(self, run: RunDirectory, manifest: Manifest, planned: PlannedStage) -> None:
        self.run, self.manifest, self.planned, self.stage = run, manifest, planned, planned.stage
        self.student: Student = student_of(manifest)
        self.world, self.rank = dist.get_world_size(), dist.get_rank()
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(str(planned.start))
        self.rows = StageRows(planned.folder / "data")
        self.course = Course(self.stage, self.rows, manifest.seed, planned.data.portions)
        self.weights = _weights_of(self.stage)
        model = load(str(planned.start))
        model.train()
        freeze(model, self.stage)
        self.chunks = ChunkedHead(model) if self.student.chunked_head else None
        self.head = TargetHead(model, keeps=self.student.chunked_head)
        if self.student.compile:  # the backbone: how many positions pass the head is not known
            model.base_model.compile(dynamic=True)
        groups = parameter_groups(model, self.stage.weight_decay)
        optimiser = torch.optim.AdamW(groups, lr=self.stage.learning_rate)
        self.engine, self.optimiser, *_ = deepspeed.initialize(
            model=model, optimizer=optimiser, config=self._settings()
        )
        self.feed = Feed(
            self.stage,
            self.rows,
            self.course,
            layout_of(model, self.tokenizer, self.student.packing),
            self.world,
            self.rank,
            pinned=self.engine.device.type == "cuda",
        )
        self.checkpoints = Checkpoints(planned.folder / "checkpoints", planned.key)

    def train(self, log: TrainLog, advance: Advance) -> Position:
        """Train from the newest checkpoint to the end of the stage; returns where it came to.

        Raises:
            StepFailed: the loss is not finite, or the process that started this one is gone.
        """
        position = self.checkpoints.resume(self.engine)
        log.cut(position.step)
        advance(position.step, "")
        while not self._over(position):
            self._epoch(position, log, advance)
        return position

    def keep_best(self, position: Position) -> None:
        """Put the best model where the stage's model stands."""
        waiting = self.checkpoints.model(position.best)
        if self.rank == 0 and waiting.is_dir():
            shutil.rmtree(self.planned.model, ignore_errors=True)
            waiting.rename(self.planned.model)
        dist.barrier()

    def _over(self, position: Position) -> bool:
        return position.step >= self.course.steps or position.stalled(self.stage.patience)

    def _epoch(self, position: Position, log: TrainLog, advance: Advance) -> None:
        plan = self.course.epoch(position.epoch)
        left = plan[position.within :]
        with closing(self.feed.over(left, position.step)) as pieces:
            for step in left:
                tokens = self.course.tokens(step)
                self._take(pieces, tokens, position, log, advance)
                self._pause(position, len(plan), log)
                if self._over(position):
                    return

    def _take(
        self,
        pieces: Iterator[Piece],
        tokens: int,
        position: Position,
        log: TrainLog,
        advance: Advance,
    ) -> None:
        """One optimiser step, told in the log and the progress line."""
        stop_if_abandoned()
        began = time.monotonic()
        rate = learning_rate(self.stage, position.step, self.course.steps)
        outcome = self._step(pieces, tokens, position.step, rate)
        seconds = time.monotonic() - began
        position.step += 1
        position.within += 1
        position.seconds += seconds
        position.target_tokens += outcome.tokens
        log.add(position, outcome.loss, outcome.terms, rate, outcome.tokens, seconds)
        advance(1, f"loss {outcome.loss:.3f}, {outcome.tokens / seconds:,.0f} tok/s")

    def _pause(self, position: Position, epoch_steps: int, log: TrainLog) -> None:
        """Between two steps: keep and score the model where that is due, and the state."""
        if ended := position.within == epoch_steps:
            position.epoch, position.within = position.epoch + 1, 0
        last = position.step == self.course.steps
        every = self.stage.validate_steps
        due = position.step % every == 0 if every else ended
        if last or (due and self.validator):
            self._keep(position, position.epoch - 1 + position.within / epoch_steps)
        if last or due or ended or position.step % self.student.checkpoint_steps == 0:
            log.write()
            self.checkpoints.save(self.engine, position)

    def _keep(self, position: Position, epochs: float) -> None:
        """Export the present model, and score it where the run has a validation split."""
        began = time.monotonic()
        position.steps.append(position.step)
        position.epochs.append(epochs)
        folder = self.checkpoints.model(len(position.steps))
        export(self.engine, self.tokenizer, folder, self._whole)
        position.best = position.best or len(position.steps)
        if self.validator:
            position.scores.append(self.validator.score(folder))
            position.best = 1 + int(np.argmax(position.scores))
        position.seconds += time.monotonic() - began

    @cached_property
    def validator(self) -> Validator | None:
        """What scores models, or None where the run has no validation split."""
        validator = Validator(self.run, self.manifest, self.tokenizer)
        return validator if len(validator) else None

    def _whole(self, parameter: torch.nn.Parameter) -> AbstractContextManager[Any]:
        partitioned = self.student.deepspeed.zero_stage == 3
        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            [parameter], enabled=partitioned
        )
        return gathered

    def _step(self, pieces: Iterator[Piece], tokens: int, number: int, rate: float) -> Outcome:
        """One optimiser step; the loss is a mean over its target tokens, of all processes."""
        torch.manual_seed(seed_of(self.manifest.seed, self.stage.name, number, self.rank))
        sums = torch.zeros(len(self.weights.terms), dtype=torch.float32, device=self.engine.device)
        last = False
        while not last:
            piece = next(pieces)
            last = piece.last
            self.engine.set_gradient_accumulation_boundary(last)
            sums += self._accumulate(piece.batch.to(self.engine.device), tokens)
        dist.all_reduce(sums)
        outcome = self._outcome(sums, tokens, number)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.engine.step()
        return outcome

    def _accumulate(self, batch: Batch, tokens: int) -> torch.Tensor:
        """Forward and backward of one micro-batch; returns each term summed over its tokens.

        DeepSpeed averages gradients over the processes: times their number, the sum is exact.
        """
        self.head.predicts = batch.predicts
        logits = self.engine(**batch.inputs, use_cache=False).logits
        loss, sums = self._loss(logits, batch)
        self.engine.backward(loss * (self.world / tokens))
        return sums

    def _loss(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of the terms, and each term's sum."""
        if self.chunks:
            return self.chunks.loss(self.head.kept(), batch, self.weights)
        given = (batch.targets, batch.teacher, batch.mask, self.weights, batch.realised)
        terms = per_token(logits, *given)
        sums = [terms[name].detach().float().sum() for name in self.weights.terms]
        return combine(terms, self.weights).sum(), torch.stack(sums)

    def _outcome(self, sums: torch.Tensor, tokens: int, number: int) -> Outcome:
        means = [value / tokens for value in sums.tolist()]
        terms = dict(zip(self.weights.terms, means, strict=True))
        loss = sum(self.weights.terms[name] * value for name, value in terms.items())
        if not math.isfinite(loss):
            place = f"stage {self.stage.name}, step {number + 1}"
            raise StepFailed(f"{place}: the loss is {loss}: lower learning_rate or clip, run again")
        return Outcome(loss, terms, tokens)

    def _settings(self) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # the plan decides, step by step
            "gradient_clipping": self.stage.clip,
            "bf16": {"enabled": self.student.dtype == "bfloat16"},
            "zero_optimization": {"stage": self.student.deepspeed.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": NEVER,
        }
