"""The views over a run, and the catalog for the DuckDB shell."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from factory import schemas
from factory.errors import DamagedFile, RunError
from factory.query import catalog, fence
from factory.records import RunDirectory
from tests.runs import add_samples, add_shard, make_run

CONTRACT = {
    "tokens": "token_id token bytes",
    "samples": "sample_id split source gold gold_visible prompt n_prompt_tokens meta",
    "refused": "file line reason",
    "candidates": "sample_id rank score text token_ids n_tokens sum_logprob mean_logprob "
    "finish_reason error ordinal seed",
    "signals": "sample_id rank",
    "verdicts": "sample_id rank kept selected reasons",
    "pseudolabels": "sample_id rank source target token_ids score mean_logprob finish_reason",
    "rejects": "sample_id rank text reasons",
    "logits": "sample_id origin rank n_tokens k widths token_ids token_logprobs topk_ids "
    "topk_logprobs tail_logprob counts draws",
    "logits_by_position": "sample_id origin rank position token_id logprob topk_ids "
    "topk_logprobs tail_mass",
    "gold": "sample_id source target",
    "train_log": "stage step stage_step epoch loss terms lr tokens tokens_per_second",
    "predictions": "system stage split sample_id text token_ids",
    "evals": "system stage split metric fold score ci_low ci_high signature",
    "shards": "shard samples candidates tokens seconds files",
}
FIXED = {
    "sample_id": "a",
    "n_tokens": 3,
    "k": 2,
    "token_ids": [5, 6, 9],
    "token_logprobs": [-0.1, -0.2, -3.0],
    "topk_ids": [5, 1, 6, 2, 7, 3],
    "topk_logprobs": [-0.1, -2.5, -0.2, -2.0, -0.5, -1.5],
    "tail_logprob": [-4.0, -3.0, -2.0],
}
RAGGED = FIXED | {
    "sample_id": "b",
    "k": None,
    "widths": [2, 0, 3],
    "topk_ids": [5, 1, 7, 3, 4],
    "topk_logprobs": [-0.1, -2.5, -0.5, -1.5, -1.75],
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = make_run(tmp_path / "hand")
    add_samples(
        made,
        [
            {"sample_id": "a", "source": "un deux", "gold": "one two", "gold_visible": True},
            {"sample_id": "b", "source": "trois", "gold": "three"},
            {"sample_id": "u", "source": "quatre", "split": "unlabeled"},
            {"sample_id": "t", "source": "cinq", "split": "test", "gold": "five"},
        ],
        refused=[{"file": "train.tsv", "line": 7, "reason": "empty source"}],
    )
    add_shard(
        made,
        0,
        [{"sample_id": "a", "text": "one two"}, {"sample_id": "b", "text": "three"}],
        [FIXED, RAGGED],
    )
    add_shard(
        made,
        1,
        [
            {"sample_id": "u", "error": "too long"},
            {"sample_id": "t", "text": "five"},
            {"sample_id": "a", "text": "of an older prompt", "prompt_hash": 2},
        ],
        [FIXED | {"prompt_hash": 2}],
    )
    return made


def rows(run: RunDirectory, sql: str) -> list[tuple]:
    with catalog.connect(run) as connection:
        return connection.execute(sql).fetchall()


def test_views_stand_before_any_step_has_run(tmp_path):
    assert set(CONTRACT) == set(catalog.VIEWS)
    with catalog.connect(make_run(tmp_path / "empty")) as connection:
        for view, columns in CONTRACT.items():
            relation = connection.sql(f"FROM {view}")
            wanted = columns.split()
            assert relation.columns[: len(wanted)] == wanted
            assert relation.fetchall() == []


def test_views_keep_their_types_when_files_come(tmp_path, run):
    with catalog.connect(make_run(tmp_path / "empty")) as before, catalog.connect(run) as after:
        for view in catalog.VIEWS:
            types = [c.sql(f"FROM {view}").types for c in (before, after)]
            assert types[0] == types[1], view


def test_files_of_an_earlier_version_lack_a_column_that_came_later(run):
    path = run.path("logits", "00000.parquet")
    later = {"draws", *schemas.STORED_LOGITS.names} - set(schemas.LOGITS.names[:-1])
    pq.write_table(pq.read_table(path).drop_columns(sorted(later)), path)
    found = rows(run, "SELECT sample_id, draws, topk_ids FROM logits ORDER BY 1")
    assert found == [("a", None, FIXED["topk_ids"]), ("b", None, RAGGED["topk_ids"])]


def test_candidates_are_of_train_and_unlabeled_with_the_current_prompt(run):
    found = rows(run, "SELECT sample_id, text, error FROM candidates ORDER BY ALL")
    assert found == [("a", "one two", None), ("b", "three", None), ("u", None, "too long")]
    assert rows(run, "SELECT count(*) FROM logits") == [(2,)]


def test_gold_is_what_the_student_may_see(run):
    assert rows(run, "FROM gold") == [("a", "un deux", "one two")]


def test_shards_show_their_records(run):
    found = rows(
        run, "SELECT shard, candidates, files[1].path, files[1].rows FROM shards ORDER BY 1"
    )
    assert found == [
        (0, 2, "candidates/00000.parquet", 2),
        (1, 3, "candidates/00001.parquet", 3),
    ]
    assert rows(run, "SELECT file, line FROM refused") == [("train.tsv", 7)]


@pytest.mark.parametrize("row", [FIXED, RAGGED], ids=["fixed", "ragged"])
def test_positions_hold_their_own_entries(run, row):
    sql = f"FROM logits_by_position WHERE sample_id = '{row['sample_id']}' ORDER BY position"
    widths = row.get("widths") or [row["k"]] * row["n_tokens"]
    cuts = np.cumsum([0, *widths])
    ids, logprobs = np.array(row["topk_ids"]), np.array(row["topk_logprobs"], dtype=np.float32)
    found = rows(run, sql)
    assert len(found) == row["n_tokens"]
    for at, (_, origin, rank, position, token, logprob, top, top_logprobs, tail) in enumerate(
        found
    ):
        assert (origin, rank, position, token) == ("candidate", 0, at, row["token_ids"][at])
        assert logprob == np.float32(row["token_logprobs"][at])
        assert top == ids[cuts[at] : cuts[at + 1]].tolist()
        assert top_logprobs == logprobs[cuts[at] : cuts[at + 1]].tolist()
        assert tail == pytest.approx(np.exp(row["tail_logprob"][at]))


def test_odd_names_of_folders_are_taken_as_they_stand(tmp_path):
    odd = make_run(tmp_path / "o[d]d, *it's? k=v" / "ru[n]")
    add_samples(odd, [{"sample_id": "a", "source": "x"}])
    add_shard(odd, 0, [{"sample_id": "a", "text": "y"}])
    catalog.refresh(odd)
    assert fence.select(odd, "SELECT text FROM candidates, shards").fetchall() == [("y",)]
    assert "k" not in fence.select(odd, "DESCRIBE samples").fetchall()[-1]


def test_a_recorded_file_that_is_missing_is_named(run):
    run.path("samples", "part-0.parquet").unlink()
    with pytest.raises(DamagedFile, match=r"samples/part-0\.parquet: is missing"):
        catalog.connect(run)


def test_a_recorded_file_that_leaves_the_run_is_refused(tmp_path, run):
    part = run.path("samples", "part-0.parquet")
    part.rename(tmp_path / "moved.parquet")
    part.symlink_to(tmp_path / "moved.parquet")
    with pytest.raises(RunError, match="lies outside the run"):
        catalog.connect(run)


def test_a_connection_spills_into_the_run_and_leaves_nothing(run):
    with catalog.connect(run) as connection:
        connection.execute("SET memory_limit = '60MB'")
        connection.execute("SET threads = 1")
        sql = "SELECT md5(i::VARCHAR) FROM range(1500000) t(i) ORDER BY 1 DESC"
        connection.execute(sql).fetchone()
        assert list(run.root.glob(".spill-*"))
    assert not list(run.root.glob(".spill-*"))


# --- catalog.duckdb ------------------------------------------------------------------------------


def test_the_catalog_opens_from_the_parent_folder(run, monkeypatch):
    catalog.refresh(run)
    monkeypatch.chdir(run.root.parent)
    with duckdb.connect("hand/catalog.duckdb", read_only=True) as shell:
        for view in catalog.VIEWS:
            assert shell.sql(f"FROM {view}").columns
        assert shell.sql("SELECT count(*) FROM logits_by_position").fetchall() == [(6,)]
        tags = shell.sql("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchall()
        assert tags[0][0]["storage_version"].startswith("v1.4.0")


def test_the_catalog_is_replaced_under_a_reader(run, monkeypatch):
    catalog.refresh(run)
    monkeypatch.chdir(run.root.parent)
    with duckdb.connect("hand/catalog.duckdb", read_only=True) as shell:
        catalog.refresh(run)
        assert shell.sql("SELECT count(*) FROM samples").fetchall() == [(4,)]
    leftovers = {path.name for path in run.root.iterdir() if "catalog" in path.name}
    assert leftovers == {"catalog.duckdb"}
