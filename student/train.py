"""Process entry: `deepspeed … --module student.train RUN_DIR KEY` trains the stages in order.

`student.prepare` has run before. A stage that is done under its key is left alone; a killed one
goes on from its newest checkpoint.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import Any

import torch.distributed as dist

from factory.files import write_json
from factory.manifest import Manifest
from factory.progress import progress
from factory.records import FileRecord, RunDirectory
from factory.shards import record_file
from student.checkpoints import Position
from student.engine import join_processes
from student.entry import run_process
from student.log import TrainLog
from student.plan import PlannedStage, plan, student_of
from student.trainer import StageTrainer
from student.watch import watching


def train_run(run: RunDirectory, key: str) -> None:
    """Train every stage that is not done, in each process of the launch; then record the step.

    Raises:
        StepFailed: a loss is not finite, or the process that started this one is gone.
        RunError: the run is not prepared.
    """
    manifest = run.manifest()
    join_processes(student_of(manifest).processes)
    began, steps_before, names = time.monotonic(), 0, []
    stages = list(plan(run, manifest))
    for number, planned in enumerate(stages, 1):
        place = f" ({number} of {len(stages)})" if len(stages) > 1 else ""
        title = f"training {planned.stage.name}{place}"
        record = planned.done() or _train_stage(run, manifest, planned, steps_before, title)
        steps_before += record["steps"]
        names.append(planned.stage.name)
    if dist.get_rank() == 0:
        run.finish("train", key, time.monotonic() - began, stages=names, steps=steps_before)
    dist.barrier()
    dist.destroy_process_group()


def _train_stage(
    run: RunDirectory, manifest: Manifest, planned: PlannedStage, steps_before: int, title: str
) -> dict[str, Any]:
    trainer = StageTrainer(run, manifest, planned)
    first = trainer.rank == 0
    if first:  # its log is about to be replaced
        (planned.folder / "stage.json").unlink(missing_ok=True)
    steps = trainer.course.steps
    facts = {"stage": planned.stage.name, "key": planned.key, "planned_steps": steps}
    log = TrainLog(run, planned.folder, facts, steps_before, first)
    board = run.path("tensorboard", planned.stage.name) if trainer.student.tensorboard else None
    with (
        progress(title, steps) if first else nullcontext(_silent) as advance,
        watching(log, advance, board if first else None) as watch,
    ):
        position = trainer.train(watch)
        watch.ended()
    trainer.keep_best(position)
    record = _record(run, planned, position, log.finish(position))
    record["planned_steps"] = steps
    record["validated_by"] = trainer.validator and trainer.validator.engine(planned.model)
    if trainer.lesson:
        record["hidden_layers"] = trainer.lesson.layers
    if first:
        weights = sorted(planned.model.iterdir())
        record["files"] += [record_file(run, path, "model") for path in weights]
        write_json(planned.folder / "stage.json", record)
        log.close()
    dist.barrier()
    return record


def _record(
    run: RunDirectory, planned: PlannedStage, position: Position, file: FileRecord
) -> dict[str, Any]:
    """What is known of a stage that is done."""
    return {
        "stage": planned.stage.name,
        "key": planned.key,
        "files": [file],
        "steps": position.step,
        "epochs": position.begun,
        "best": position.best,
        "best_epoch": math.ceil(position.epochs[position.best - 1]),
        "best_step": position.steps[position.best - 1],
        "metric": "chrf" if position.scores else None,
        "scores": position.scores,
        "scored_steps": position.steps,
        "scored_epochs": position.epochs,
        "seconds": round(position.seconds, 3),
        "target_tokens": position.target_tokens,
        "rows": planned.data.rows,
        "portions": dict(zip(planned.stage.shares, planned.data.portions, strict=False)),
        "excluded": planned.data.excluded,
        "verdicts": run.step("judge").get("key"),
        "parameters": planned.init.parameters,
        "copied_layers": planned.init.copied_layers,
        "copied_encoder_layers": planned.init.copied_encoder_layers,
    }


def _silent(done: int, note: str = "", *, rate: float | None = None) -> None:
    """Report nothing."""


if __name__ == "__main__":
    run_process(train_run)
