"""The data card: what a run's data are, where they come from, and what they measure."""

from __future__ import annotations

import json
import time
from typing import Any

import jinja2
from markupsafe import Markup

from factory.cards.blocks import END, Page, put_together, take_apart
from factory.cards.figures import Figure, figures, markup
from factory.cards.markdown import cell, number, short_path, small
from factory.cards.mismatches import Mismatch, mismatches
from factory.cards.start import start_of
from factory.decoding import DECODING_KEYS
from factory.errors import RunError
from factory.files import digest, shipped, write_text
from factory.manifest import Manifest
from factory.reading import to_yaml
from factory.records import RunDirectory, imported_files

Facts = dict[str, Any]
CARD = "card.md"
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
LARGER = ((10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))
TAGS = ("knowledge-distillation", "sequence-level-distillation", "pseudolabels", "seqkd")
OURS = (  # keys of the front matter that are never a person's own
    "license",
    "language",
    "pretty_name",
    "task_categories",
    "size_categories",
    "annotations_creators",
    "tags",
)
UNCHECKED = ("steps",)  # times and versions, of the moment the card was written
PATHS = frozenset({"path", "source", "target", "root", "model", "candidates_from", "folder"})
# The step that decodes checks itself; what it cannot check, the step that scores does.
CHECKED = ("generate", "score")
STORING = {"decoding", "max_new_tokens", "shard_size", "window", "check"}
STAGE_FACTS = ("stage", "rows", "epochs", "best_epoch", "metric", "parameters")


def write_card(run: RunDirectory, key: str) -> None:
    """Write `card.md` from `data_cards/template.md.j2`, and record the step under `key`.

    What a person wrote around the blocks of the card that stands there is kept.
    """
    began = time.monotonic()
    text = render(run)
    write_text(run.path(CARD), text)
    run.finish("card", key, time.monotonic() - began, digest=_digest(take_apart(text)))


def stands(run: RunDirectory) -> bool:
    """Whether the blocks of `card.md` are as they were written."""
    path = run.path(CARD)
    written = run.step("card").get("digest")
    return path.is_file() and _digest(take_apart(path.read_text("utf-8"))) == written


def check(run: RunDirectory) -> list[Mismatch]:
    """Where `card.md` no longer says what the run does: figures, and all else in its blocks.

    The card is rendered anew and compared. Times and versions are of their moment, and left out;
    a person's own text, outside the blocks, is not looked at.

    Raises:
        RunError: the run has no card, or one without blocks, as versions before 0.2 wrote them.
    """
    path = run.path(CARD)
    if not path.is_file():
        raise RunError(path, None, "is not there: seqkd card writes it")
    page = take_apart(path.read_text("utf-8"))
    if not page.blocks:
        raise RunError(path, None, "holds no block of figures to check: seqkd card writes it anew")
    return mismatches(page, take_apart(_rendered(run, "template.md.j2", {})), UNCHECKED, OURS)


def render(run: RunDirectory, template: str = "template.md.j2", matter: Facts | None = None) -> str:
    """The card as Markdown with YAML front matter. Every table in it is SQL over the views.

    `matter` is more for the front matter, such as where data files lie. What a person wrote into
    the card that stands there, outside its blocks, is in it.

    Raises:
        RunError: a block of that card never ends, so that what follows may be a person's.
    """
    text, path = _rendered(run, template, matter or {}), run.path(CARD)
    before = take_apart(path.read_text("utf-8")) if path.is_file() else Page()
    if before.open:
        raise RunError(path, before.open, f"is a block that never ends: put {END} after it")
    return str(put_together(before, take_apart(text), OURS)) if before.blocks else text


def front_matter(manifest: Manifest, rows: int) -> Facts:
    """What dataset hubs read: licence, languages, task, size, tags, and where the tables lie."""
    translates = len(set(manifest.languages)) > 1
    matter: Facts = {
        "license": manifest.license or "unknown",
        "language": list(manifest.languages),
        "pretty_name": manifest.name,
        "task_categories": ["translation" if translates else "text-generation"],
        "size_categories": [_size(rows)],
        "annotations_creators": ["machine-generated"],
        "tags": list(TAGS),
    }
    return {name: value for name, value in matter.items() if value}


def _digest(page: Page) -> str:
    return digest([page.blocks, {k: v for k, v in (page.values() or {}).items() if k in OURS}])


def _rendered(run: RunDirectory, template: str, matter: Facts) -> str:
    return environment().get_template(template).render(run_facts(run, matter))


def run_facts(run: RunDirectory, matter: Facts) -> Facts:
    """All that a card may tell of a run; `matter` is more for its front matter."""
    manifest, record, tables = run.manifest(), run.record(), figures(run)
    tree = manifest.model_dump(mode="json", exclude_unset=True)
    head = front_matter(manifest, _rows(tables)) | matter
    return {
        "front_matter": Markup(to_yaml(head)),  # noqa: S704 — our YAML
        "manifest": manifest,
        "manifest_yaml": Markup(to_yaml(_portable(tree))),  # noqa: S704 — stands in a code block
        "teacher_name": short_path(manifest.teacher.model) if manifest.teacher else None,
        "teacher": record.get("teacher"),
        "tokenizer": record.get("tokenizer"),
        "versions": record.get("versions", {}),
        "steps": record["steps"],
        "decoding": _decoding(manifest),
        "check": next(filter(None, (run.step(s).get("check") for s in CHECKED)), None),
        "figures": tables,
        "unfailed": [rule for rule, n in run.step("judge").get("reasons", {}).items() if not n],
        "stages": [{f: stage.get(f) for f in STAGE_FACTS} for stage in run.stage_records()],
        "start": start_of(run),
        "imported": list(imported_files(run).values()),
    }


def environment() -> jinja2.Environment:
    """Templates of `data_cards`, and the filters that make what they show harmless."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped("data_cards")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": cell, "number": number, "small": small, "figure": markup}
    return environment


def _decoding(manifest: Manifest) -> str:
    """How the teacher decoded: its limit, its decoding's own keys, what else is not the default."""
    generate = manifest.generate
    told = generate.model_dump(mode="json", include=set(DECODING_KEYS[generate.decoding]))
    told |= generate.model_dump(mode="json", exclude_defaults=True, exclude=STORING)
    most = generate.max_new_tokens
    limit = (
        most if isinstance(most, int) else f"min({most.cap}, {most.ratio} · prompt + {most.plus})"
    )
    others = [f"{key} {_shown(value)}" for key, value in told.items()]
    return ", ".join([generate.decoding, f"at most {limit} new tokens", *others])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _rows(tables: dict[str, Figure]) -> int:
    """Selected targets, or what the student learns from where there is no teacher."""
    gold = tables["sources"].total("gold_the_student_may_see")
    return tables["targets"].total("selected") or gold


def _size(rows: int) -> str:
    return next((name for limit, name in SIZES + LARGER if rows < limit), "n>1T")


def _portable(tree: Any) -> Any:
    """A manifest without the folders of the machine it ran on."""
    if isinstance(tree, list):
        return [_portable(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    return {
        name: short_path(value) if name in PATHS and isinstance(value, str) else _portable(value)
        for name, value in tree.items()
    }
