"""What a student started as, and how much of its teacher it took over, in words."""

from __future__ import annotations

from typing import Any

from factory.cards.markdown import number, short_path
from factory.files import read_json
from factory.manifest import Manifest
from factory.records import RunDirectory


def start_of(run: RunDirectory) -> str | None:
    """One or two sentences; None where the run has no student, or has not prepared it."""
    manifest, folder = run.manifest(), run.path("student", "init")
    if manifest.student is None or not (folder / "init.json").is_file():
        return None
    init = manifest.student.init
    if init.model is not None:
        return f"It started as the checkpoint {short_path(init.model)}."
    if init.config is not None:
        kind, seed = init.config["model_type"], manifest.seed
        return f"It started as a new {kind}, its weights drawn with seed {seed}."
    copied = folder / "copied.json"
    tensors = read_json(copied) if copied.is_file() else None
    return _of_teacher(manifest, read_json(folder / "init.json"), tensors)


def _of_teacher(manifest: Manifest, record: dict[str, Any], copied: dict[str, Any] | None) -> str:
    """Layers, then parameters: those of tensors that were taken, whole or in part."""
    name = short_path(manifest.teacher.model) if manifest.teacher else "its teacher"
    encoder = record.get("copied_encoder_layers")
    layers = ("decoder " if encoder else "") + _listed(record["copied_layers"])
    layers += f" and encoder {_listed(encoder)}" if encoder else ""
    told = f"It started from {layers} (counted from 0) of {name}"
    if copied is None:
        return f"{told}."
    taken, whole = record["copied_parameters"], record["parameters"]
    parts = f"{number(taken)} of its {number(whole)} parameters ({100 * taken / whole:.1f} %)"
    rows = sum(tensor["rows"] for tensor in copied["tensors"].values())
    shared = f", {rows} of them the rows of shared tokens alone" if rows else ""
    tensors = f"{len(copied['tensors'])} tensors were copied{shared}, {len(copied['new'])} are new"
    return f"{told}: {parts} are the teacher's; {tensors}."


def _listed(layers: list[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
