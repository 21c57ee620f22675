"""One stage: a fresh DeepSpeed engine and schedule, from the previous stage's model to its best."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from factory.manifest import Manifest
from factory.prompting.tokenizing import load_tokenizer
from factory.records import RunDirectory
from factory.training import Stage, Student
from student.alarm import Alarm
from student.batches import Batch, Layout, seed_of
from student.checkpoints import Checkpoints, Position, export
from student.chunks import ChunkedHead
from student.course import Course
from student.dataset import StageRows
from student.engine import begin, whole
from student.entry import stop_if_abandoned
from student.feed import Feed, Piece
from student.initialise import load
from student.lesson import lesson_of
from student.objectives import Weights, combine, per_token
from student.plan import PlannedStage, student_of
from student.schedule import freeze, learning_rate
from student.validation import Validator
from student.watch import Watch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one optimiser step came to: each term and the loss, per target token."""

    loss: float
    terms: dict[str, float]
    tokens: int


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
        chunked = self.student.chunked_head and self.stage.objective.terms.keys() != {"hidden"}
        self.chunks = ChunkedHead(model) if chunked else None
        self.head = TargetHead(model, keeps=chunked)
        if self.student.compile:  # the backbone: how many positions pass the head is not known
            model.base_model.compile(dynamic=True)
        self.model, self.lesson = model, lesson_of(manifest, self.stage, model)
        module = self.lesson.taught if self.lesson else model
        self.checkpoints = Checkpoints(planned.folder / "checkpoints", planned.key, self.student)
        universal = self.checkpoints.universal
        self.engine, self.optimiser = begin(module, self.stage, self.student, universal)
        if self.lesson:
            self.lesson.begin(self.engine.device)
        self.alarm = Alarm(self.stage.name, self.rows, self.checkpoints)
        layout = layout_of(model, self.tokenizer, self.student.packing)
        parts = (self.stage, self.rows, self.course, layout, self.world, self.rank)
        self.feed = Feed(*parts, pinned=self.engine.device.type == "cuda")

    def train(self, watch: Watch) -> Position:
        """Train from the newest checkpoint to the end of the stage; returns where it came to.

        Raises:
            StepFailed: the loss, gradients or weights are not finite, or the process that started
                this one is gone.
            DamagedFile: the newest checkpoint is not as it was written.
        """
        position = self.checkpoints.resume(self.engine)
        watch.begin(position)
        while not self._over(position):
            self._epoch(position, watch)
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

    def _epoch(self, position: Position, watch: Watch) -> None:
        plan = self.course.epoch(position.epoch)
        left = plan[position.within :]
        with closing(self.feed.over(left, position.step)) as pieces:
            for step in left:
                self._take(pieces, self.course.tokens(step), position, watch)
                self._pause(position, len(plan), watch)
                if self._over(position):
                    return

    def _take(self, pieces: Iterator[Piece], tokens: int, position: Position, watch: Watch) -> None:
        """One optimiser step, told to who watches."""
        stop_if_abandoned()
        began = time.monotonic()
        rate = learning_rate(self.stage, position.step, self.course.steps)
        outcome = self._step(pieces, tokens, position.step, rate)
        seconds = time.monotonic() - began
        position.step += 1
        position.within += 1
        position.seconds += seconds
        position.target_tokens += outcome.tokens
        norm = self.engine.get_global_grad_norm()
        watch.took(outcome.loss, outcome.terms, rate, outcome.tokens, seconds, norm)

    def _pause(self, position: Position, epoch_steps: int, watch: Watch) -> None:
        """Between two steps: keep and score the model where that is due, and the state."""
        if ended := position.within == epoch_steps:
            position.epoch, position.within = position.epoch + 1, 0
        last = position.step == self.course.steps
        every = self.stage.validate_steps
        due = position.step % every == 0 if every else ended
        saved = last or due or ended or position.step % self.student.checkpoint_steps == 0
        if saved:
            self.alarm.check_weights(self.engine)
        if last or (due and self.validator):
            self._keep(position, position.epoch - 1 + position.within / epoch_steps, watch)
        if saved:
            watch.saving()
            self.checkpoints.save(self.engine, position)

    def _keep(self, position: Position, epochs: float, watch: Watch) -> None:
        """Export the present model, and score it where the run has a validation split."""
        began = time.monotonic()
        position.steps.append(position.step)
        position.epochs.append(epochs)
        folder = self.checkpoints.model(len(position.steps))
        export(self.model, self.tokenizer, folder, self._whole)
        position.best = position.best or len(position.steps)
        if self.validator:
            position.scores.append(self.validator.score(folder, watch.validating()))
            watch.scored(position.scores[-1])
            position.best = 1 + int(np.argmax(position.scores))
        position.seconds += time.monotonic() - began

    @cached_property
    def validator(self) -> Validator | None:
        """What scores models, or None where the run has no validation split."""
        validator = Validator(self.run, self.manifest, self.tokenizer)
        return validator if len(validator) else None

    def _whole(self, parameter: torch.nn.Parameter) -> AbstractContextManager[Any]:
        return whole(parameter, self.student)

    def _step(self, pieces: Iterator[Piece], tokens: int, number: int, rate: float) -> Outcome:
        """One optimiser step; the loss is a mean over its target tokens, of all processes."""
        torch.manual_seed(seed_of(self.manifest.seed, self.stage.name, number, self.rank))
        self.alarm.begin(number + 1)
        sums = torch.zeros(len(self.weights.terms), dtype=torch.float32, device=self.engine.device)
        last = False
        while not last:
            piece = next(pieces)
            last = piece.last
            self.engine.set_gradient_accumulation_boundary(last)
            sums += self._accumulate(piece, tokens)
        dist.all_reduce(sums)
        outcome = self._outcome(sums, tokens)
        self.alarm.check_loss(outcome.loss)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.engine.step()
        self.alarm.check_gradients(self.engine)
        return outcome

    def _accumulate(self, piece: Piece, tokens: int) -> torch.Tensor:
        """Forward and backward of one micro-batch; returns each term summed over its tokens.

        DeepSpeed averages gradients over the processes: times their number, the sum is exact.
        """
        batch = piece.batch.to(self.engine.device)
        self.head.predicts = batch.predicts
        if self.lesson:
            self.lesson.read(batch)
        logits = self.engine(**batch.inputs, use_cache=False).logits
        loss, terms = self._loss(logits, batch)
        self.alarm.see(piece.rows, combine(terms, self.weights))
        self.engine.backward(loss * (self.world / tokens))
        return torch.stack([values.float().sum() for values in terms.values()])

    def _loss(
        self, logits: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of the terms, to differentiate; and each term's values, [n], to tell."""
        if self.chunks:
            loss, terms = self.chunks.loss(self.head.kept(), batch, self.weights)
        else:
            given = (batch.targets, batch.teacher, batch.mask, self.weights, batch.realised)
            terms = per_token(logits, *given)
            loss = combine(terms, self.weights).sum() if terms else logits.new_zeros(())
        if self.lesson:
            terms["hidden"] = self.lesson.distance(batch)
            loss = loss + self.weights.terms["hidden"] * terms["hidden"].sum()
        return loss, {name: terms[name].detach() for name in self.weights.terms}

    def _outcome(self, sums: torch.Tensor, tokens: int) -> Outcome:
        means = [value / tokens for value in sums.tolist()]
        terms = dict(zip(self.weights.terms, means, strict=True))
        loss = sum(self.weights.terms[name] * value for name, value in terms.items())
        return Outcome(loss, terms, tokens)
