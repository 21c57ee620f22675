"""Teacher-forced distributions of targets that exist: candidates without any, gold, a field.

The rows go to the view `logits`, told apart by their origin: `candidate`, `gold` (what the student
may see of it, and no more), or the name of a field of the input rows. A target that the teacher
cannot be shown whole is kept as a row without tokens, which the view leaves out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from factory.capture import Logits
from factory.decoding import draw_seed
from factory.distributions.precision import stored
from factory.engines import ABILITIES, EngineOptions, Hypothesis, Request, Result
from factory.errors import ManifestError, nearest
from factory.files import digest, shipped
from factory.generation.flight import Shard, fly_replica
from factory.generation.generate import engine_options, signature, teacher_of
from factory.generation.hypotheses import Ranked, logits_table
from factory.generation.queue import Portion
from factory.generation.recheck import TOLERANCES, Agreement, agreement, require_agreement
from factory.generation.sitting import freeze_plan, sit
from factory.manifest import Manifest
from factory.prompting.tokenizing import encode_targets, load_tokenizer, target_start
from factory.query.catalog import Connection, connect, parquet, portions, quoted
from factory.records import FileRecord, RunDirectory
from factory.schemas import SAMPLES, STORED_LOGITS
from factory.shards import write_part
from factory.workers import worker_main

FOLDER = "scores"
CANDIDATE, GOLD = "candidate", "gold"
PLAN = pa.schema(
    [
        ("part", pa.int32()),  # the shard that the candidates are of
        ("origin", pa.string()),
        ("rank", pa.int32()),
        *(SAMPLES.field(name) for name in ("sample_id", "prompt_hash", "prompt_ids")),
        ("target_ids", pa.list_(pa.int32())),
        ("target", pa.string()),
        ("sum_logprob", pa.float64()),
    ]
)


def score_targets(manifest: Manifest) -> tuple[str, ...]:
    """What is scored: the targets asked for, and candidates whose engine tells no distribution."""
    teacher, wanted = manifest.teacher, dict.fromkeys(manifest.score.targets)
    if teacher and manifest.logits.capture != "none" and not ABILITIES[teacher.engine].captures:
        wanted |= {CANDIDATE: None}
    return tuple(wanted)


def score(run: RunDirectory, key: str, generated: str, lock: int) -> None:
    """Score every target that has no distributions yet, and record the step.

    `generated` is the key of generations: what makes those stale makes scores stale too.

    Raises:
        ManifestError: no row has a target of that name, or there is no room for the replicas.
        Told: the engine cannot be opened, or candidates scored other than they were decoded.
        StepFailed: a replica died again and again.
    """
    began = time.monotonic()
    for folder in ("logits", FOLDER):
        run.path(folder).mkdir(exist_ok=True)
    _forget_stale(run, generated)
    figures = sit(run, "factory.generation.score", FOLDER, generated, lock, _plan(run))
    run.finish("score", key, time.monotonic() - began, **_summary(run), **figures)


def score_replica(run: RunDirectory, key: str, replica: str) -> None:
    """Entry of a replica: score shards of the plan until none is left."""
    manifest = run.manifest()
    scorer = ABILITIES[teacher_of(manifest).engine].scorer
    engine = scorer, scorer_options(run, manifest)
    fly_replica(run, FOLDER, key, int(replica), engine, lambda: Scoring(run, manifest, key))


def scorer_options(run: RunDirectory, manifest: Manifest) -> EngineOptions:
    """What is asked of the engine that scores; the teacher's options are its own engine's alone."""
    teacher = teacher_of(manifest)
    alike = ABILITIES[teacher.engine].scorer == teacher.engine
    return EngineOptions(
        teacher.model,
        teacher.revision,
        teacher.dtype,
        manifest.logits.width,
        manifest.generate,
        teacher.options if alike else None,
        engine_options(run, manifest).cache,
        manifest.logits.drawn,
    )


class Scoring:
    """What is asked of the engine for each target, and what is kept of a shard."""

    title = "scoring"

    def __init__(self, run: RunDirectory, manifest: Manifest, key: str) -> None:
        self._run, self._manifest = run, manifest
        self._teacher = teacher_of(manifest)
        self._tokenizer = load_tokenizer(self._teacher.model, self._teacher.revision)
        first = manifest.generate.first_token
        self._start = target_start(
            self._tokenizer, first, self._teacher.model, self._teacher.revision
        )
        self._signature = signature(run, manifest, key)
        self.replicas = self._teacher.replicas

    def request(self, key: str, row: dict[str, Any]) -> Request:
        """The request of one target: stored ids as they are, words encoded."""
        target = row["target_ids"]
        if not target:
            target = encode_targets(self._tokenizer, [row["target"]], self._start)[0]
        place = f"capture {row['sample_id']} {row['origin']}"
        capture_seed = draw_seed(self._manifest.seed, place, row["rank"])
        return Request(
            key, row["prompt_ids"], len(target), target_ids=target, capture_seed=capture_seed
        )

    def checks(self, shard: Shard) -> Iterator[Request]:
        """Nothing more is asked."""
        del shard
        yield from ()

    def write(self, shard: Shard) -> tuple[list[FileRecord], dict[str, Any]]:
        """Write a shard's distributions; candidates must score as they were decoded.

        Raises:
            StepFailed: they do not.
        """
        rows = shard.rows.drop_columns(["prompt_ids"]).to_pylist()
        results = shard.ordered()
        origin, part = rows[0]["origin"], rows[0]["part"]
        figures: dict[str, Any] = {"origin": origin, "part": part}
        if origin == CANDIDATE:
            figures |= self._check(rows, results)
        else:
            figures["samples_key"] = self._run.step("samples")["key"]
        path = self._run.path("logits", f"score-{shard.number:05d}.parquet")
        tables = _tables(rows, results, origin, self._manifest.logits)
        part = write_part(self._run, path, "logits", tables, STORED_LOGITS, self._signature)
        return [part], figures

    def _check(self, rows: list[dict[str, Any]], results: list[Result]) -> dict[str, Any]:
        """What decoded a candidate told the sum of its log-probabilities: the same must score."""
        pairs = [
            (_told(row), result.hypotheses[0])
            for row, result in zip(rows, results, strict=True)
            if result.hypotheses and row["sum_logprob"] is not None
        ]
        if not self._manifest.generate.check or not pairs:
            return {}
        dtype = decoding_dtype(self._manifest)
        found = sum((agreement(*pair, dtype) for pair in pairs), Agreement())
        require_agreement(found, dtype)
        return {"check": found.as_record()}


def decoding_dtype(manifest: Manifest) -> str:
    """What the teacher decodes in: its dtype, or an engine's own; integers, or any, are `int8`."""
    teacher = teacher_of(manifest)
    told = str(teacher.options.get("compute_type", teacher.dtype))
    return told if told in TOLERANCES else "int8"


