"""A query's rows in every form that `seqkd sql` writes."""

from __future__ import annotations

import csv
import io
import json

import duckdb
import pyarrow.parquet as pq
import pytest

from factory.errors import QueryError
from factory.tables import write_rows

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
