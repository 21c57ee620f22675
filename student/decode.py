"""Process entry: `python -m student.decode RUN_DIR SYSTEM` decodes the held-out splits.

One process a system, so that an engine's memory and threads go with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from factory.decoding import token_limit
from factory.engines import Engine, Request, Result, decode, open_engine
from factory.files import read_json, write_json
from factory.generation.responses import Responses
from factory.manifest import Manifest
from factory.progress import Advance, progress
from factory.prompting.prompts import Prompter
from factory.prompting.tokenizing import load_tokenizer, tokenizer_fingerprint
from factory.query.catalog import connect, quoted
from factory.records import FileRecord, RunDirectory
from factory.schemas import PREDICTIONS
from factory.shards import part_writer
from student.entry import run_process, stop_if_abandoned
from student.initialise import parameters_of
from student.systems import System, system

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
    engine = open_engine(asked.engine, asked.options)
    decoder = _Decoder(run, manifest, asked, tokenizer, engine)
    try:
        files = [decoder.split(split) for split in _splits(manifest)]
    finally:
        engine.close()
    record = {
        "key": asked.key,
        "stage": asked.stage,
        "engine": asked.engine,
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
        teachers = run.record().get("tokenizer", {}).get("fingerprint")
        same = tokenizer_fingerprint(tokenizer) == teachers
        self.prompter = None if same else Prompter(tokenizer, manifest.prompt)
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
        signature = {"system": self.asked.name, "key": self.asked.key, "decoding": "greedy"}
        title = f"decoding {split} ({self.asked.name})"
        with (
            part_writer(self.run, path, "predictions", PREDICTIONS, signature) as (writer, record),
            progress(title, self._count(split)) as advance,
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
        spec = self.manifest.generate.max_new_tokens
        with connect(self.run) as connection:
            rows = connection.sql(
                "SELECT sample_id, source, meta, prompt_ids FROM samples "
                f'WHERE split = {quoted(split)} ORDER BY "row"'
            )
            for batch in rows.to_arrow_reader(BATCH):
                ids = self._prompts(batch)
                for key, prompt in zip(batch.column("sample_id").to_pylist(), ids, strict=True):
                    yield Request(key, prompt, token_limit(spec, len(prompt)))

    def _prompts(self, batch: pa.RecordBatch) -> list[list[int]]:
        if self.prompter is None:
            stored: list[list[int]] = batch.column("prompt_ids").to_pylist()
            return stored
        pairs = zip(
            batch.column("source").to_pylist(), batch.column("meta").to_pylist(), strict=True
        )
        return self.prompter.encode([{**json.loads(m or "{}"), "source": s} for s, m in pairs])[1]

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

    def _count(self, split: str) -> int:
        with connect(self.run) as connection:
            query = "SELECT count(*) FROM samples WHERE split = ?"
            [(count,)] = connection.execute(query, [split]).fetchall()
        return int(count)


def _splits(manifest: Manifest) -> list[str]:
    return [split for split in manifest.evaluate.splits if split in manifest.data.splits()]


if __name__ == "__main__":
    run_process(decode_system)
