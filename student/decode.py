"""Process entry: `python -m student.decode RUN_DIR SYSTEM` decodes the held-out splits.

One process a system, so that an engine's memory and threads go with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from factory.engines import Engine, Request, Result, decode, open_engine
from factory.errors import EngineError
from factory.files import read_json, write_json
from factory.generation.responses import Responses
from factory.manifest import Manifest
from factory.progress import Advance, progress
from factory.prompting.tokenizing import load_tokenizer
from factory.query.catalog import connect, quoted
from factory.records import FileRecord, RunDirectory
from factory.schemas import PREDICTIONS
from factory.shards import part_writer
from student.entry import run_process, stop_if_abandoned
from student.held_out import HeldOut
from student.initialise import parameters_of
from student.systems import System, count_split, system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH = 512


def decode_system(run: RunDirectory, name: str) -> None:
    """Decode every split that is to be measured, and record the texts and the speed.

    Raises:
        UserError: the system is missing, or its engine cannot be opened.
    """
    manifest = run.manifest()
    asked = system(run, manifest, name)
    tokenizer = load_tokenizer(asked.options.model, asked.options.revision)
    engine = _opened(asked)
    decoder = _Decoder(run, manifest, asked, tokenizer, engine)
    try:
        files = [decoder.split(split) for split in _splits(manifest)]
    finally:
        engine.close()
    record = {
        "key": asked.key,
        "stage": asked.stage,
        "engine": asked.engine,
        "engine_asked": asked.engine_asked,
        "decoding": asked.options.generate.decoding,
        "parameters": parameters_of(asked.options.model, asked.options.revision),
        "files": files,
        **decoder.figures(),
    }
    write_json(record_path(run, name), record)


def record_path(run: RunDirectory, name: str) -> Path:
    """Where the record of a system's texts stands."""
    return run.path("predictions", f"{name}.json")


def decoded(run: RunDirectory, asked: System) -> dict[str, Any] | None:
    """The record of a system's texts under its present key, or None."""
    path = record_path(run, asked.name)
    record: dict[str, Any] = read_json(path) if path.is_file() else {}
    return record if record.get("key") == asked.key else None


def _opened(asked: System) -> Engine:
    """The engine; where a student is what it cannot take, the key that decides it is told."""
    try:
        return open_engine(asked.engine, asked.options)
    except EngineError as error:
        if asked.stage is None:
            raise
        place = f"evaluate.engine: {asked.engine_asked}"
        raise EngineError(place, asked.engine, f"for the student: {error.remedy}") from None


class _Decoder:
    """Streams splits through one engine and counts what comes out."""

    def __init__(
        self,
        run: RunDirectory,
        manifest: Manifest,
        asked: System,
        tokenizer: PreTrainedTokenizerFast,
        engine: Engine,
    ) -> None:
        self.run, self.manifest, self.asked = run, manifest, asked
        self.responses, self.engine = Responses(tokenizer, asked.options.generate), engine
        self.held_out = HeldOut(run, manifest, tokenizer)
        self.tokens = self.rows = self.failed = 0
        self.seconds = 0.0

    def figures(self) -> dict[str, Any]:
        """Counts and speed so far; `seconds` are of decoding alone."""
        return {
            "rows": self.rows,
            "failed": self.failed,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1) if self.seconds else 0.0,
        }

    def split(self, split: str) -> FileRecord:
        """Decode one split into `predictions/SYSTEM-SPLIT.parquet`."""
        path = self.run.path("predictions", f"{self.asked.name}-{split}.parquet")
        asked = self.asked
        told = {"decoding": asked.options.generate.decoding, "engine": asked.engine}
        signature = {"system": asked.name, "key": asked.key, **told}
        title = f"decoding {split} ({asked.name}, {asked.engine})"
        with (
            part_writer(self.run, path, "predictions", PREDICTIONS, signature) as (writer, record),
            progress(title, count_split(self.run, split)) as advance,
        ):
            for results in self._results(split, advance):
                writer.write(self._table(split, results))
        return record

    def _results(self, split: str, advance: Advance) -> Iterator[list[Result]]:
        began = time.monotonic()
        waiting: list[Result] = []
        window = self.asked.options.window
        for result in decode(self.engine, self._requests(split), window):
            stop_if_abandoned()
            waiting.append(result)
            advance(1)
            if len(waiting) == BATCH:
                yield waiting
                waiting = []
        self.seconds += time.monotonic() - began
        yield waiting

    def _requests(self, split: str) -> Iterator[Request]:
        with connect(self.run) as connection:
            rows = connection.sql(
                "SELECT sample_id, source, meta, prompt_ids FROM samples "
                f'WHERE split = {quoted(split)} ORDER BY "row"'
            )
            for batch in rows.to_arrow_reader(BATCH):
                yield from self.held_out.requests(batch)

    def _table(self, split: str, results: Iterable[Result]) -> pa.Table:
        listed = list(results)
        best = [result.hypotheses[0] if result.hypotheses else None for result in listed]
        ids = [h and self.responses.answer(h)[0].token_ids.tolist() for h in best]
        texts = self.responses.texts([i or [] for i in ids])
        self.rows += len(listed)
        self.failed += sum(i is None for i in ids)
        self.tokens += sum(len(i or ()) for i in ids)
        columns = {
            "system": [self.asked.name] * len(listed),
            "stage": [self.asked.stage] * len(listed),
            "split": [split] * len(listed),
            "sample_id": [result.key for result in listed],
            "text": [text if i is not None else None for text, i in zip(texts, ids, strict=True)],
            "token_ids": ids,
        }
        return pa.table(columns, schema=PREDICTIONS)


def _splits(manifest: Manifest) -> list[str]:
    return [split for split in manifest.evaluate.splits if split in manifest.data.splits()]


if __name__ == "__main__":
    run_process(decode_system)
