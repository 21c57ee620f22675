"""The generation job: every source is decoded once, in shards; a killed job goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa

from factory.decoding import draw_seed, token_limit
from factory.distributions.precision import stored
from factory.engines import ABILITIES, Engine, EngineOptions, Request
from factory.errors import ManifestError, PromptError
from factory.files import shipped
from factory.generation.flight import Shard, fly, fly_replica
from factory.generation.hypotheses import candidate_table, logits_table, ranked
from factory.generation.queue import Queue
from factory.generation.recheck import Agreement, agreement, chosen, require_agreement
from factory.generation.responses import Responses
from factory.generation.sitting import freeze_plan, sit
from factory.manifest import Manifest, Teacher
from factory.prompting.tokenizing import load_tokenizer
from factory.query.catalog import connect
from factory.records import FileRecord, RunDirectory, library_versions
from factory.schemas import CANDIDATES, SAMPLES, STORED_LOGITS
from factory.shards import write_part
from factory.workers import worker_main

FOLDER = "shards"
PLAN = pa.schema([SAMPLES.field(name) for name in ("sample_id", "prompt_hash", "prompt_ids")])
TOTALS = ("samples", "candidates", "tokens", "errors", "bytes")


def generate(run: RunDirectory, key: str, lock: int) -> None:
    """Decode every source that has no candidate yet, shard by shard, and record the step.

    Raises:
        ManifestError: there are more replicas than accelerators or cores.
        Told: the engine cannot be opened, or a check of its candidates failed.
        StepFailed: a replica died again and again.
        PromptError: not one source fits the teacher's context.
    """
    began = time.monotonic()
    rows = plan_generation(run)
    figures = sit(run, "factory.generation.generate", FOLDER, key, lock, rows)
    summary = totals(run)
    _require_one_that_fits(run, summary)
    run.finish("generate", key, time.monotonic() - began, **summary, **figures)


def count_pending(run: RunDirectory) -> int:
    """How many sources have no candidate yet."""
    with _pending(run) as pending:
        [(count,)] = pending.aggregate("count(*)").fetchall()
        return int(count)


def plan_generation(run: RunDirectory) -> int:
    """Freeze which sources without a candidate form which shard; returns how many there are."""
    for folder in ("candidates", "logits", FOLDER):
        run.path(folder).mkdir(exist_ok=True)
    with _pending(run) as pending:
        batches = ((0, batch) for batch in pending.to_arrow_reader(2048))
        return freeze_plan(run, FOLDER, batches, PLAN)


def fill_shards(run: RunDirectory, engine: Engine, key: str) -> int:
    """Decode the planned sources with an engine that is open already; returns tokens."""
    manifest = run.manifest()
    task = Generation(run, manifest, key)
    return fly(engine, Queue(run.path(FOLDER), 0), task, run, key, manifest.generate.window)


def engine_options(run: RunDirectory, manifest: Manifest) -> EngineOptions:
    """What the manifest asks of the teacher's engine."""
    teacher = teacher_of(manifest)
    captures = ABILITIES[teacher.engine].captures
    return EngineOptions(
        teacher.model,
        teacher.revision,
        teacher.dtype,
        manifest.logits.width if captures else 0,
        manifest.generate,
        teacher.options,
        str(run.path("engine")),
        manifest.logits.drawn if captures else 0,
    )


def teacher_of(manifest: Manifest) -> Teacher:
    """The manifest's teacher.

    Raises:
        ManifestError: it has none.
    """
    if manifest.teacher is None:
        raise ManifestError("teacher", None, "is missing: generating needs one")
    return manifest.teacher


def signature(run: RunDirectory, manifest: Manifest, key: str) -> dict[str, Any]:
    """What every part of the teacher's carries: its key, teacher, decoding and versions."""
    dumped = manifest.model_dump(mode="json", include={"prompt", "generate", "logits"})
    return {"key": key, "teacher": run.record().get("teacher", {}), **dumped, **library_versions()}


