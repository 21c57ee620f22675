"""Confidence: what the stored distributions say of a candidate, NULL where there are none."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest

from factory.files import write_json
from factory.judging.signals import signal_keys
from factory.query.catalog import connect, shipped_sql
from factory.records import RunDirectory
from factory.schemas import STORED_LOGITS
from factory.shards import write_part
from tests.runs import add_samples, add_shard, make_run

SURE = {"n_tokens": 1, "k": 1, "token_ids": [1], "token_logprobs": [0.0], "topk_ids": [1]}
FIXED = {
    "n_tokens": 2,
    "k": 2,
    "token_ids": [1, 2],
    "token_logprobs": [math.log(0.5), math.log(0.25)],
    "topk_ids": [1, 3, 3, 2],
    "topk_logprobs": [math.log(p) for p in (0.5, 0.25, 0.5, 0.25)],
    "tail_logprob": [math.log(0.25)] * 2,
}
RAGGED = {
    "n_tokens": 3,
    "k": None,
    "widths": [1, 2, 0],
    "token_ids": [1, 2, 3],
    "token_logprobs": [math.log(0.5), math.log(0.125), -1.0],
    "topk_ids": [1, 1, 2],
    "topk_logprobs": [math.log(0.5), math.log(0.5), math.log(0.5)],
    "tail_logprob": [math.log(0.5), -math.inf, 0.0],
}
# what is stored → least log-probability, mean entropy
STORED = [
    ("fixed", FIXED, (math.log(0.25), 1.5 * math.log(2))),
    ("ragged", RAGGED, (math.log(0.125), 2 * math.log(2) / 3)),
    ("sure", SURE | {"topk_logprobs": [0.0], "tail_logprob": [-math.inf]}, (0.0, 0.0)),
    ("nothing", None, (None, None)),
    ("gold", FIXED | {"origin": "gold"}, (None, None)),
    ("ranked", FIXED | {"rank": 1}, (None, None)),
    ("unscored", {"n_tokens": 0}, (None, None)),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    root: Path = tmp_path_factory.mktemp("confidence") / "run"
    run = make_run(root)
    names = [name for name, *_ in STORED]
    add_samples(run, [{"sample_id": name, "source": name} for name in names])
    rows = [{"sample_id": name} | row for name, row, _ in STORED if row]
    candidates = [{"sample_id": name, "text": "x", "mean_logprob": -0.5} for name in names]
    add_shard(run, 0, [*candidates, {"sample_id": "sure", "rank": 1, "error": "no"}], rows)
    return run


def test_least_and_entropy(run):
    with connect(run) as connection:
        query = f"FROM ({shipped_sql('signals', 'confidence')}) WHERE rank = 0"
        found = {row[0]: row[2:] for row in connection.execute(query).fetchall()}
    assert found == {
        name: (-0.5, *(pytest.approx(value, abs=1e-6) for value in values))
        for name, _, values in STORED
    }


def test_distributions_that_came_later_are_measured(run):
    before = signal_keys(run, run.manifest())
    rows = pa.Table.from_pylist([{"sample_id": "nothing"} | FIXED], schema=STORED_LOGITS)
    path = run.path("logits", "scored-00000.parquet")
    file = write_part(run, path, "logits", rows.to_batches(), STORED_LOGITS, {})
    write_json(run.path("scores", "00000.json"), {"shard": 0, "files": [file]})
    after = signal_keys(run, run.manifest())
    assert {name for name in before if before[name] != after[name]} == {"confidence"}
