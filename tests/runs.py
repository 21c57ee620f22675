"""Small runs made by hand: what the steps would have written, for tests of what reads it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from factory import schemas
from factory.files import write_json
from factory.manifest import Manifest
from factory.records import FileRecord, RunDirectory
from factory.shards import write_part

Row = dict[str, Any]
SIGNATURE = {"made": "by hand"}
MANIFEST: dict[str, Any] = {
    "name": "hand",
    "data": {"train": {"path": "/nowhere/train.tsv"}},
    "teacher": {"model": "some/teacher"},
}


def make_run(root: Path, **sections: Any) -> RunDirectory:
    """A run directory that has done nothing yet; `sections` replace those of the manifest."""
    run = RunDirectory(root)
    run.adopt(Manifest.model_validate(MANIFEST | sections))
    return run


def part(run: RunDirectory, table: str, rows: Iterable[Row], schema: pa.Schema) -> FileRecord:
    """One recorded part of a table, at `TABLE/part-0.parquet`, absent columns NULL."""
    return _part(run, run.path(table, "part-0.parquet"), table, rows, schema)


def add_samples(run: RunDirectory, rows: Iterable[Row], refused: Iterable[Row] = ()) -> None:
    """Finish the samples step. A row needs sample_id and source; the rest has defaults."""
    filled = [_sample(i, row) for i, row in enumerate(rows)]
    files = [part(run, "samples", filled, schemas.SAMPLES)]
    if refused := list(refused):
        files.append(part(run, "refused", refused, schemas.REFUSED))
    run.finish("samples", "samples-key", 0.1, files=files)


def add_tokens(run: RunDirectory, tokens: Iterable[str]) -> None:
    """Keep tokens, blanks written ▁, beside samples that are there."""
    rows = [
        {"token_id": i, "token": token, "bytes": token.replace("▁", " ").encode()}
        for i, token in enumerate(tokens)
    ]
    file = part(run, "tokens", rows, schemas.TOKENS)
    run.amend("samples", files=[*run.step("samples")["files"], file])


def add_shard(
    run: RunDirectory, shard: int, candidates: Iterable[Row], logits: Iterable[Row] = ()
) -> None:
    """Finish a shard. A candidate needs sample_id, and text or error; the rest has defaults."""
    rows = [_candidate(row) for row in candidates]
    name = f"{shard:05d}"
    path = run.path("candidates", f"{name}.parquet")
    files = [_part(run, path, "candidates", rows, schemas.CANDIDATES)]
    if distributions := [_hashed(row) for row in logits]:
        path = run.path("logits", f"{name}.parquet")
        files.append(_part(run, path, "logits", distributions, schemas.STORED_LOGITS))
    record = {
        "shard": shard,
        "key": "generate-key",
        "samples": len({row["sample_id"] for row in rows}),
        "candidates": len(rows),
        "tokens": sum(row.get("n_tokens") or 0 for row in rows),
        "errors": sum(row.get("error") is not None for row in rows),
        "seconds": 2.0,
        "bytes": sum(run.path(file["path"]).stat().st_size for file in files),
        "files": files,
    }
    write_json(run.path("shards", f"{name}.json"), record)


def finish_generate(run: RunDirectory) -> None:
    """Record that every shard is done."""
    run.note(teacher={"model": "some/teacher", "fingerprint": "teacher-print", "vocab_size": 100})
    run.finish("generate", "generate-key", 2.0)


def finish_judge(run: RunDirectory, judged: Iterable[Row]) -> None:
    """Finish the judgement. A row needs sample_id; its signals, `reasons` and `selected` go where
    they belong, and a candidate without reasons is kept and, unless told otherwise, selected."""
    rows = [{"rank": 0, "reasons": []} | row for row in judged]
    for row in rows:
        row["kept"] = not row["reasons"]
        row["selected"] = row.get("selected", row["kept"])
    files = [
        part(run, "signals", _only(rows, schemas.SIGNALS), schemas.SIGNALS),
        part(run, "verdicts", _only(rows, schemas.VERDICTS), schemas.VERDICTS),
    ]
    run.finish("judge", "judge-key", 0.1, files=files)


def add_stage(run: RunDirectory, stage: str, log: Iterable[Row], **facts: Any) -> None:
    """Finish a training stage. A row of the log needs step, stage_step, loss and tokens."""
    rows = [{"stage": stage, "epoch": 1, "terms": {"ce": 1.0}, "lr": 1e-3} | row for row in log]
    path = run.path("student", stage, "train_log.parquet")
    file = _part(run, path, "train_log", rows, schemas.TRAIN_LOG)
    write_json(path.with_name("stage.json"), {"stage": stage, "files": [file]} | facts)


def begin_stage(run: RunDirectory, stage: str, log: Iterable[Row], **facts: Any) -> None:
    """Log some steps of a stage that is not done. Two rows a part; rows as in `add_stage`."""
    rows = [{"stage": stage, "epoch": 1, "terms": {"ce": 1.0}, "lr": 1e-3} | row for row in log]
    folder = run.path("student", stage)
    parts = {folder / "train_log" / f"{i}.parquet": rows[i : i + 2] for i in range(0, len(rows), 2)}
    files = [_part(run, p, "train_log", two, schemas.TRAIN_LOG) for p, two in parts.items()]
    scored: Row = {"scores": [], "scored_steps": [], "scored_epochs": [], "seconds_per_step": None}
    record = {"stage": stage, "key": "stage-key", "planned_steps": 600, "files": files}
    write_json(folder / "log.json", record | scored | facts)


def finish_evaluate(
    run: RunDirectory, evals: Iterable[Row], predictions: Iterable[Row] = ()
) -> None:
    """Finish the evaluation. A score needs system, split, metric and score."""
    scores = [{"signature": "by|hand"} | row for row in evals]
    files = [_part(run, run.path("evals.parquet"), "evals", scores, schemas.EVALS)]
    if predicted := list(predictions):
        files.append(part(run, "predictions", predicted, schemas.PREDICTIONS))
    run.finish("evaluate", "evaluate-key", 1.0, files=files)


def _part(
    run: RunDirectory, path: Path, table: str, rows: Iterable[Row], schema: pa.Schema
) -> FileRecord:
    built = pa.Table.from_pylist(list(rows), schema=schema)
    return write_part(run, path, table, built.to_batches(), schema, SIGNATURE)


def _only(rows: list[Row], schema: pa.Schema) -> list[Row]:
    return [{name: row.get(name) for name in schema.names} for row in rows]


def _sample(index: int, row: Row) -> Row:
    defaults = {
        "split": "train",
        "gold_visible": False,
        "prompt": row["source"],
        "n_prompt_tokens": len(row["source"].split()),
        "meta": "{}",
        "prompt_ids": list(range(len(row["source"].split()))),
        "prompt_hash": 1,
        "row": index,
    }
    return defaults | row


def _candidate(row: Row) -> Row:
    if row.get("error"):
        return {"rank": 0, "prompt_hash": 1, "finish_reason": "error", "ordinal": 0} | row
    tokens = len(row["text"].split()) + 1
    defaults = {
        "prompt_hash": 1,
        "rank": 0,
        "score": -0.5,
        "token_ids": list(range(tokens)),
        "n_tokens": tokens,
        "sum_logprob": -0.5 * tokens,
        "mean_logprob": -0.5,
        "finish_reason": "stop",
        "ordinal": 0,
        "seed": 17,
    }
    return defaults | row


def _hashed(row: Row) -> Row:
    return {"prompt_hash": 1, "origin": "candidate", "rank": 0} | row
