"""The generation job: sources stream through the teacher into shards; a killed job goes on."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import duckdb

from factory.catalog import connect
from factory.decoding import draw_seed, token_limit
from factory.engines import Engine, EngineOptions, Request, Result, decode, open_engine
from factory.errors import ManifestError, PromptError
from factory.files import shipped, sweep, write_json
from factory.hypotheses import candidate_table, logits_table, ranked
from factory.manifest import Manifest, Teacher
from factory.progress import progress
from factory.prompts import load_tokenizer
from factory.records import RunDirectory, library_versions
from factory.schemas import CANDIDATES, LOGITS
from factory.shards import write_part
from factory.workers import stop_if_orphaned, worker_main

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WAITING_WRITES = 2


@dataclass
class Shard:
    """A unit of work: its sources, and the results that have come back so far."""

    number: int
    sample_ids: tuple[str, ...]
    prompt_hashes: tuple[int, ...]
    results: dict[int, Result] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every source of the shard has come back."""
        return len(self.results) == len(self.sample_ids)


def generate(run: RunDirectory, key: str) -> None:
    """Decode every source that has no candidate yet, shard by shard, and record the step.

    Raises:
        EngineError: the engine cannot be opened.
        PromptError: not one source fits the teacher's context.
    """
    began = time.monotonic()
    for folder in ("candidates", "logits", "shards"):
        run.path(folder).mkdir(exist_ok=True)
        sweep(run.path(folder))
    figures: dict[str, Any] = {}
    total = count_pending(run)
    if total:
        figures = _decode_pending(run, key, total)
    summary = _summary(run)
    _require_one_that_fits(run, summary)
    run.finish("generate", key, time.monotonic() - began, **summary, **figures)


def count_pending(run: RunDirectory) -> int:
    """How many sources have no candidate yet."""
    with _pending(run) as pending:
        [(count,)] = pending.aggregate("count(*)").fetchall()
        return int(count)


def fill_shards(run: RunDirectory, engine: Engine, key: str, total: int) -> int:
    """Decode the pending sources with an open engine and write their shards; returns tokens."""
    manifest = run.manifest()
    teacher = _teacher(manifest)
    work = _Work(run, manifest, load_tokenizer(teacher.model, teacher.revision), key)
    with progress("generating", total) as advance, work:
        for result in decode(engine, work.requests(), manifest.generate.window):
            stop_if_orphaned()
            work.take(result)
            advance(1, work.rate())
    return work.tokens


def engine_options(manifest: Manifest) -> EngineOptions:
    """What the manifest asks of the teacher's engine."""
    teacher, k = _teacher(manifest), manifest.logits.k
    wanted = k if manifest.logits.capture == "top_k" else 0
    return EngineOptions(
        teacher.model, teacher.revision, teacher.dtype, wanted, manifest.generate, teacher.options
    )


def _decode_pending(run: RunDirectory, key: str, total: int) -> dict[str, Any]:
    began = time.monotonic()
    manifest = run.manifest()
    engine = open_engine(_teacher(manifest).engine, engine_options(manifest))
    loaded = time.monotonic()
    try:
        tokens = fill_shards(run, engine, key, total)
    finally:
        engine.close()
    ended = time.monotonic()
    return {
        "load_seconds": round(loaded - began, 3),
        "decode_seconds": round(ended - loaded, 3),
        "decoded_sources": total,
        "decoded_tokens": tokens,
        "tokens_per_second": round(tokens / (ended - loaded), 1),
    }


