"""The rows of a stage: the user's selection joined with prompts and distributions, and checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from factory.errors import RunError
from factory.query.catalog import Connection, connect, parquet, portions
from factory.query.fence import fenced, query_errors
from factory.records import RunDirectory
from factory.staging import columns_of
from factory.training import Stage

BATCH = 512
BUILT_IN = {
    "pseudolabels": "SELECT sample_id, rank, source, target, token_ids FROM pseudolabels",
    "gold": "SELECT sample_id, source, target FROM gold",
}
BUILT_IN_COLUMNS = {
    "pseudolabels": {"sample_id", "rank", "source", "target", "token_ids"},
    "gold": {"sample_id", "source", "target"},
}
TABLES = {
    "pseudolabels": ("samples", "candidates", "verdicts"),
    "gold": ("samples",),
}
EVERY_TABLE = ("samples", "candidates", "logits", "signals", "verdicts")
EMPTY = {
    "pseudolabels": "no candidate was selected: loosen judge.rules, or look at the view rejects",
    "gold": "no gold may be seen: give data.train.target, or raise data.train.gold_fraction",
}

JOINED = """
WITH samples AS (  -- gold that the student may not see is not there for a stage's SQL
    SELECT * REPLACE (CASE WHEN gold_visible THEN gold END AS gold) FROM main.samples
),
chosen AS ({data})
SELECT
    c.sample_id, {rank} AS rank, c.source, {target} AS target, {token_ids} AS token_ids,
    s.split, s.prompt_ids, s.meta,
    CASE
        WHEN s.sample_id IS NULL THEN 'is not in the view samples'
        WHEN s.split NOT IN ('train', 'unlabeled') THEN 'is held out: its split is ' || s.split
        WHEN {target} IS NULL AND {token_ids} IS NULL THEN 'has no target'
        {faults}
    END AS fault
    {columns}
FROM chosen c LEFT JOIN samples s ON s.sample_id = c.sample_id
{join}
ORDER BY {order}
"""
# Where every position holds k entries the view has k alone; widths say it of both kinds.
DISTRIBUTIONS = """,
    l.token_ids AS told_ids,
    COALESCE(l.widths, list_transform(l.token_ids, lambda token: l.k)) AS widths,
    l.token_logprobs, l.topk_ids, l.topk_logprobs, l.tail_logprob, l.counts,
    COALESCE(l.draws, 0) AS draws
"""
DISTRIBUTIONS_JOIN = """
LEFT JOIN (
    SELECT *, COALESCE(list_sum(widths), n_tokens * k) AS entries FROM logits
) l ON l.sample_id = c.sample_id AND l.origin = '{origin}' AND {on_rank}
"""
# NULL where a number should be is a fault too, hence IS DISTINCT FROM.
DISTRIBUTION_FAULTS = """
    WHEN l.sample_id IS NULL
        THEN 'has no stored distributions: generate or score them, or train on ce alone'
    WHEN list_count(l.token_ids) IS DISTINCT FROM l.n_tokens
        OR list_count(l.token_logprobs) IS DISTINCT FROM l.n_tokens
        OR list_count(l.tail_logprob) IS DISTINCT FROM l.n_tokens
        OR list_count(l.widths) <> l.n_tokens OR list_min(l.widths) < 0
        OR list_count(l.topk_ids) IS DISTINCT FROM l.entries
        OR list_count(l.topk_logprobs) IS DISTINCT FROM l.entries
        THEN 'does not hold as many entries as its k or widths say, and a tail, for each of its '
            || 'tokens: generate again'
    WHEN l.draws IS NOT NULL AND (
        list_count(l.counts) IS DISTINCT FROM l.entries OR list_min(l.counts || l.widths) < 1
        OR list_sum(l.counts) <> l.n_tokens * l.draws
    )
        THEN 'does not count ' || l.draws || ' draws for each of its tokens: generate again'
    WHEN NOT list_max(l.topk_logprobs || l.tail_logprob || l.token_logprobs) < {slack}
        THEN 'has a log-probability of '
            || list_max(l.topk_logprobs || l.tail_logprob || l.token_logprobs)
            || ': generate again'
    WHEN list_max(l.topk_ids) >= {vocabulary} OR list_min(l.topk_ids) < 0
        THEN 'has the token id '
            || CASE WHEN list_min(l.topk_ids) < 0
                THEN list_min(l.topk_ids) ELSE list_max(l.topk_ids) END
            || ', outside the student''s vocabulary of {vocabulary}: give it the teacher''s '
            || 'vocab_size, or train on ce alone'
