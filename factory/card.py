"""The data card: what a run's data are, where they come from, and what they measure."""

from __future__ import annotations

import html
import json
import re
import time
from typing import Any

import jinja2
from markupsafe import Markup

from factory.catalog import connect
from factory.decoding import DECODING_KEYS
from factory.files import shipped, write_text
from factory.importing import imported_files
from factory.manifest import Manifest
from factory.reading import to_yaml
from factory.records import RunDirectory
from factory.tables import plain
from factory.viewing import Facts, digest_run, fetch

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
LARGER = ((10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))
TAGS = ("knowledge-distillation", "sequence-level-distillation", "pseudolabels", "seqkd")
PATHS = frozenset({"path", "source", "target", "root", "model", "candidates_from"})
# The step that decodes checks itself; what it cannot check, the step that scores does.
CHECKED = ("generate", "score")
STORING = {"decoding", "max_new_tokens", "shard_size", "window", "check"}
MARKDOWN = re.compile(r"([\\`*_\[\]|~#!$])")
CELL_WIDTH = 200


def write_card(run: RunDirectory, key: str) -> None:
    """Write `card.md` from `data_cards/template.md.j2`, and record the step under `key`."""
    began = time.monotonic()
    write_text(run.path("card.md"), render(run))
    run.finish("card", key, time.monotonic() - began)


def render(run: RunDirectory, template: str = "template.md.j2", matter: Facts | None = None) -> str:
    """The card as Markdown with YAML front matter. Every figure in it is SQL over the views.

    `matter` is more for the front matter, such as where data files lie.
    """
    return _environment().get_template(template).render(_facts(run, matter or {}))


def front_matter(manifest: Manifest, facts: Facts) -> Facts:
    """What dataset hubs read: licence, languages, task, size, tags, and where the tables lie."""
    translates = len(set(manifest.languages)) > 1
    matter: Facts = {
        "license": manifest.license or "unknown",
        "language": list(manifest.languages),
        "pretty_name": manifest.name,
        "task_categories": ["translation" if translates else "text-generation"],
        "size_categories": [_size(_rows(facts))],
        "annotations_creators": ["machine-generated"],
        "tags": list(TAGS),
    }
    return {name: value for name, value in matter.items() if value}


def cell(value: Any) -> Markup:
    """Text from the data as a cell of a Markdown table: one line, nothing in it is markup."""
    text = plain("–" if value is None else str(value))
    short = text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 1] + "…"
    safe = html.escape(short, quote=False)  # as &#39; an apostrophe would be cut by the next line
    return Markup(MARKDOWN.sub(r"\\\1", safe))  # noqa: S704 — escaped just here


def number(value: float | None, digits: int = 2) -> str:
    """A figure for people: thousands apart, so many decimals unless it is whole."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def small(value: float) -> str:
    """A figure that may be far below one: two digits that count."""
    return f"{value:.2g}"


def _facts(run: RunDirectory, matter: Facts) -> Facts:
    manifest, record = run.manifest(), run.record()
    facts = digest_run(run)
    with connect(run) as connection:
        samples = {
            name: fetch(connection, f"inspect/some_{name}") for name in ("selected", "rejected")
        }
    tree = manifest.model_dump(mode="json", exclude_unset=True)
    return facts | {
        "front_matter": Markup(to_yaml(front_matter(manifest, facts) | matter)),  # noqa: S704 — our YAML
        "manifest": manifest,
        "manifest_yaml": Markup(to_yaml(_portable(tree))),  # noqa: S704 — stands in a code block
        "teacher_name": _short_path(manifest.teacher.model) if manifest.teacher else None,
        "teacher": record.get("teacher"),
        "tokenizer": record.get("tokenizer"),
        "versions": record.get("versions", {}),
        "steps": record["steps"],
        "decoding": _decoding(manifest),
        "check": next(filter(None, (run.step(s).get("check") for s in CHECKED)), None),
        "samples": samples,
        "imported": list(imported_files(run).values()),
        "signatures": sorted({s["signature"] for s in facts["scores"] if s["signature"]}),
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped("data_cards")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": cell, "number": number, "small": small}
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


def _rows(facts: Facts) -> int:
    """Selected targets, or what the student learns from where there is no teacher."""
    gold = sum(split["visible_gold"] for split in facts["sources"])
    return int(facts["verdicts"]["selected"] or gold)


def _size(rows: int) -> str:
    return next((name for limit, name in SIZES + LARGER if rows < limit), "n>1T")


def _portable(tree: Any) -> Any:
    """A manifest without the folders of the machine it ran on."""
    if isinstance(tree, list):
        return [_portable(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    return {
        name: _short_path(value) if name in PATHS and isinstance(value, str) else _portable(value)
        for name, value in tree.items()
    }


def _short_path(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] if path.startswith("/") else path
