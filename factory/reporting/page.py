"""The page of a report: figures, their data and all that draws them, in one HTML file.

Text of the data is escaped as text, and as JSON that holds no `<`; the page's own policy lets no
other script run than the two it was written with, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from factory.errors import RunError
from factory.files import write_text
from factory.looking.viewing import Facts
from factory.manifest import Manifest
from factory.query.tables import plain
from factory.records import RunDirectory
from factory.reporting.figures import SAMPLES, Tables, collect
from factory.reporting.sections import NAMES, sections

REPORT = "report.html"
PAGE = Path(__file__).parent / "page"
LETTERS = ("kB", "MB", "GB", "TB")


def write_report(run: RunDirectory, key: str, beside: Sequence[RunDirectory] = ()) -> None:
    """Write a run's `report.html`, and record the step under `key`; see `render`."""
    began = time.monotonic()
    write_text(run.path(REPORT), render(run, beside))
    run.finish("report", key, time.monotonic() - began)


def write_page(run: RunDirectory, path: Path, beside: Sequence[RunDirectory] = ()) -> None:
    """Write a run's report to any file, whole or not at all; the run is only read.

    Raises:
        RunError: there is a folder of that name.
    """
    if path.is_dir():
        raise RunError("--output", str(path), f"is a folder: name a file, such as {path / REPORT}")
    write_text(path, render(run, beside))


def render(run: RunDirectory, beside: Sequence[RunDirectory] = ()) -> str:
    """A run's report as HTML, its scores compared with those of the runs beside it."""
    tables = collect(run, beside)
    manifest, parts = run.manifest(), sections(tables)
    library, script = _library(), _text("report.js")
    drawn = [figure for part in parts for figure in part.figures]
    samples = [row | {"facts": _facts(row)} for row in tables["samples"]]
    return _template().render(
        name=manifest.name,
        subtitle=_subtitle(manifest, tables),
        tiles=_tiles(tables),
        sections=parts,
        samples=samples,
        groups=list(dict.fromkeys(row["group"] for row in samples)),
        each=SAMPLES,
        versions=run.record().get("versions", {}),
        data={figure.name: {"spec": figure.spec, "rows": figure.rows} for figure in drawn},
        style=_trusted(_text("report.css")),
        library=_trusted(library),
        script=_trusted(script),
        policy=_policy(library, script),
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # columns keep their order
    environment.filters |= {"shown": shown, "label": lambda name: name.replace("_", " ")}
    return environment.get_template("report.html.j2")


def shown(value: Any) -> str:
    """A value for people: thousands apart, four digits that count, no control characters."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:,.4g}"
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return f"{value:,}" if isinstance(value, int) else plain_lines(str(value))


def plain_lines(text: str) -> str:
    """Text without control characters, lines and tabs left as they are."""
    return "\n".join("\t".join(map(plain, line.split("\t"))) for line in text.split("\n"))


def _text(name: str) -> str:
    return PAGE.joinpath(name).read_text("utf-8")


def _trusted(code: str) -> Markup:
    """Our own script or style, as it stands between its tags."""
    return Markup(code)  # noqa: S704 — shipped with us, or by the libraries that draw


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which holds nothing that would end it."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _policy(*scripts: str) -> str:
    """What the page may do: run these scripts, style itself, show an image it holds."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _subtitle(manifest: Manifest, tables: Tables) -> list[str]:
    splits = ", ".join(f"{row['sources']:,} {row['split']}" for row in tables["sources"])
    facts = [" → ".join(manifest.languages), f"{splits} sources" if splits else ""]
    if manifest.teacher:
        facts.append(f"teacher {Path(manifest.teacher.model).name}, {manifest.generate.decoding}")
    if manifest.student:
        stages = ", then ".join(stage.name for stage in manifest.student.stages)
        facts.append(f"student on {stages}")
    return [fact for fact in facts if fact]


def _tiles(tables: Tables) -> list[Facts]:
    """The key figures, those that the run has."""
    made, judged = tables["candidates"][0], tables["verdicts"][0]
    tiles = []
    if made["candidates"]:
        sources = tables["funnel"][0]["sources"]
        failed = f", {made['errors']:,} failed" if made["errors"] else ""
        note = f"of {sources:,} sources{failed}"
        tiles.append(_tile("candidates", f"{made['candidates']:,}", note))
    if judged["candidates"]:
        share = judged["kept"] / judged["candidates"]
        tiles.append(_tile("kept", f"{share:.1%}", f"{judged['kept']:,} by the rules"))
        tiles.append(_tile("pseudolabels", f"{judged['selected']:,}", "selected targets"))
    if tables["caches"]:
        tiles.append(_cached(tables))
    if tables["training"]:
        last = tables["training"][-1]
        tiles.append(_tile("training", f"{last['step']:,}", "optimiser steps"))
    return tiles + _best(tables)


def _cached(tables: Tables) -> Facts:
    size = next(row["bytes"] for row in tables["bytes"] if row["stored"] == "distributions")
    tokens = sum(row["tokens"] for row in tables["caches"])
    return _tile("distributions", in_bytes(size), f"{size / tokens:,.1f} bytes a token")


def _best(tables: Tables) -> list[Facts]:
    """The first metric of the first split, of every system; of a student its last stage."""
    rows = tables["scores"]
    first = [
        row
        for row in rows
        if (row["split"], row["metric"]) == (rows[0]["split"], rows[0]["metric"])
    ]
    last = {row["system"]: row for row in first}
    return [
        _tile(
            f"{NAMES.get(row['metric'], row['metric'])}, {system}",
            f"{row['score']:.1f}",
            _interval(row),
        )
        for system, row in last.items()
    ]


def _interval(row: Facts) -> str:
    if row["ci_low"] is None:
        return str(row["split"])
    return f"{row['ci_low']:.1f} to {row['ci_high']:.1f}, {row['split']}"


def in_bytes(size: float) -> str:
    """A size in decimal units, one digit after the point."""
    unit = "bytes"
    for letter in LETTERS:
        if size < 1000:
            break
        size, unit = size / 1000, letter
    return f"{size:,.1f} {unit}" if unit != "bytes" else f"{size:,} bytes"


def _tile(label: str, value: str, note: str) -> Facts:
    return {"label": label, "value": value, "note": note}


def _facts(row: Facts) -> list[str]:
    """The figures of a sample, those it has."""
    figures = (
        ("chrF", row["chrf_gold"], ".1f"),
        ("log-probability", row["mean_logprob"], ".3f"),
        ("length ratio", row["length_ratio"], ".2f"),
    )
    told = [f"{name} {value:{form}}" for name, value, form in figures if value is not None]
    return [row["group"], f"rank {row['rank']}", *told]