def _told(row: dict[str, Any]) -> Hypothesis:
    ids = pa.array(row["target_ids"], pa.int32()).to_numpy()
    return Hypothesis(ids, None, "stop", told_sum=row["sum_logprob"])


def _tables(
    rows: list[dict[str, Any]], results: list[Result], origin: str, logits: Logits
) -> Iterator[pa.Table]:
    """The rows of `schemas.STORED_LOGITS`: those scored, then those that could not be."""
    names = ("sample_id", "prompt_hash", "rank")
    scored, unscored = [], []
    for row, result in zip(rows, results, strict=True):
        place = {name: row[name] for name in names}
        if result.hypotheses:
            hypothesis = result.hypotheses[0]
            scored.append(Ranked(**place, ordinal=0, score=None, hypothesis=hypothesis, error=None))
        else:
            unscored.append(place | {"origin": origin, "n_tokens": 0})
    if scored:
        table = stored(logits_table(scored, logits.nucleus), logits.precision)
        origins = pa.array([origin] * len(table), pa.string())
        yield table.set_column(table.schema.get_field_index("origin"), "origin", origins)
    if unscored:
        yield pa.Table.from_pylist(unscored, schema=STORED_LOGITS)


def _plan(run: RunDirectory) -> int:
    return freeze_plan(run, FOLDER, _pending(run), PLAN)


def _pending(run: RunDirectory) -> Iterator[Portion]:
    """Targets without distributions, streamed; candidates shard by shard."""
    for name in score_targets(run.manifest()):
        if name == CANDIDATE:
            yield from _pending_candidates(run)
            continue
        with connect(run) as database:
            _look_at_given(database, name)
            pending = database.sql(_sql("targets"), params={"origin": name})
            yield from ((name, batch) for batch in pending.to_arrow_reader(2048))