class Generation:
    """What is asked of the engine for each source, and what is kept of a shard."""

    title = "generating"

    def __init__(self, run: RunDirectory, manifest: Manifest, key: str) -> None:
        self._run, self._manifest = run, manifest
        self._teacher = teacher_of(manifest)
        tokenizer = load_tokenizer(self._teacher.model, self._teacher.revision)
        self._responses = Responses(tokenizer, manifest.generate)
        self._signature = signature(run, manifest, key)
        options = engine_options(run, manifest)
        self._captures = options.k > 0 or options.draws > 0
        self.replicas = self._teacher.replicas

    def request(self, key: str, row: dict[str, Any]) -> Request:
        """The request of one source."""
        spec, prompt = self._manifest.generate, row["prompt_ids"]
        draws = range(spec.num_return if spec.decoding == "sample" else 0)
        seeds = (draw_seed(self._manifest.seed, row["sample_id"], ordinal) for ordinal in draws)
        limit = token_limit(spec.max_new_tokens, len(prompt))
        capture_seed = draw_seed(self._manifest.seed, f"capture {row['sample_id']}", 0)
        return Request(key, prompt, limit, tuple(seeds), capture_seed=capture_seed)

    def checks(self, shard: Shard) -> Iterator[Request]:
        """A hypothesis each of a few sources, to be scored by the engine that decoded them."""
        count, engine = self._manifest.generate.check, self._teacher.engine
        if not count or ABILITIES[engine].scorer != engine:
            return
        sample_ids = shard.rows["sample_id"].to_pylist()
        for index in chosen(sample_ids, count, self._manifest.seed):
            if hypotheses := shard.results[index].hypotheses:
                ordinal = index % len(hypotheses)
                prompt = shard.rows["prompt_ids"][index].as_py()
                target = hypotheses[ordinal].token_ids.tolist()
                key = f"{shard.number}:{index}:{ordinal}"
                yield Request(key, prompt, len(target), target_ids=target)

    def write(self, shard: Shard) -> tuple[list[FileRecord], dict[str, Any]]:
        """Write a shard's candidates and distributions, once its checks agree.

        Raises:
            StepFailed: candidates scored anew have other log-probabilities.
        """
        figures: dict[str, Any] = {}
        if shard.checks:
            found = self._agreement(shard)
            require_agreement(found, self._teacher.dtype)
            figures["check"] = found.as_record()
        ids, hashes = (shard.rows[name].to_pylist() for name in ("sample_id", "prompt_hash"))
        exponent = self._manifest.generate.exponent
        rows = ranked(ids, hashes, shard.ordered(), exponent, self._responses)
        table = candidate_table(rows, self._responses)
        files = [self._part(shard, "candidates", table, CANDIDATES)]
        if self._captures:
            logits = self._manifest.logits
            kept = stored(logits_table(rows, logits.nucleus), logits.precision)
            files.append(self._part(shard, "logits", kept, STORED_LOGITS))
        return files, {"candidates": table.num_rows, **figures}

    def _agreement(self, shard: Shard) -> Agreement:
        found = Agreement()
        for key, result in shard.checks.items():
            _, index, ordinal = map(int, key.split(":"))
            if result.hypotheses:
                kept = shard.results[index].hypotheses[ordinal]
                found += agreement(kept, result.hypotheses[0], self._teacher.dtype)
            else:
                found += Agreement(skipped=1)
        return found

    def _part(self, shard: Shard, table: str, rows: pa.Table, schema: pa.Schema) -> FileRecord:
        path = self._run.path(table, f"{shard.number:05d}.parquet")
        return write_part(self._run, path, table, [rows], schema, self._signature)


def generate_replica(run: RunDirectory, key: str, replica: str) -> None:
    """Entry of a replica: decode shards of the plan until none is left."""
    manifest = run.manifest()
    engine = teacher_of(manifest).engine, engine_options(run, manifest)
    fly_replica(run, FOLDER, key, int(replica), engine, lambda: Generation(run, manifest, key))


@contextlib.contextmanager
def _pending(run: RunDirectory) -> Iterator[duckdb.DuckDBPyRelation]:
    sql = (shipped("sql") / "generate" / "pending.sql").read_text(encoding="utf-8")
    with connect(run) as database:
        yield database.sql(sql)


def totals(run: RunDirectory) -> dict[str, Any]:
    """What all shards hold, those of earlier sittings and imported ones included."""
    shards = run.shard_records()
    checks = [Agreement.from_record(shard["check"]) for shard in shards if "check" in shard]
    counts = {"shards": len(shards)} | {name: sum(s[name] for s in shards) for name in TOTALS}
    return counts | ({"check": sum(checks, Agreement()).as_record()} if checks else {})


def _require_one_that_fits(run: RunDirectory, summary: dict[str, Any]) -> None:
    if summary["samples"] and summary["errors"] == summary["samples"]:
        context = run.record().get("teacher", {}).get("context")
        remedy = (
            f"not one of {summary['samples']} sources could be decoded (context {context} tokens): "
            "see the error column of the view candidates"
        )
        raise PromptError("generate", None, remedy)


if __name__ == "__main__":
    worker_main(generate_replica)
