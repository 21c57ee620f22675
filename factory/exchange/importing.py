"""`seqkd import`: candidates made elsewhere, and their distributions, as shards of a run.

All or nothing: the whole file is looked at and its parts are written aside; only then do they get
their names, and last their records.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from factory.distributions.precision import stored
from factory.distributions.toplists import TopLists, first_fault, logits_rows
from factory.errors import SourceError
from factory.exchange.candidates import stage
from factory.files import replacing, shipped, write_json
from factory.generation.generate import teacher_of
from factory.generation.responses import Responses
from factory.manifest import Manifest
from factory.progress import progress
from factory.prompting.encoding import special_tokens
from factory.prompting.tokenizing import encode_targets, load_tokenizer
from factory.query.catalog import Connection, connect, parquet
from factory.records import SUMMED, FileRecord, RunDirectory, imported_files, library_versions
from factory.schemas import CANDIDATES, INTS, STORED_LOGITS
from factory.shards import write_part
from factory.sources import content_digest
from factory.steps import Plan, import_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORK, OFFERED = ".import", "offered.parquet"
MEMORY = "512MB"  # of DuckDB's; the rest of a sort spills to the run
SHOWN = ("rows", *SUMMED, "distributions", "shards")

Row = dict[str, Any]


def bring_in(run: RunDirectory, plan: Plan, file: str) -> Row:
    """Make shards of the candidates in a file, unless they stand there already.

    Returns:
        file, outcome (`done`, or `stands`: all of it stood there before), rows, samples,
        candidates, tokens, errors, bytes, distributions, shards; `ignored` names columns that
        mean nothing here, where there are any.

    Raises:
        SourceError: the file, or one of its rows, cannot be used; nothing of it is kept.
    """
    sha256 = content_digest(file)
    standing = imported_files(run).get(sha256)
    if not standing or standing["done"] < standing["shards"]:
        ignored = _take(run, plan, file, sha256)
        figures = imported_files(run)[sha256]
        told = {"ignored": list(ignored)} if ignored else {}
        return {"file": file, "outcome": "done"} | {name: figures[name] for name in SHOWN} | told
    return {"file": file, "outcome": "stands"} | {name: standing[name] for name in SHOWN}


def _take(run: RunDirectory, plan: Plan, file: str, sha256: str) -> tuple[str, ...]:
    """Take a file in, whatever a killed import left of it; the columns that mean nothing here."""
    for record in run.shard_records():
        if record.get("imported", {}).get("sha256") == sha256:
            run.drop("shards", record)
    with _workplace(run) as work, connect(run) as database:
        rows, ignored = stage(file, work / OFFERED, _id_fields(plan.manifest))
        database.execute(f"CREATE VIEW offered AS {parquet([work / OFFERED])}")
        job = Import(run, plan, file, database, work)
        job.place()
        facts = {"name": Path(file).name, "sha256": sha256, "rows": rows}
        _publish(run, work, list(job.shards(facts)))
    return ignored


class Import:
    """One file on its way into a run."""

    def __init__(
        self, run: RunDirectory, plan: Plan, file: str, database: Connection, work: Path
    ) -> None:
        self._run, self._plan, self._file = run, plan, file
        self._database, self._work = database, work
        teacher = teacher_of(plan.manifest)
        self._tokenizer = load_tokenizer(teacher.model, teacher.revision)
        self._responses = Responses(self._tokenizer, plan.manifest.generate)
        self._precision = plan.manifest.logits.precision
        self._ends = _end_ids(plan.manifest, self._tokenizer)

    def place(self) -> None:
        """Lay the rows against the run's samples, rank them, and say which shard each belongs to.

        Raises:
            SourceError: naming the first row at fault.
        """
        self._database.execute(f"SET memory_limit = '{MEMORY}'")
        self._database.execute(_sql("macros"))
        self._database.execute(_sql("addressed"))
        self._require_sound("misplaced", {})
        [(ranks,)] = self._database.execute("SELECT count(rank) FROM offered").fetchall()
        self._require_sound("unfit", self._limits(bool(ranks)))
        spec = self._plan.manifest.generate
        values = {"ranked": bool(ranks), "size": spec.shard_size, "exponent": spec.exponent}
        self._database.execute(_sql("ranks"), values)
        self._require_sound("misranked", {})

    def shards(self, facts: Row) -> Iterator[Row]:
        """Write the shards' parts aside; their records, as they are to be.

        Raises:
            SourceError: text and ids of a row, or its lists, contradict each other.
        """
        [(count,)] = self._database.execute("SELECT max(shard) + 1 FROM ranks").fetchall()
        first = 1 + max((record["shard"] for record in self._run.shard_records()), default=-1)
        imported = facts | {"shards": count}
        with progress("importing", facts["rows"]) as advance:
            for index in range(count):
                began = time.monotonic()
                rows = self._rows(index)
                record = self._shard(first + index, self._whole(rows), imported)
                yield record | {"seconds": round(time.monotonic() - began, 3)}
                advance(len(rows))

    def _rows(self, shard: int) -> pa.Table:
        """The rows of a shard, from the few row groups of the staged file that hold them."""
        sql = 'SELECT DISTINCT "row" FROM ranks WHERE shard = $shard'
        numbers = self._database.execute(sql, {"shard": shard}).fetchnumpy()["row"]
        with pq.ParquetFile(self._work / OFFERED) as staged:
            sizes = [staged.metadata.row_group(i).num_rows for i in range(staged.num_row_groups)]
            groups = np.unique(np.searchsorted(np.cumsum(sizes), numbers))
            self._database.register("portion", staged.read_row_groups(groups.tolist()))
        values = {"shard": shard, "ends": self._ends}
        return self._database.sql(_sql("placed"), params=values).to_arrow_table()

    def _limits(self, ranked: bool) -> Row:
        manifest, teacher = self._plan.manifest, self._plan.teacher
        vocabulary = 1 + max(self._tokenizer.get_vocab().values())
        fields = dict.fromkeys(["sample_id", *_id_fields(manifest), "source"])
        return {
            "ranked": ranked,
            "names": " or ".join(fields),
            "vocabulary": vocabulary,
            "head": max(vocabulary, teacher.vocab_size if teacher else 0),
            "k": manifest.logits.width,
            "ragged": manifest.logits.capture == "top_p",
            "ends": self._ends,
            "stops": bool(manifest.generate.stop),
        }

    def _require_sound(self, query: str, values: Row) -> None:
        found = self._database.execute(_sql(query), values).fetchone()
        if found:
            row, word, number, remedy = found
            raise self._fault(row, word if number is None else _number(number), remedy)

    def _fault(self, row: int, value: Any, remedy: str) -> SourceError:
        return SourceError(f"{self._file} row {row}", value, remedy)

    def _whole(self, rows: pa.Table) -> pa.Table:
        """The rows with text and ids both: the one from the other, or the two compared."""
        texts, ids = rows["text"].to_pylist(), rows["token_ids"].to_pylist()
        told = [i for i, given in enumerate(ids) if given is not None]
        decoded = self._responses.texts([ids[i] for i in told])
        for i, text in zip(told, decoded, strict=True):
            if texts[i] is not None and texts[i].strip() != text.strip():
                remedy = f"is the text, and its token_ids say {text!r}: give one of them"
                raise self._fault(rows["row"][i].as_py(), texts[i], remedy)
            texts[i] = text if texts[i] is None else texts[i]
        bare = [i for i, text in enumerate(texts) if text is not None and ids[i] is None]
        encoded = encode_targets(self._tokenizer, [texts[i] for i in bare])
        reasons = rows["finish_reason"].to_pylist()
        for i, target in zip(bare, encoded, strict=True):
            ids[i] = target if reasons[i] == "stop" else target[:-1]
        whole = {"text": pa.array(texts, pa.string()), "token_ids": pa.array(ids, INTS)}
        for name, column in whole.items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
        return rows

    def _shard(self, number: int, rows: pa.Table, imported: Row) -> Row:
        self._database.register("completed", rows)
        special = special_tokens(self._tokenizer)
        starts = {self._tokenizer.bos_token, self._plan.manifest.generate.first_token}
        values = {
            "special": self._tokenizer.convert_tokens_to_ids(sorted(special)),
            "starts": self._tokenizer.convert_tokens_to_ids(sorted(starts & special)),
        }
        table = self._database.sql(_sql("candidates"), params=values).to_arrow_table()
        files = [self._part("candidates", number, table, CANDIDATES, imported)]
        if distributions := self._distributions(rows):
            kept = stored(distributions, self._precision)
            files.append(self._part("logits", number, kept, STORED_LOGITS, imported))
        return {
            "shard": number,
            "key": import_key(self._plan),
            "samples": len(pc.unique(table["sample_id"])),
            "candidates": len(table),
            "tokens": pc.sum(table["n_tokens"]).as_py() or 0,
            "errors": len(table) - table["error"].null_count,
            "bytes": sum(self._aside(file["path"]).stat().st_size for file in files),
            "imported": imported,
            "files": files,
        }

    def _part(
        self, table: str, number: int, rows: pa.Table, schema: pa.Schema, imported: Row
    ) -> FileRecord:
        """A part written aside, and its record under the name that it is to have."""
        manifest = self._plan.manifest
        signature = {
            "key": import_key(self._plan),
            "imported": imported,
            "tokenizer": self._plan.tokenizer,
            **manifest.model_dump(mode="json", include={"prompt", "logits"}),
            **library_versions(),
        }
        name = f"{table}/{number:05d}.parquet"
        path = self._aside(name)
        record = write_part(self._run, path, table, [rows.select(schema.names)], schema, signature)
        return record | {"path": name}

    def _aside(self, name: str) -> Path:
        return self._work / name

    def _distributions(self, rows: pa.Table) -> pa.Table | None:
        """Rows of `schemas.LOGITS` for the candidates that brought lists; None where none did.

        Raises:
            SourceError: a position's list cannot be a distribution of its token.
        """
        rows = rows.filter(pc.is_valid(rows["topk_ids"])).combine_chunks()
        if not len(rows):
            return None
        lists = TopLists.of(rows)
        if fault := first_fault(lists):
            position, value, remedy = fault
            places = rows["widths"].combine_chunks().offsets.to_numpy()
            index = int(np.searchsorted(places, position, side="right")) - 1
            row, inner = rows["row"][index].as_py(), position - int(places[index])
            raise self._fault(row, _number(value), f"at position {inner}: {remedy}")
        logits = self._plan.manifest.logits
        return logits_rows(rows, lists, None if logits.capture == "top_p" else logits.k)


@contextmanager
def _workplace(run: RunDirectory) -> Iterator[Path]:
    """A folder inside the run, so that parts need no copying; what a killed import left is gone."""
    work = run.path(WORK)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(run: RunDirectory, work: Path, records: Sequence[Row]) -> None:
    """Parts first, records last: a part without a record is never read."""
    for record in records:
        for file in record["files"]:
            with replacing(run.path(file["path"])) as temporary:
                os.replace(work / file["path"], temporary)
    for record in records:
        write_json(run.path("shards", f"{record['shard']:05d}.json"), record)


def _id_fields(manifest: Manifest) -> list[str]:
    """What the user's id field is called, where rows to learn from have one."""
    splits = (manifest.data.train, manifest.data.unlabeled)
    return list(dict.fromkeys(split.id for split in splits if split and split.id))


def _end_ids(manifest: Manifest, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids that end a target: the tokenizer's, the model's, and the manifest's own."""
    from transformers import GenerationConfig

    teacher = teacher_of(manifest)
    try:
        config = GenerationConfig.from_pretrained(teacher.model, revision=teacher.revision)
        told = config.eos_token_id
    except OSError:
        told = None
    of_model = told if isinstance(told, list) else [] if told is None else [told]
    return sorted({tokenizer.eos_token_id, *of_model, *manifest.generate.stop_token_ids})


def _number(value: float) -> float:
    return int(value) if value.is_integer() else value


def _sql(name: str) -> str:
    return (shipped("sql") / "import" / f"{name}.sql").read_text(encoding="utf-8")