class _Work:
    """The shards in flight. A complete one is written while the engine goes on with the next."""

    def __init__(
        self, run: RunDirectory, manifest: Manifest, tokenizer: PreTrainedTokenizerFast, key: str
    ) -> None:
        self._run, self._manifest, self._tokenizer, self._key = run, manifest, tokenizer, key
        self._open: dict[int, Shard] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="shard-writer")
        self._writes: list[Future[None]] = []
        self._began = self._last = time.monotonic()
        self.tokens = 0
        teacher = run.record().get("teacher", {})
        dumped = manifest.model_dump(mode="json", include={"prompt", "generate", "logits"})
        self._signature = {"key": key, "teacher": teacher, **dumped, **library_versions()}

    def __enter__(self) -> _Work:
        return self

    def __exit__(self, *failure: object) -> None:
        """Finish the writes under way; a write that failed fails the job."""
        self._writer.shutdown(wait=True)
        if failure[0] is None:
            self._settle(0)

    def requests(self) -> Iterator[Request]:
        """Every pending source as a request, shards opened as the engine comes to them."""
        spec = self._manifest.generate.max_new_tokens
        first = 1 + max((s["shard"] for s in self._run.shard_records()), default=-1)
        with _pending(self._run) as pending:
            rows = _rows(pending)
            for number in itertools.count(first):
                batch = list(itertools.islice(rows, self._manifest.generate.shard_size))
                if not batch:
                    return
                ids, hashes, prompts = zip(*batch, strict=True)
                self._open[number] = Shard(number, ids, hashes)
                for index, prompt in enumerate(prompts):
                    limit = token_limit(spec, len(prompt))
                    yield Request(f"{number}:{index}", prompt, limit, self._seeds(ids[index]))

    def _seeds(self, sample_id: str) -> tuple[int, ...]:
        spec = self._manifest.generate
        draws = range(spec.num_return if spec.decoding == "sample" else 0)
        return tuple(draw_seed(self._manifest.seed, sample_id, ordinal) for ordinal in draws)

    def take(self, result: Result) -> None:
        """File a result with its shard, and have the shard written when it is complete."""
        number, index = map(int, result.key.split(":"))
        shard = self._open[number]
        shard.results[index] = result
        self.tokens += sum(len(h.token_ids) for h in result.hypotheses)
        if shard.complete:
            del self._open[number]
            now = time.monotonic()
            seconds, self._last = now - self._last, now
            self._writes.append(self._writer.submit(self._write, shard, seconds))
            self._settle(WAITING_WRITES)

    def rate(self) -> str:
        """Tokens per second so far, for the progress line."""
        return f"{self.tokens / (time.monotonic() - self._began):,.0f} tok/s"

    def _settle(self, allowed: int) -> None:
        """Wait until at most `allowed` writes are under way; raise what a write raised."""
        while self._writes and (len(self._writes) > allowed or self._writes[0].done()):
            self._writes.pop(0).result()

    def _write(self, shard: Shard, seconds: float) -> None:
        run, name = self._run, f"{shard.number:05d}.parquet"
        results = [shard.results[index] for index in range(len(shard.sample_ids))]
        exponent = self._manifest.generate.exponent
        rows = ranked(shard.sample_ids, shard.prompt_hashes, results, exponent)
        table = candidate_table(rows, self._tokenizer)
        path = run.path("candidates", name)
        files = [write_part(run, path, "candidates", [table], CANDIDATES, self._signature)]
        if self._manifest.logits.capture == "top_k":
            kept = logits_table(rows, self._manifest.logits.precision)
            path = run.path("logits", name)
            files.append(write_part(run, path, "logits", [kept], LOGITS, self._signature))
        record = {
            "shard": shard.number,
            "key": self._key,
            "samples": len(results),
            "candidates": table.num_rows,
            "tokens": sum(len(h.token_ids) for r in results for h in r.hypotheses),
            "errors": sum(r.error is not None for r in results),
            "seconds": round(seconds, 3),
            "bytes": sum(run.path(file["path"]).stat().st_size for file in files),
            "files": files,
        }
        write_json(run.path("shards", f"{shard.number:05d}.json"), record)


def _teacher(manifest: Manifest) -> Teacher:
    if manifest.teacher is None:
        raise ManifestError("teacher", None, "is missing: generating needs one")
    return manifest.teacher


@contextlib.contextmanager
def _pending(run: RunDirectory) -> Iterator[duckdb.DuckDBPyRelation]:
    sql = (shipped("sql") / "generate" / "pending.sql").read_text(encoding="utf-8")
    with connect(run) as database:
        yield database.sql(sql)


def _rows(pending: duckdb.DuckDBPyRelation) -> Iterator[tuple[str, int, list[int]]]:
    for batch in pending.to_arrow_reader(2048):
        columns = (column.to_pylist() for column in batch.columns)
        yield from zip(*columns, strict=True)


def _summary(run: RunDirectory) -> dict[str, Any]:
    """Totals over all shards, those of earlier sittings included."""
    shards = run.shard_records()
    names = ("samples", "candidates", "tokens", "errors", "bytes")
    return {"shards": len(shards)} | {name: sum(s[name] for s in shards) for name in names}


def _require_one_that_fits(run: RunDirectory, summary: dict[str, Any]) -> None:
    if summary["samples"] and summary["errors"] == summary["samples"]:
        context = run.record().get("teacher", {}).get("context")
        remedy = (
            f"not one of {summary['samples']} sources could be decoded (context {context} tokens): "
            "see the error column of the view candidates"
        )
        raise PromptError("generate", None, remedy)


if __name__ == "__main__":
    worker_main(generate)
