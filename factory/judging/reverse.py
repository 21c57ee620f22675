"""log P(source | target) by a model of the other direction, a mean over the source's tokens.

A target that leaves out what its source says makes the source improbable. Bergamot and Mozilla
score pseudolabels so with marian-scorer, and drop the worst 5 % (ce-clean.sh of browsermt/students
and mozilla/translations). The mean is of natural logs, the end token's included.

Pairs of source and target lie in a plan, portion by portion, and a worker process scores one after
another into a part of its own: what a killed judgement has scored, the next one takes up.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.engines import EngineOptions, Request, Result, decode, open_engine
from factory.engines.base import Engine
from factory.errors import EngineError, ManifestError
from factory.files import digest, replacing, sweep
from factory.judgement import Reverse
from factory.judging.families import Measuring
from factory.manifest import Manifest, Prompt
from factory.models import model_facts
from factory.progress import progress
from factory.prompting.prompts import Prompter
from factory.prompting.template import pattern_of
from factory.prompting.tokenizing import encode_targets, load_tokenizer, tokenizer_fingerprint
from factory.query.catalog import parquet, shipped_sql
from factory.records import RunDirectory
from factory.workers import module_command, run_worker, stop_if_orphaned, worker_main

ENGINE = "transformers"  # it scores decoders and encoder-decoders alike
PLACE = "judge.reverse.model"
PLAN = "plan.parquet"
PORTION = 4096  # pairs that are scored, and resumed, together
BATCH = 1 << 14
SCORED = pa.schema([("pair", pa.string()), ("reverse_logprob", pa.float64())])


def check_reverse(manifest: Manifest) -> None:
    """Look at the model, its tokenizer and its template, without any data.

    Raises:
        UserError: the model is missing or has no fast tokenizer, or the template has no {source},
            or a field beside it.
    """
    if reverse := manifest.judge.reverse:
        fields = set(pattern_of(reverse.template)[1::2])
        if fields != {"source"}:
            remedy = "holds the candidate's text as {source}, and no other field"
            raise ManifestError("judge.reverse.template", reverse.template, remedy)
        model_facts(reverse.model, reverse.revision, PLACE)
        load_tokenizer(reverse.model, reverse.revision)


def reverse_settings(run: RunDirectory, manifest: Manifest) -> Any:
    """What the score hangs on: model, tokenizer, template and precision; None without a model.

    Raises:
        UserError: see `check_reverse`.
    """
    del run
    reverse = manifest.judge.reverse
    if reverse is None:
        return None
    check_reverse(manifest)
    model = model_facts(reverse.model, reverse.revision, PLACE).fingerprint
    tokenizer = tokenizer_fingerprint(load_tokenizer(reverse.model, reverse.revision))
    return [model, tokenizer, reverse.template, reverse.dtype]


def measure_reverse(work: Measuring) -> Iterator[pa.RecordBatch]:
    """Stream reverse_logprob, NULL where a pair does not fit the model's context.

    Raises:
        Told: the model cannot be opened.
        StepFailed: the worker died; what it has scored is taken up the next time.
    """
    folder = _folder(work)
    _plan(work, folder)
    command = module_command("factory.judging.reverse", work.run, str(folder))
    with work.run.locked() if work.lock is None else nullcontext(work.lock) as lock:
        run_worker(work.run, "reverse", command, lock)
    parts = sorted(folder.glob("part-*.parquet"))
    scored = parquet(parts) if parts else "SELECT NULL AS pair, NULL AS reverse_logprob"
    work.connection.execute(f"CREATE OR REPLACE TEMP VIEW scored AS {scored}")
    yield from work.connection.sql(shipped_sql("reverse", "measure")).to_arrow_reader(BATCH)
    shutil.rmtree(folder)


def score_pairs(run: RunDirectory, place: str) -> None:
    """Entry of the worker: score the portions of the plan in `place` that are not scored yet."""
    reverse, folder = run.manifest().judge.reverse, Path(place)
    plan = pq.ParquetFile(folder / PLAN)
    waiting = [i for i in range(plan.num_row_groups) if not _part(folder, i).is_file()]
    if not waiting or reverse is None:
        return
    done = plan.metadata.num_rows - sum(plan.metadata.row_group(i).num_rows for i in waiting)
    encode, engine = Encoding(reverse), _open(reverse)
    with progress("reverse scoring", plan.metadata.num_rows, done) as advance:
        for portion in waiting:
            stop_if_orphaned()
            pairs = plan.read_row_group(portion)
            scores = _scores(engine, encode.requests(pairs), advance)
            table = pairs.select(["pair"]).append_column("reverse_logprob", scores).cast(SCORED)
            with replacing(_part(folder, portion)) as temporary:
                pq.write_table(table, temporary, compression="zstd")
    engine.close()


class Encoding:
    """How the reverse model is asked: the template around the text, the source as its target."""

    def __init__(self, reverse: Reverse) -> None:
        """Load the model's tokenizer."""
        self._tokenizer = load_tokenizer(reverse.model, reverse.revision)
        self._prompter = Prompter(self._tokenizer, Prompt(template=reverse.template))

    def requests(self, pairs: pa.Table) -> list[Request]:
        """One request for each row of `source` and `text`; its key is the row's number."""
        rows = [{"source": text} for text in pairs["text"].to_pylist()]
        _, prompts = self._prompter.encode(rows)
        targets = encode_targets(self._tokenizer, pairs["source"].to_pylist())
        both = enumerate(zip(prompts, targets, strict=True))
        return [Request(str(i), ids, len(target), target_ids=target) for i, (ids, target) in both]


def _scores(engine: Engine, requests: Sequence[Request], advance: Any) -> pa.Array:
    """Mean log-probability of each request's target: float64 [requests], NULL where it has none."""
    found: dict[int, float | None] = {}
    for result in decode(engine, requests, EngineOptions("").window):
        found[int(result.key)] = _mean(result)
        advance(1)
    return pa.array([found[i] for i in range(len(requests))], pa.float64())


def _mean(result: Result) -> float | None:
    if not result.hypotheses:
        return None
    hypothesis = result.hypotheses[0]
    return hypothesis.sum_logprob / len(hypothesis.token_ids)


def _open(reverse: Reverse) -> Engine:
    try:
        return open_engine(ENGINE, EngineOptions(reverse.model, reverse.revision, reverse.dtype))
    except EngineError as error:
        raise EngineError(PLACE, error.value, error.remedy) from None


def _folder(work: Measuring) -> Path:
    """Where a judgement of these candidates by this model leaves its parts; others' are removed."""
    settings = reverse_settings(work.run, work.manifest)
    rows = [[file["sha256"] for file in work.run.files("candidates")]]
    key = digest([settings, rows, work.run.step("samples").get("key"), _sql()])
    folder = work.run.path("signals", f".reverse-{key}")
    for other in folder.parent.glob(".reverse-*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    return folder


def _plan(work: Measuring, folder: Path) -> None:
    """Write the pairs, a row group for each portion, unless they stand."""
    if (folder / PLAN).is_file():
        return
    pairs = work.connection.sql(_sql()).to_arrow_reader(PORTION)
    with (
        replacing(folder / PLAN) as temporary,
        pq.ParquetWriter(temporary, pairs.schema, compression="zstd") as writer,
    ):
        for portion in pairs:
            writer.write_batch(portion)


def _sql() -> str:
    return shipped_sql("reverse", "pairs")


def _part(folder: Path, portion: int) -> Path:
    return folder / f"part-{portion:05d}.parquet"


if __name__ == "__main__":
    worker_main(score_pairs)
