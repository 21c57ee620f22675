"""One sample and all that became of it: candidates under their source, verdicts, signals."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from factory.errors import RunError
from factory.looking.panels import Facts, cell, filled, panel
from factory.looking.viewing import fetch
from factory.query.catalog import connect
from factory.query.tables import plain
from factory.records import RunDirectory

# Down to which probability of a token it is shown how: dark on light reads on any terminal.
BANDS = (
    (0.9, ""),
    (0.5, "black on light_goldenrod1"),
    (0.1, "black on sandy_brown"),
    (0.0, "white on red3"),
)
UNSURE = 0.9
LEAST = 3  # of the least sure tokens
WIDE = 8  # candidates whose signals stand side by side
KEY = ("sample_id", "rank")
# Signals that are told elsewhere, or summed up by another.
ASIDE = ("n_words_", "n_chars_", "n_tokens", "mean_logprob", "top_", "duplicate_")


def inspect_sample(run: RunDirectory, sample_id: str) -> Facts:
    """One source: its row, `candidates` with signals, verdicts and tokens, and `predictions`.

    A candidate's `tokens` are the pieces of its text with their log-probabilities (nats), where
    the run keeps those. An id may be cut short as long as no other begins so.

    Raises:
        RunError: the run has no such sample.
    """
    asked = {"sample_id": sample_id}
    with connect(run) as connection:
        found = fetch(connection, "inspect/sample", asked)
        if not found:
            near = [row["sample_id"] for row in fetch(connection, "inspect/nearest", asked)]
            remedy = f"did you mean {', '.join(near)}?" if near else "the run has no samples yet"
            raise RunError("sample", sample_id, f"is not in this run: {remedy}")
        asked = {"sample_id": found[0]["sample_id"]}
        candidates = fetch(connection, "inspect/sample_candidates", asked)
        kept = {row["rank"]: row for row in fetch(connection, "inspect/sample_tokens", asked)}
        predictions = fetch(connection, "inspect/sample_predictions", asked)
    for row in candidates:
        measured = row["signals"] or {}
        row["signals"] = {name: value for name, value in measured.items() if name not in KEY}
        row["tokens"] = spell(**_given(kept.get(row["rank"])))
    return found[0] | {"candidates": candidates, "predictions": predictions}


def spell(pieces: Iterable[bytes], logprobs: Iterable[float]) -> list[Facts]:
    """Tokens as pieces of text: those that are a character together are one, of their sum."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    spelt: list[Facts] = []
    waiting = 0.0
    for piece, logprob in zip(pieces, logprobs, strict=True):
        waiting += logprob
        if text := decoder.decode(piece):
            spelt.append({"text": text, "logprob": waiting})
            waiting = 0.0
    if rest := decoder.decode(b"", final=True):
        spelt.append({"text": rest, "logprob": waiting})
    return spelt


def show_sample(facts: Facts) -> Group:
    """A sample as tables for the terminal: first what it is, then its texts under each other."""
    candidates = facts["candidates"]
    head = panel(None, "name", "text")
    for name in ("sample_id", "split", "prompt", "meta"):
        head.add_row(name, cell(facts[name]))
    columns = ("rank", "score", "mean_logprob", "n_tokens", "verdict", "least_sure")
    rows = [row | {"verdict": _verdict(row), "least_sure": _least(row)} for row in candidates]
    tables = (filled("candidates", rows, columns), _signals(candidates))
    parts: list[Any] = [head, _texts(facts), *(table for table in tables if table.row_count)]
    return Group(*parts, *([_legend()] if any(row["tokens"] for row in candidates) else []))


def _texts(facts: Facts) -> Table:
    """Source, gold, every candidate and what systems made of it, in one column."""
    shown = panel("texts", "name", "text")
    for name in ("source", "gold"):
        shown.add_row(name, cell(facts[name]))
    for row in facts["candidates"]:
        shown.add_row(f"rank {row['rank']}", _coloured(row))
    for row in facts["predictions"]:
        shown.add_row(" ".join(filter(None, (row["system"], row["stage"]))), cell(row["text"]))
    return shown


def _coloured(row: Facts) -> Text:
    """A candidate's text, its tokens by their probability."""
    if not row["tokens"]:
        return cell(row["error"] if row["text"] is None else row["text"])
    text = Text()
    for token in row["tokens"]:
        word = token["text"].lstrip(" ")
        text.append(" " * (len(token["text"]) - len(word)) if text else "")
        text.append(plain(word), _style(token["logprob"]))
    return text


def _style(logprob: float) -> str:
    return next(style for least, style in BANDS if math.exp(logprob) >= least)


def _least(row: Facts) -> str:
    """The tokens that the teacher was least sure of, and their probability."""
    unsure = [token for token in row["tokens"] if math.exp(token["logprob"]) < UNSURE]
    least = sorted(unsure, key=lambda token: float(token["logprob"]))[:LEAST]
    return ", ".join(f"{token['text'].strip()} {math.exp(token['logprob']):.2g}" for token in least)


def _legend() -> Text:
    text = Text("a token's probability: at least ")
    for least, style in BANDS[:-1]:
        text.append(f" {least} ", style)
        text.append(", ")
    return text.append("less", BANDS[-1][1])


def _signals(candidates: list[Facts]) -> Table:
    """What was measured, a column for each candidate; what none of them shows is left out."""
    first = candidates[:WIDE]
    title = "signals" if first == candidates else f"signals of the first {WIDE}"
    shown = panel(title, "signal", *(f"rank {row['rank']}" for row in first))
    for name in first[0]["signals"] if first else ():
        values = [row["signals"].get(name) for row in first]
        telling = any(value is not None and (value or type(value) is float) for value in values)
        if telling and not name.startswith(ASIDE):
            shown.add_row(name, *(cell(value) for value in values))
    return shown


def _verdict(row: Facts) -> str:
    if row["kept"] is None:
        return "not judged"
    if row["reasons"]:
        return ", ".join(row["reasons"])
    return "selected" if row["selected"] else "kept"


def _given(row: Facts | None) -> Facts:
    return {name: row[name] if row else () for name in ("pieces", "logprobs")}
