"""`seqkd deliver`: a trained student out of its run, as a folder that others can load."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from factory.cards.model import render
from factory.engines.ctranslate2 import COMPUTE_TYPES
from factory.errors import RunError, StepFailed, nearest
from factory.files import read_json, replacing_folder, write_text
from factory.records import RunDirectory
from factory.sections import Dtype
from factory.workers import module_command, run_worker

FORMATS = ("hf", "ctranslate2")
DTYPES: tuple[str, ...] = get_args(Dtype)
FACTS, CARD = "seqkd.json", "README.md"
TWICE = 2  # a conversion, and a change from half to single precision, may double a model
SHOWN = ("format", "stage", "parameters", "dtype", "quantization")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be delivered. None: the last stage done, its own dtype, float32."""

    format: str = "hf"
    stage: str | None = None
    dtype: str | None = None
    quantization: str | None = None

    def require_sense(self) -> None:
        """Refuse what no delivery can be.

        Raises:
            RunError: a format, dtype or quantization that is none, or that the format ignores.
        """
        _require("--format", self.format, FORMATS)
        _require("--dtype", self.dtype, DTYPES)
        _require("--quantization", self.quantization, COMPUTE_TYPES)
        if self.format == "hf" and self.quantization:
            remedy = "is of --format ctranslate2: take --dtype, or that format"
            raise RunError("--quantization", self.quantization, remedy)
        if self.format == "ctranslate2" and self.dtype:
            raise RunError("--dtype", self.dtype, "is of --format hf: take --quantization")


def deliver(run: RunDirectory, output: Path, order: Order, force: bool = False) -> dict[str, Any]:
    """Write a trained stage's model, checked against the run's own; whole or not at all.

    Returns:
        output, format, stage, parameters, dtype or quantization, bytes, and the check's figures.

    Raises:
        UserError: the order, the run or the place do not allow it.
        StepFailed: the disk is too full, or what was loaded back is another model.
    """
    order.require_sense()
    path = Path(os.path.abspath(output))
    _require_place(path, force)
    _require_trained(run, order.stage)
    _require_room(path, TWICE * _largest_model(run))
    with run.locked() as lock, replacing_folder(path) as folder:
        asked = asdict(order) | {"folder": str(folder), "place": str(output)}
        if order.format == "ctranslate2":
            asked["quantization"] = order.quantization or "float32"
        run_worker(run, "deliver", module_command("student.delivery", run, json.dumps(asked)), lock)
        facts = read_json(folder / FACTS)
        write_text(folder / CARD, render(run, facts))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    shown = {name: facts[name] for name in SHOWN if name in facts}
    return {"output": str(output)} | shown | {"bytes": size, "check": facts["check"]}


def _require(place: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise RunError(place, value, f"is not known: {nearest(value, known)}")


def _require_place(path: Path, force: bool) -> None:
    """Refuse to replace anything that this command has not written.

    Raises:
        RunError: something stands there.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise RunError(path, None, "stands there, and is no folder: name another")
    inside = {file.relative_to(path).as_posix() for file in path.rglob("*")}
    if not inside:
        return
    record = read_json(path / FACTS) if FACTS in inside else {}
    ours = set(record.get("files", ())) if isinstance(record, dict) else set()
    if others := sorted(inside - ours):
        raise RunError(path, others[0], "stands there, and is not ours: name another folder")
    if not force:
        raise RunError(path, None, "holds what was delivered before: --force replaces it")


def _require_trained(run: RunDirectory, stage: str | None) -> None:
    student = run.manifest().student
    names = [one.name for one in student.stages] if student else []
    if not names:
        raise RunError(run.root, None, "trains no student: give its manifest one, then seqkd train")
    if stage is not None and stage not in names:
        raise RunError("--stage", stage, f"is no stage of this run: {nearest(stage, names)}")
    done = [record["stage"] for record in run.stage_records()]
    if not done or (stage or done[0]) not in done:
        what = f"the stage {stage}" if done else "the student"
        raise RunError(run.root, None, f"{what} is not trained: seqkd train first")


def _largest_model(run: RunDirectory) -> int:
    """Bytes of the run's largest stage, as it is stored."""
    files = [record["files"] for record in run.stage_records()]
    paths = [[run.path(f["path"]) for f in stage if f["table"] == "model"] for stage in files]
    return max(sum(p.stat().st_size for p in stage if p.is_file()) for stage in paths)


def _require_room(path: Path, needed: int) -> None:
    """Refuse to begin what the disk will not hold.

    Raises:
        StepFailed: fewer bytes are free than are needed.
    """
    there = next(parent for parent in path.parents if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        what = f"takes up to {needed:,} bytes, and {free:,} are free"
        raise StepFailed(f"{path}: {what}: make room, or name a folder elsewhere")
