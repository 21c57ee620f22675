"""The card of a delivered model: how to use it, where it comes from, what it scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from factory.cards.blocks import take_apart
from factory.cards.card import environment, run_facts
from factory.cards.figures import Figure
from factory.manifest import Manifest, Prompt
from factory.prompting.template import FIELD
from factory.reading import to_yaml
from factory.records import RunDirectory

Facts = dict[str, Any]
TEMPLATE = "model.md.j2"
TAGS = ("knowledge-distillation", "sequence-level-distillation", "seqkd")
LIBRARIES = {"hf": "transformers", "ctranslate2": "ctranslate2"}


def render(run: RunDirectory, model: Facts) -> str:
    """The card as Markdown with YAML front matter. `model` is what `seqkd.json` holds of it."""
    facts = run_facts(run, {})
    prompt = dict.fromkeys(Prompt.model_fields) | model["prompt"]
    decoding = {"first_token": None, "stop": ()} | model["decoding"]
    model = model | {"prompt": prompt, "decoding": decoding}
    scores = _scores(facts["figures"], model)
    matter = front_matter(run.manifest(), model, scores)
    template = environment()
    template.filters |= {"python": _python, "table": _table}
    return template.get_template(TEMPLATE).render(
        facts
        | {
            "front_matter": Markup(to_yaml(matter)),  # noqa: S704 — our YAML
            "model": model,
            "scores": scores,
            "other_fields": _fields(model["prompt"]) - {"source"},
            "lineage": _lineage(run, model["stage"]),
            "teacher_licence": _licence(run.manifest()),
        }
    )


def front_matter(manifest: Manifest, model: Facts, scores: list[Facts]) -> Facts:
    """What model hubs read: languages, licence, what it was made from, what it is for, scores."""
    task = "translation" if len(set(manifest.languages)) > 1 else "text-generation"
    matter: Facts = {
        "language": list(manifest.languages),
        "license": manifest.license or "unknown",
        "library_name": LIBRARIES[model["format"]],
        "pipeline_tag": task,
        "base_model": _base(manifest),
        "tags": list(TAGS),
        "metrics": list(dict.fromkeys(row["metric"] for row in scores)),
        "model-index": _index(manifest, task, scores),
    }
    return {name: value for name, value in matter.items() if value}


def _base(manifest: Manifest) -> str | None:
    """What the student was made from, where it is a hub's: a folder's name would mean another."""
    init = manifest.student.init if manifest.student else None
    named = init.model if init and init.model else None
    named = named or (manifest.teacher.model if manifest.teacher else None)
    return None if named is None or Path(named).is_absolute() else named


def _index(manifest: Manifest, task: str, scores: list[Facts]) -> list[Facts]:
    """The student's scores as hubs take them, a result for each split."""
    results = [
        {
            "task": {"type": task},
            "dataset": {"name": manifest.name, "type": manifest.name, "split": split},
            "metrics": [_metric(row) for row in scores if _ours(row, split)],
        }
        for split in dict.fromkeys(row["split"] for row in scores)
    ]
    told = [result for result in results if result["metrics"]]
    return [{"name": manifest.name, "results": told}] if told else []


def _ours(row: Facts, split: str) -> bool:
    return bool(row["split"] == split and row["system"] == "student")


def _metric(row: Facts) -> Facts:
    name, value = row["metric"], round(row["score"], 2 if row["score"] >= 1 else 4)
    return {"type": name, "name": name, "value": value, "args": {"signature": row["signature"]}}


def _scores(figures: dict[str, Figure], model: Facts) -> list[Facts]:
    """Rows of teacher and student; none where the stage that is delivered was not evaluated."""
    if not model["check"]["evaluated"]:
        return []
    table, signed = figures["scores"], figures["signatures"]
    signatures = dict(row[:2] for row in reversed(signed.rows))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return [
        row | {"signature": signatures.get(row["metric"])}
        for row in rows
        if row["system"] == "teacher" or row["stage"] == model["stage"]
    ]


def _lineage(run: RunDirectory, last: str) -> list[Facts]:
    """Each stage up to the one that is delivered: what it was asked, and what came of it."""
    student, told = run.manifest().student, []
    records = {record["stage"]: record for record in run.stage_records()}
    for stage in student.stages if student else ():
        record, objective = records[stage.name], stage.objective.terms
        best = record["scores"][record["best"] - 1] if record.get("scores") else None
        told.append(
            {
                "name": stage.name,
                "data": ", ".join(f"{share:.0%} {name}" for name, share in stage.shares.items())
                if len(stage.shares) > 1
                else str(stage.data),
                "objective": " + ".join(f"{weight:g} {name}" for name, weight in objective.items()),
                "validation": None if best is None else f"{record['metric']} {best:.2f}",
                **{key: record.get(key) for key in ("rows", "steps", "best_step")},
            }
        )
        if stage.name == last:
            break
    return told


def _fields(prompt: Facts) -> set[str]:
    """The fields of rows that a prompt has places for."""
    return set(FIELD.findall(json.dumps(prompt, ensure_ascii=False)))


def _licence(manifest: Manifest) -> str | None:
    """What the teacher's own card declares, where the teacher is a folder that has one."""
    card = Path(manifest.teacher.model) / "README.md" if manifest.teacher else None
    if card is None or not card.is_absolute() or not card.is_file():
        return None
    declared = (take_apart(card.read_text("utf-8")).values() or {}).get("license")
    return None if declared is None else str(declared)


def _python(value: Any) -> Markup:
    """A value as it is written in Python code, in a block of code."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    return Markup(text)  # noqa: S704 — stands in a code block


def _table(figure: Figure) -> Markup:
    return Markup(figure.table)  # noqa: S704 — its cells are escaped
