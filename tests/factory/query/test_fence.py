"""The fence around SQL from outside: what tries to leave it, and how a mistake is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from factory import cli
from factory.errors import QueryError
from factory.files import read_json, write_json
from factory.query import catalog, fence
from factory.records import RunDirectory
from tests.runs import add_samples, add_shard, begin_stage, make_run

OVERWRITE = "(FORMAT parquet, USE_TMP_FILE false)"
HOSTILE = [
    # writing
    "COPY samples TO '{out}'",
    "COPY (SELECT 1) TO '{part}' " + OVERWRITE,
    "WITH x AS (COPY (SELECT 1) TO '{part}' " + OVERWRITE + ") SELECT * FROM x",
    "WITH x AS (COPY (SELECT 1) TO '{out}') SELECT * FROM x",
    "SELECT (WITH x AS (COPY (SELECT 1) TO '{out}') SELECT 1 FROM x)",
    "WITH x AS MATERIALIZED (COPY (SELECT 1) TO '{part}' " + OVERWRITE + ") FROM x",
    "SELECT 1 UNION ALL (WITH x AS (COPY (SELECT 1) TO '{out}') SELECT 1)",
    "SUMMARIZE WITH x AS (COPY (SELECT 1) TO '{out}') SELECT 1 AS a",
    "DESCRIBE WITH x AS (COPY (SELECT 1) TO '{out}') SELECT 1 AS a",
    "WITH x AS (EXPORT DATABASE '{out}') SELECT 1",
    "WITH x AS (ATTACH '{out}') SELECT 1",
    "WITH x AS (INSERT INTO samples SELECT * FROM samples) FROM x",
    "WITH x AS (SET memory_limit = '9GB') SELECT 1",
    "FROM query('WITH x AS (COPY (SELECT 1) TO ''{out}'') SELECT 1')",
    "FROM json_execute_serialized_sql(json_serialize_sql("
    "'WITH x AS (COPY (SELECT 1) TO ''{part}'' " + OVERWRITE + ") SELECT 1'))",
    "PRAGMA json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "FROM \"Query\"('FROM json_execute_' || 'serialized_sql(''x'')')",
    "FROM query_table('samples')",
    "EXPORT DATABASE '{out}'",
    "IMPORT DATABASE '{folder}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'",
    "EXPLAIN ANALYZE SELECT 1",
    "EXPLAIN COPY (SELECT 1) TO '{out}'",
    "ATTACH '{out}'",
    "ATTACH ':memory:' AS m",
    "DETACH memory",
    "USE raw",
    "CREATE TABLE t AS SELECT 1",
    "CREATE VIEW v AS SELECT 1",
    "CREATE MACRO m() AS 1",
    "CREATE SECRET (TYPE s3, KEY_ID 'x', SECRET 'y')",
    "DROP VIEW samples",
    "INSERT INTO samples SELECT * FROM samples",
    "UPDATE samples SET source = 'x'",
    "DELETE FROM samples",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "PREPARE p AS SELECT 1",
    "SELECT * FROM enable_logging(storage := 'file', storage_config := {{'path': '{out}'}})",
    "CALL enable_profiling(save_location := '{out}')",
    # reading what no record names
    "SELECT * FROM read_csv('{other}')",
    "SELECT * FROM '{other}'",
    'SELECT * FROM "{other}"',
    "SELECT * FROM '{folder}/*.csv'",
    "SELECT * FROM 'file://{other}'",
    "SELECT * FROM read_text('{other}')",
    "SELECT * FROM read_parquet('{other}')",
    "SELECT * FROM read_json('{other}')",
    "SELECT * FROM read_duckdb('{other}')",
    "SELECT * FROM sniff_csv('{other}')",
    "SELECT * FROM parquet_metadata('{part}')",
    "SELECT * FROM read_blob('/etc/hostname')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM read_parquet('{link}')",
    "SELECT * FROM '{link}'",
    "SELECT * FROM '{part}/../../manifest.yaml'",
    "SELECT * FROM '/proc/self/environ'",
    "SELECT (SELECT max(content) FROM read_text('{other}')) FROM samples",
    "SELECT getenv('HOME')",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM run",  # a Python variable of ours
    # the network, and code
    "SELECT * FROM 'https://127.0.0.1:9/x.parquet'",
    "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{other}'",
    "FROM register_external_resource('x')",
    # the fence itself
    "SET memory_limit = '100GB'",
    "SET enable_external_access = true",
    "SET VARIABLE x = 1",
    "RESET ALL",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    # not one statement that selects
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY samples TO '{out}'",
    "SELECT 1) TO '{out}'; --",
    "PIVOT samples ON split",
    "",
    "-- nothing",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    made = make_run(tmp_path_factory.mktemp("fence") / "run")
    add_samples(made, [{"sample_id": name, "source": f"of {name}"} for name in "abut"])
    add_shard(made, 0, [{"sample_id": name, "text": "one two three"} for name in "abu"])
    return made


@pytest.mark.parametrize("sql", HOSTILE)
def test_the_fence_holds(tmp_path, run, sql):
    folder = tmp_path / "outside"
    folder.mkdir()
    other, out, link = folder / "other.csv", folder / "out", run.path("link.csv")
    other.write_text("a\n1\n")
    link.unlink(missing_ok=True)
    link.symlink_to(other)
    part = run.path("samples", "part-0.parquet")
    before = part.read_bytes()
    filled = sql.format(out=out, other=other, link=link, folder=folder, part=part)
    with pytest.raises(QueryError) as caught, fence.query_errors():
        fence.select(run, filled).fetchall()
    assert "\n" not in str(caught.value)
    assert part.read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["other.csv"]


READING = [
    "SELECT count(*) FROM samples",
    "WITH x AS (SELECT 4 AS a) SELECT a FROM x",
    "SELECT max(i) + 2 FROM range(3) t(i)",
    "SELECT DISTINCT 4 FROM (DESCRIBE samples)",
    "SELECT DISTINCT 4 FROM (SUMMARIZE samples)",
    "SELECT train FROM (PIVOT (SELECT split FROM samples) ON split IN ('train') USING count(*))",
    "VALUES (4)",
    "SELECT len(unnest(token_ids)::VARCHAR) + 3 FROM candidates LIMIT 1 /* why not */ ;",
]


@pytest.mark.parametrize("sql", READING)
def test_one_reading_statement_passes(run, sql):
    assert fence.select(run, sql).fetchall() == [(4,)]


def test_a_trailing_comment_passes(run):
    assert len(fence.select(run, "FROM samples; -- and no more").fetchall()) == 4


def test_order_is_kept(run):
    found = fence.select(run, "SELECT sample_id FROM samples ORDER BY sample_id DESC").fetchall()
    assert [sample_id for (sample_id,) in found] == ["u", "t", "b", "a"]


TOLD = [
    ("SELEC 1", "sql line 1, column 1: 'SELEC': syntax error at or near"),
    (
        "SELECT mean_logpro\nFROM candidates",
        "sql line 1, column 8: 'mean_logpro': is no column here: did you mean 'mean_logprob', ",
    ),
    ("SELECT 'é', 'ü',\n  sourc FROM samples", "line 2, column 3: 'sourc': is no column"),
    ("SELECT 'é', sourc FROM samples", "line 1, column 13: 'sourc': is no column"),
    ("FROM sampels", "column 6: 'sampels': is no table here: did you mean 'samples'?"),
    ("FROM nowhere_near_it", "'nowhere_near_it': is no table here: "),
    ("SELECT lengthh(text) FROM candidates", "is no scalar function here: did you mean 'length'?"),
    ("SELECT s.txt FROM samples s", "column 8: 's.txt': Values list"),
    ("SELECT *\nFROM samples\nWHER rank = 0", "sql line 3, column 6: 'rank': syntax error"),
    ("SELECT 'x", "sql line 1, column 8: unterminated string literal"),
    ("SELECT sum(source) FROM samples", "'sum': No function matches"),
    ("SELECT source FROM samples GROUP BY 2", "sql: GROUP BY term out of range"),
    ("SELECT nothing", "column 8: 'nothing': "),
    ("SELECT 'a'::INTEGER", "Could not convert string 'a' to INT32"),
    ("SELECT (SELECT sample_id FROM samples)", "sql: More than one row returned by a subquery"),
    ("FROM 'other.csv'", 'sql: Cannot access file "other.csv" - '),
    ("FROM 'other.csv'", ": read the run's views"),
    ("SELECT error('two\nlines')", "sql: two lines"),
]


@pytest.mark.parametrize(("sql", "told"), TOLD)
def test_a_mistake_is_one_line_with_its_place_and_what_was_meant(run, sql, told):
    with pytest.raises(QueryError) as caught, fence.query_errors(sql):
        fence.select(run, sql).fetchall()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "{" not in str(caught.value)


def test_a_query_takes_only_so_much_disk_and_leaves_none_of_it(run, monkeypatch):
    monkeypatch.setattr(catalog, "MEMORY", 60 << 20)
    monkeypatch.setattr(fence, "SPILL", "10MB")
    with pytest.raises(QueryError, match="does not fit its memory and disk"), fence.query_errors():
        fence.select(run, "SELECT md5(i::VARCHAR) FROM range(3000000) t(i) ORDER BY 1").fetchall()
    assert not list(run.root.glob(".spill-*"))


def test_the_command_tells_it_and_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(catalog, "MEMORY", 60 << 20)
    wrong = "SELECT list(i) FROM range(1000000000) t(i)"
    out = tmp_path / "out.csv"
    words = ["seqkd", "sql", str(run.root), wrong, "--format", "csv", "--output", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("seqkd: sql: does not fit its memory and disk: ")
    assert list(tmp_path.iterdir()) == []
    assert not [path for path in Path(run.root).iterdir() if path.name.startswith(".")]


STUDENT = {"init": {"model": "s"}, "stages": [{"name": "gold", "data": "gold"}]}
LOGGED = [
    {"step": i, "stage_step": i, "loss": 1.0, "tokens": 1, "tokens_per_second": 1.0}
    for i in range(1, 6)
]


def test_a_log_that_grows_while_it_is_asked_for_is_read_as_it_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The views are made of the parts that the fence lets through, whatever is written between."""
    run = make_run(tmp_path / "run", student=STUDENT)
    begin_stage(run, "gold", LOGGED[:2])

    def connect(*runs: RunDirectory | None) -> catalog.Connection:
        connection = catalog.connect(*runs)  # type: ignore[arg-type]
        record = read_json(run.path("student", "gold", "log.json"))
        begin_stage(run, "gold", LOGGED)
        write_json(run.path("student", "gold", "log.json"), record | {"files": record["files"][1:]})
        return connection

    monkeypatch.setattr(fence, "connect", connect)
    assert fence.select(run, "SELECT count(*) FROM train_log").fetchall() == [(2,)]


def test_parts_that_go_while_a_stage_ends_are_looked_for_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path / "run", student=STUDENT)
    begin_stage(run, "gold", LOGGED)
    real, asked = RunDirectory.logged_stages, []

    def gone_at_first(self: RunDirectory) -> list[dict[str, Any]]:
        asked.append(self)
        [stage] = real(self)
        gone = {"table": "train_log", "path": "student/gold/train_log/gone.parquet"}
        return [stage | {"files": [gone]}] if len(asked) == 1 else [stage]

    monkeypatch.setattr(RunDirectory, "logged_stages", gone_at_first)
    assert fence.select(run, "SELECT count(*) FROM train_log").fetchall() == [(5,)]
    assert len(asked) > 1
