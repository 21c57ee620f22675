"""A query's rows in every form that `seqkd sql` writes."""

from __future__ import annotations

import csv
import io
import json

import duckdb
import pyarrow.parquet as pq
import pytest

from factory.errors import QueryError
from factory.query.tables import write_rows

SQL = """
    SELECT 1 AS n, 0.5 AS part, 'a,"b' AS text, NULL AS none, [1, 2] AS list, true AS yes,
           MAP {'ce': 0.25::DOUBLE} AS terms, {'path': 'p', 'rows': 3} AS file,
           'nan'::DOUBLE AS odd, 7::HUGEINT AS big
    UNION ALL
    SELECT 2, 1.5, 'é\n', NULL, [], false, MAP {}, NULL, 2.0, 8
"""


def written(sql: str, form: str, path) -> str:
    write_rows(duckdb.connect().sql(sql), form, path)
    return path.read_text("utf-8")


def test_json_is_one_array(tmp_path):
    rows = json.loads(written(SQL, "json", tmp_path / "out"))
    assert rows[0] == {
        "n": 1,
        "part": 0.5,
        "text": 'a,"b',
        "none": None,
        "list": [1, 2],
        "yes": True,
        "terms": {"ce": 0.25},
        "file": {"path": "p", "rows": 3},
        "odd": None,
        "big": 7,
    }
    assert rows[1]["text"] == "é\n"
    assert json.loads(written("SELECT 1 WHERE false", "json", tmp_path / "none")) == []


def test_csv_holds_nested_values_as_json(tmp_path):
    rows = list(csv.reader(io.StringIO(written(SQL, "csv", tmp_path / "out"))))
    assert rows[0][:5] == ["n", "part", "text", "none", "list"]
    assert rows[1][:8] == [
        "1", "0.5", 'a,"b', "", "[1, 2]", "true", '{"ce": 0.25}', '{"path": "p", "rows": 3}',
    ]  # fmt: skip
    assert rows[2][2] == "é\n"


def test_parquet_keeps_types(tmp_path):
    connection = duckdb.connect()
    write_rows(connection.sql(SQL), "parquet", tmp_path / "out.parquet")
    found = connection.sql(f"FROM '{tmp_path / 'out.parquet'}'")
    assert found.columns == connection.sql(SQL).columns
    assert [str(t) for t in found.types][4:8] == [
        "INTEGER[]",
        "BOOLEAN",
        "MAP(VARCHAR, DOUBLE)",
        'STRUCT(path VARCHAR, "rows" INTEGER)',
    ]
    assert found.fetchall()[1][:3] == (2, 1.5, "é\n")


def test_a_table_shows_markup_and_control_characters_as_they_are(tmp_path):
    text = written("SELECT '[red]x[/red]' AS a, chr(27) || '[31m' AS b", "table", tmp_path / "out")
    assert "[red]x[/red]" in text
    assert "\\x1b[31m" in text
    assert "\x1b" not in text


def test_a_long_table_says_what_it_leaves_out(tmp_path):
    text = written("SELECT i AS number FROM range(101) t(i)", "table", tmp_path / "out")
    assert " 99 " in text
    assert " 100 " not in text.splitlines()[-2]
    assert "The first 100 rows" in text
    assert "The first" not in written("FROM range(100)", "table", tmp_path / "out")


WIDE = """
    SELECT 'a text of some length that can be folded' AS text, 'ea902e5adb7359ff4d31' AS sample_id,
        -123.456 AS score, 1 AS rank
    FROM range(11)
"""


@pytest.mark.parametrize("columns", [64, 80])
def test_a_table_fits_the_terminal_and_its_columns_can_be_read(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    write_rows(duckdb.connect().sql(WIDE), "table")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    head, row = lines[1], lines[3]
    assert all(name in head for name in ("text", "sample_id", "score", "rank"))
    assert "-123.456" in row
    assert "The first" not in lines[-1]


@pytest.mark.parametrize("columns", range(94, 112, 3))
def test_columns_take_fair_shares_of_the_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    sql = """
        SELECT '001b352ee7fe7aa42dca' AS id, 4 AS candidates, '{"length_ratio": 4}' AS reasons,
            repeat('word ', 40) AS source, repeat('Wort ', 40) AS best
    """
    write_rows(duckdb.connect().sql(sql), "table")
    lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} <= {columns, columns - 1}
    assert "001b352ee7fe7aa42dca" in lines[3]
    assert lines[0].endswith("┓")


def test_rows_that_would_be_too_narrow_stand_one_after_another(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    write_rows(duckdb.connect().sql(WIDE), "table")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("row 1 ──")
    assert lines[1] == "text       a text of some length that"
    assert lines[3:6] == ["sample_id  ea902e5adb7359ff4d31", "score      -123.456", "rank       1"]
    assert sum(line.startswith("row ") for line in lines) == 10
    assert " ".join(lines[-2:]).startswith("The first 10 rows; all of them with --format csv")


def test_a_long_value_is_cut_in_a_table_only(tmp_path):
    sql = "SELECT repeat('x', 5000) AS a"
    assert written(sql, "table", tmp_path / "table").count("x") == 999
    assert written(sql, "csv", tmp_path / "csv").count("x") == 5000


def test_standard_output(capsys):
    write_rows(duckdb.connect().sql("SELECT 1 AS a"), "csv")
    assert capsys.readouterr().out == "a\n1\n"


def test_rows_are_streamed(tmp_path):
    write_rows(duckdb.connect().sql("FROM range(300000)"), "parquet", tmp_path / "out.parquet")
    assert pq.read_metadata(tmp_path / "out.parquet").num_row_groups > 1


BAD = [
    ("SELECT 1", "jsn", "--format: 'jsn': is no format: did you mean 'json'?"),
    ("SELECT 1 AS a, 2 AS a", "json", "'a': names two columns"),
    ("SELECT INTERVAL 1 DAY AS i", "parquet", "cast it to VARCHAR"),
    ("SELECT (i || 'x')::INTEGER FROM range(9) t(i)", "csv", "Could not convert"),
]


@pytest.mark.parametrize(("sql", "form", "message"), BAD)
def test_what_goes_wrong_is_one_line_and_leaves_no_file(tmp_path, sql, form, message):
    with pytest.raises(QueryError) as caught:
        written(sql, form, tmp_path / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