def _pending_candidates(run: RunDirectory) -> Iterator[Portion]:
    for shards in portions(run):
        files = [file for shard in shards for file in shard["files"]]
        paths = [run.path(file["path"]) for file in files if file["table"] == "candidates"]
        with connect(run) as database:
            part = "parse_filename(filename, true)::INTEGER AS part"
            sql = parquet(paths, options="filename = true")
            database.execute(f"CREATE VIEW portion AS SELECT *, {part} FROM ({sql})")
            for batch in database.sql(_sql("candidates")).to_arrow_reader(2048):
                yield from _by_part(batch)


def _by_part(batch: pa.RecordBatch) -> Iterator[Portion]:
    parts = batch.column("part").to_pylist()
    first = 0
    for end in range(1, len(parts) + 1):
        if end == len(parts) or parts[end] != parts[first]:
            yield (CANDIDATE, parts[first]), batch.slice(first, end - first)
            first = end


def _look_at_given(database: Connection, name: str) -> None:
    """Let `given` hold the targets of that name.

    Raises:
        ManifestError: there is not one.
    """
    if name == GOLD:
        database.execute("CREATE VIEW given AS SELECT sample_id, target FROM gold")
        remedy = "no gold may be seen: raise data.train.gold_fraction, or take it out"
    else:
        # A JSON pointer: a field may be called anything.
        pointer = "/" + name.replace("~", "~0").replace("/", "~1")
        target = f"json_extract_string(meta, {quoted(pointer)})"
        database.execute(f"CREATE VIEW given AS SELECT sample_id, {target} AS target FROM samples")
        fields = [field for (field,) in database.sql(_sql("fields")).fetchall()]
        remedy = f"no training row has such a field: {nearest(name, [CANDIDATE, GOLD, *fields])}"
    [(there,)] = database.execute("SELECT count(target) FROM given").fetchall()
    if not there:
        raise ManifestError("score.targets", name, remedy)


def _forget_stale(run: RunDirectory, generated: str) -> None:
    """Drop scores of another teacher or prompt, and those of words that may have changed."""
    samples = run.step("samples").get("key")
    for record in run.score_records():
        if record["key"] == generated and record.get("samples_key", samples) == samples:
            continue
        run.drop(FOLDER, record)


def _summary(run: RunDirectory) -> dict[str, Any]:
    records = run.score_records()
    targets: dict[str, dict[str, int]] = {}
    for record in records:
        counts = targets.setdefault(record["origin"], {"scored": 0, "skipped": 0})
        counts["scored"] += record["samples"] - record["errors"]
        counts["skipped"] += record["errors"]
    for name in targets.keys() - {CANDIDATE}:
        targets[name]["absent"] = _absent(run, name)
    totals = {name: sum(record[name] for record in records) for name in ("tokens", "bytes")}
    checks = [Agreement.from_record(record["check"]) for record in records if "check" in record]
    found = {"check": sum(checks, Agreement()).as_record()} if checks else {}
    return {"shards": len(records), "targets": targets, **totals, **found}


def _absent(run: RunDirectory, name: str) -> int:
    """Training rows that have no target of that name, or none that may be seen."""
    with connect(run) as database:
        _look_at_given(database, name)
        sql = "SELECT count(*) FROM samples ANTI JOIN (FROM given WHERE target IS NOT NULL)"
        where = "USING (sample_id) WHERE split IN ('train', 'unlabeled')"
        [(count,)] = database.execute(f"{sql} {where}").fetchall()
    return int(count)


def _sql(name: str) -> str:
    return (shipped("sql") / "score" / f"{name}.sql").read_text(encoding="utf-8")


def score_key(run: RunDirectory, manifest: Manifest, generated: str) -> str:
    """Key of the step: what makes generations stale, the targets, and where these come from."""
    targets = score_targets(manifest)
    candidates = (
        [file["sha256"] for file in run.files("candidates")] if CANDIDATE in targets else []
    )
    return digest([generated, sorted(targets), run.step("samples").get("key"), candidates])


if __name__ == "__main__":
    worker_main(score_replica)