"""
SLACK = (
    0.01  # a log-probability above 0 by more than rounding is none; neither is NaN, the greatest
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a stage asks of its rows. `vocabulary` is the size of the student's head."""

    stage: Stage
    distributions: bool
    vocabulary: int
    selection: str | None = None

    def portions(self) -> list[Wanted]:
        """The same of each selection of a mixture."""
        if isinstance(self.stage.data, str):
            return [self]
        return [replace(self, selection=data) for data in self.stage.data]

    @property
    def data(self) -> str:
        """One selection: `pseudolabels`, `gold`, or SQL."""
        [data] = [self.selection] if self.selection else self.stage.shares
        return data

    @property
    def place(self) -> str:
        """Where in the manifest a mistake stands."""
        of_mixture = f".{self.selection}" if self.selection in BUILT_IN else ""
        return f"student.stages.{self.stage.name}.data{of_mixture}"


def tables_of(wanted: Wanted) -> tuple[str, ...]:
    """The stored tables that the rows of a stage come from."""
    parts = [TABLES.get(part.data, EVERY_TABLE) for part in wanted.portions()]
    named = tuple(dict.fromkeys(table for part in parts for table in part))
    return (*named, "logits") if wanted.distributions and "logits" not in named else named


@contextmanager
def stage_rows(run: RunDirectory, wanted: Wanted) -> Iterator[Iterable[pa.RecordBatch]]:
    """Stream the joined selection in batches: by shards, then by sample_id and rank.

    Raises:
        RunError: the selection lacks a column.
        QueryError: it is not one reading statement, or DuckDB refuses it.
    """
    data = wanted.data.rstrip().rstrip(";")
    if data in BUILT_IN:
        yield _built_in(run, data, wanted)
    else:
        columns = columns_of(run, data, wanted.place, wanted.stage.objective)
        joined = _joined(data, columns, wanted)
        with fenced(run, joined) as connection, query_errors():
            yield connection.sql(joined).to_arrow_reader(BATCH)


def _built_in(run: RunDirectory, data: str, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """The joins of few shards at a time: what they hold in memory does not grow with the run."""
    joined = _joined(BUILT_IN[data], BUILT_IN_COLUMNS[data], wanted)
    for shards in portions(run) if data == "pseudolabels" else [None]:
        with connect(run) as connection:
            if shards:
                _look_at(connection, run, shards)
            yield from connection.sql(joined).to_arrow_reader(BATCH)


def _look_at(connection: Connection, run: RunDirectory, shards: list[dict[str, Any]]) -> None:
    """Let the views of a connection see the candidates and distributions of some shards alone."""
    numbers = {shard["shard"] for shard in shards}
    records = [*shards, *(score for score in run.score_records() if score["part"] in numbers)]
    for table in ("candidates", "logits"):
        files = [file for shard in records for file in shard["files"] if file["table"] == table]
        if files:
            paths = [run.path(file["path"]) for file in files]
            connection.execute(f"CREATE OR REPLACE VIEW raw.{table} AS {parquet(paths)}")


def check(batch: pa.RecordBatch, wanted: Wanted) -> None:
    """Refuse a batch that holds a row with a fault.

    Raises:
        RunError: naming the first such row.
    """
    faults = batch.column("fault")
    if faults.null_count < len(faults):
        index = next(i for i, fault in enumerate(faults) if fault.is_valid)
        raise RunError(wanted.place, None, f"{named(batch, index)} {faults[index]}")


def named(batch: pa.RecordBatch, index: int) -> str:
    """A row as an error message names it."""
    rank = batch.column("rank")[index].as_py()
    of_rank = "" if rank is None else f" rank {rank}"
    return f"sample {batch.column('sample_id')[index]}{of_rank}"


def no_rows(wanted: Wanted, excluded: dict[str, int]) -> RunError:
    """The error of a stage without rows."""
    if excluded:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in excluded.items())
        return RunError(wanted.place, wanted.data, f"no row can be used ({reasons})")
    remedy = EMPTY.get(wanted.data, "the query gives no row: mend it")
    return RunError(wanted.place, wanted.data, remedy)


def _joined(data: str, columns: set[str], wanted: Wanted) -> str:
    ranked = "rank" in columns
    join = DISTRIBUTIONS_JOIN.format(
        origin="candidate" if ranked else "gold",
        on_rank="l.rank = c.rank" if ranked else "true",
    )
    return JOINED.format(
        data=f"\n{data}\n",
        rank="c.rank" if ranked else "NULL::INTEGER",
        order="c.sample_id, c.rank" if ranked else "c.sample_id",
        target="c.target" if "target" in columns else "NULL::VARCHAR",
        token_ids="c.token_ids" if "token_ids" in columns else "NULL::INTEGER[]",
        columns=DISTRIBUTIONS if wanted.distributions else "",
        join=join if wanted.distributions else "",
        faults=DISTRIBUTION_FAULTS.format(vocabulary=wanted.vocabulary, slack=SLACK)
        if wanted.distributions
        else "",
    )
