"""`seqkd export`: pseudolabels as JSONL, TSV, Parquet, or a folder that `datasets` loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from factory.cards.card import render
from factory.errors import QueryError, RunError, nearest
from factory.files import replacing, replacing_folder, shipped, write_text
from factory.query.catalog import Connection, connect, quoted
from factory.records import RunDirectory
from factory.shards import SIGNATURE
from factory.sources import opened

COLUMNS = (
    "sample_id",
    "source",
    "target",
    "rank",
    "score",
    "mean_logprob",
    "finish_reason",
    "token_ids",
)
SUFFIXES = {"jsonl": ".jsonl", "tsv": ".tsv", "parquet": ".parquet", "datasets": ""}
PACKED = {".gz": "gzip", ".zst": "zstd"}
DATA = "data/train-00000-of-00001.parquet"  # what `datasets` calls a split of one file
CARD = "README.md"
CONFIGS = [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
ROW_GROUP = 8192


def export(
    run: RunDirectory, to: str | None = None, output: Path | None = None, force: bool = False
) -> dict[str, Any]:
    """Write the run's pseudolabels, in the order of its rows; whole or not at all.

    `to` is jsonl, tsv, parquet or datasets; None reads it off the ending of `output`, and is jsonl
    without one. `output` None is `NAME-pseudolabels` in the working folder.

    Returns:
        output, to, rows and bytes.

    Raises:
        QueryError: the form is not known, or the ending says another.
        RunError: nothing is selected, or the output stands and may not be replaced.
    """
    form = _form(to, output)
    path = output or Path(f"{run.manifest().name}-pseudolabels{SUFFIXES[form]}")
    _check_place(path, form, force)
    with connect(run) as database:
        database.execute(f"CREATE TEMP VIEW chosen AS {_sql('pseudolabels')}")
        [(rows,)] = database.execute("SELECT count(*) FROM pseudolabels").fetchall()
        if not rows:
            remedy = "holds no pseudolabels: seqkd judge first, or loosen judge.rules"
            raise RunError(run.root, None, remedy)
        if form == "datasets":
            _write_folder(run, database, path)
        else:
            with replacing(path) as temporary:
                _copy(run, database, temporary, form, PACKED.get(path.suffix))
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
    return {"output": str(path), "to": form, "rows": rows, "bytes": size}


def _form(to: str | None, output: Path | None) -> str:
    if to is not None and to not in SUFFIXES:
        raise QueryError("--to", to, f"is no format: {nearest(to, SUFFIXES)}")
    if output is None or (to == "datasets" and output.suffix not in (*SUFFIXES.values(), *PACKED)):
        return to or "jsonl"
    plain = output.with_suffix("") if output.suffix in PACKED else output
    told = next((name for name, suffix in SUFFIXES.items() if suffix == plain.suffix), None)
    if told is None or (to or told) != told or (told == "parquet" and plain != output):
        endings = ".jsonl or .tsv (also .gz, .zst), .parquet; a folder of datasets has none"
        raise QueryError("--output", str(output), f"does not end as {to or 'a format'}: {endings}")
    return told


def _check_place(path: Path, form: str, force: bool) -> None:
    """Refuse to replace anything that this command has not written.

    Raises:
        RunError: something stands there.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not _is_ours(path, form):
        raise RunError(path, None, "stands there, and is no export: name another output")
    if not force:
        raise RunError(path, None, "stands there: --force replaces it")


def _is_ours(path: Path, form: str) -> bool:
    """Whether a file begins as an export of this form does."""
    if form == "datasets":
        files = {f.relative_to(path).as_posix() for f in path.rglob("*") if not f.is_dir()}
        return files == {DATA, CARD} and _is_signed(path / DATA)
    if not path.is_file():
        return False
    if form == "parquet":
        return _is_signed(path)
    with opened(str(path)) as stream:
        first = stream.readline()
    if form == "tsv":
        return first.decode(errors="replace").rstrip("\n").split("\t") == list(COLUMNS[:-1])
    try:
        return list(json.loads(first)) == list(COLUMNS)
    except ValueError:
        return False


def _is_signed(path: Path) -> bool:
    with path.open("rb") as stream:
        if stream.read(4) != b"PAR1":
            return False
    return SIGNATURE in (pq.read_schema(path).metadata or {})


def _copy(
    run: RunDirectory, database: Connection, path: Path, form: str, packed: str | None = None
) -> None:
    packing = f", COMPRESSION {packed}" if packed else ""
    options = {
        "jsonl": f"FORMAT json{packing}",
        "tsv": f"FORMAT csv, DELIMITER '\t', QUOTE '', ESCAPE '', HEADER{packing}",
        "parquet": f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP}, "
        f"KV_METADATA {{{quoted(SIGNATURE.decode())}: {quoted(_signature(run))}}}",
    }
    rows = _sql("tsv") if form == "tsv" else "FROM chosen"
    database.execute(f"COPY ({rows}) TO {quoted(str(path))} ({options[form]})")


def _signature(run: RunDirectory) -> str:
    """What the pseudolabels come from: the keys of the run's steps, teacher and tokenizer."""
    record = run.record()
    keys = {name: step["key"] for name, step in record["steps"].items()}
    facts = {name: record.get(name) for name in ("teacher", "tokenizer", "versions")}
    return json.dumps({"run": run.manifest().name, "steps": keys} | facts)


def _write_folder(run: RunDirectory, database: Connection, path: Path) -> None:
    with replacing_folder(path) as folder:
        (folder / DATA).parent.mkdir()
        with replacing(folder / DATA) as temporary:
            _copy(run, database, temporary, "parquet")
        write_text(folder / CARD, render(run, "export.md.j2", {"configs": CONFIGS}))


def _sql(name: str) -> str:
    return (shipped("sql") / "export" / f"{name}.sql").read_text(encoding="utf-8")
