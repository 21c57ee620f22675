"""DuckDB over a run: the contract's views, and `catalog.duckdb`.

The views are the files of `sql/views`, over one relation `raw.TABLE` for every table a run stores:
the Parquet files that records name, or an empty relation of the same types before there are any.
Beside them stand the macros of `sql/macros`, the views of a second run as `other.VIEW`, and for SQL
from outside (see `factory.query.fence`) the looks of `sql/look`: queries with parameters, `FROM
NAME(parameter := value)`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from factory import schemas
from factory.errors import DamagedFile, RunError
from factory.files import replacing, shipped
from factory.records import RunDirectory

TABLES = {
    "tokens": schemas.TOKENS,
    "samples": schemas.SAMPLES,
    "refused": schemas.REFUSED,
    "candidates": schemas.CANDIDATES,
    "signals": schemas.SIGNALS,
    "verdicts": schemas.VERDICTS,
    "logits": schemas.STORED_LOGITS,
    "train_log": schemas.TRAIN_LOG,
    "predictions": schemas.PREDICTIONS,
    "evals": schemas.EVALS,
}
VIEWS = (  # in the order in which they build on each other
    "tokens",
    "samples",
    "refused",
    "candidates",
    "signals",
    "verdicts",
    "pseudolabels",
    "rejects",
    "logits",
    "logits_by_position",
    "gold",
    "train_log",
    "predictions",
    "evals",
    "shards",
)
MACROS = (
    *("token_text", "token_list", "tokens_text", "held_entropy", "entries_at"),
    *("trigrams", "alike"),
)
OTHER = "other"  # what queries call the run beside this one
SHARD_COLUMNS = {
    "shard": "BIGINT",
    "samples": "BIGINT",
    "candidates": "BIGINT",
    "tokens": "BIGINT",
    "seconds": "DOUBLE",
    "files": 'STRUCT(path VARCHAR, "rows" BIGINT, sha256 VARCHAR)[]',
}
MEMORY = 1 << 30
PORTION = 4096  # candidates joined with what belongs to them at a time
STORAGE = "v1.4.0"  # the oldest DuckDB that should open catalog.duckdb

Connection = duckdb.DuckDBPyConnection
Naming = Callable[[Path], str]


def connect(run: RunDirectory, other: RunDirectory | None = None) -> Connection:
    """Open all views of a run, for SQL of our own. Memory is bounded; the rest spills to the run.

    Those of another run may stand beside them, as `other.VIEW`.

    Raises:
        DamagedFile: a recorded file is missing.
        RunError: a recorded file lies outside the run.
    """
    try:
        return _opened(run, other)
    except (DamagedFile, duckdb.IOException):  # a stage may have ended, and its log be one file now
        for asked in filter(None, (run, other)):
            asked.relist()
        return _opened(run, other)


def _opened(run: RunDirectory, other: RunDirectory | None) -> Connection:
    connection = duckdb.connect(config={"python_enable_replacements": False})
    connection.execute(f"SET memory_limit = '{_memory()}B'")
    connection.execute(f"SET temp_directory = {quoted(_spill(run))}")
    _create_views(connection, run, str)
    if other:
        _attach(connection, other, str)
    return connection


def refresh(run: RunDirectory) -> None:
    """Write `catalog.duckdb` for the plain DuckDB shell, opened from the run's parent folder."""
    with (
        tempfile.TemporaryDirectory() as folder,
        replacing(run.path("catalog.duckdb")) as temporary,
    ):
        parent = Path(folder, "runs")  # a plain name: the setting splits at commas and globs
        parent.symlink_to(run.root.parent, target_is_directory=True)
        built = Path(folder, "catalog.duckdb")
        _build(run, built, parent)
        shutil.copyfile(built, temporary)


def _build(run: RunDirectory, path: Path, parent: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(f"SET file_search_path = {quoted(str(parent))}")
        connection.execute(f"ATTACH {quoted(str(path))} AS catalog (STORAGE_VERSION '{STORAGE}')")
        connection.execute("USE catalog")
        name = partial(_from_parent, run)
        _create_views(connection, run, name)
        create_looks(connection, run, looks(), name)
        connection.execute("USE memory; DETACH catalog")


def _from_parent(run: RunDirectory, file: Path) -> str:
    return str(file.relative_to(run.root.parent))


def looks() -> tuple[str, ...]:
    """The names of the queries of `sql/look`."""
    return tuple(sorted(path.stem for path in shipped("sql").glob("look/*.sql")))


def shipped_sql(folder: str, name: str) -> str:
    """The text of a shipped SQL file."""
    return shipped("sql").joinpath(folder, f"{name}.sql").read_text("utf-8")


def quoted(text: str) -> str:
    """`text` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def parquet(paths: list[Path], name: Naming = str, options: str = "filename = false") -> str:
    """SQL that reads Parquet files, whatever characters their paths hold."""
    files = listed(paths, name)
    return f"SELECT * FROM read_parquet([{files}], hive_partitioning = false, {options})"


def portions(run: RunDirectory) -> Iterator[list[dict[str, Any]]]:
    """Consecutive shards, at least `PORTION` candidates or a 64th of all, whichever is more.

    What a join of one portion holds in memory does not grow with the run.
    """
    shards = run.shard_records()
    size = max(PORTION, sum(shard["candidates"] for shard in shards) // 64)
    portion: list[dict[str, Any]] = []
    for shard in shards:
        portion.append(shard)
        if sum(shard["candidates"] for shard in portion) >= size:
            yield portion
            portion = []
    yield from [portion] if portion else []


def _create_views(connection: Connection, run: RunDirectory, name: Naming) -> None:
    connection.execute("CREATE SCHEMA raw")
    for table, schema in TABLES.items():
        relation = _empty(connection, schema)
        if paths := _recorded(run, table):  # a column that came later is NULL in earlier files
            relation = f"({relation}) UNION ALL BY NAME ({parquet(paths, name)})"
        connection.execute(f"CREATE VIEW raw.{table} AS {relation}")
    connection.execute(f"CREATE VIEW raw.shards AS {_shards(_shard_paths(run), name)}")
    for view in VIEWS:
        connection.execute(shipped_sql("views", view))
    for macro in MACROS:
        connection.execute(shipped_sql("macros", macro))


def create_looks(
    connection: Connection, run: RunDirectory, names: Iterable[str], name: Naming = str
) -> None:
    """Create looks, over the views of `run` and those of `other` where it is attached.

    DuckDB binds a macro where it is created, which reads the footers of all files it names; so what
    is not asked for is left out, and the run itself stands in where there is no other.
    """
    texts = [shipped_sql("look", look) for look in names]
    named = any(f"{OTHER}." in text for text in texts)
    stands_in = named and OTHER not in _attached(connection)
    if stands_in:
        _attach(connection, run, name)
    for text in texts:
        connection.execute(text)
    if stands_in:
        connection.execute(f"DETACH {OTHER}")


def _attach(connection: Connection, other: RunDirectory, name: Naming) -> None:
    [(home,)] = connection.execute("SELECT current_database()").fetchall()
    connection.execute(f"ATTACH ':memory:' AS {OTHER}; USE {OTHER}")
    _create_views(connection, other, name)
    connection.execute(f"USE {home}")


def _attached(connection: Connection) -> set[str]:
    rows = connection.execute("SELECT database_name FROM duckdb_databases()").fetchall()
    return {name for (name,) in rows}


def recorded_files(run: RunDirectory) -> list[Path]:
    """Every file the views read."""
    return [path for table in TABLES for path in _recorded(run, table)] + _shard_paths(run)


def _recorded(run: RunDirectory, table: str) -> list[Path]:
    return [_inside(run, run.path(file["path"])) for file in run.files(table)]


def _shard_paths(run: RunDirectory) -> list[Path]:
    return [_inside(run, path) for path in sorted(run.path("shards").glob("[0-9]*.json"))]


def _inside(run: RunDirectory, path: Path) -> Path:
    if not path.is_file():
        raise DamagedFile(f"{path}: is missing, though a record names it")
    if not path.resolve().is_relative_to(run.root):
        raise RunError(path, None, "lies outside the run: copy it in place of the link")
    return path


def _shards(paths: list[Path], name: Naming) -> str:
    types = ", ".join(f"{column}: {quoted(kind)}" for column, kind in SHARD_COLUMNS.items())
    if not paths:
        nulls = (f"CAST(NULL AS {kind}) AS {column}" for column, kind in SHARD_COLUMNS.items())
        return f"SELECT {', '.join(nulls)} WHERE false"
    return (
        f"SELECT * FROM read_json([{listed(paths, name)}], format = 'unstructured', "
        f"hive_partitioning = false, columns = {{{types}}})"
    )


def listed(paths: list[Path], name: Naming = str) -> str:
    """Paths as SQL literals that DuckDB takes as they stand, not as patterns."""
    return ", ".join(quoted(re.sub(r"([*?\[])", r"[\1]", name(path))) for path in paths)


def _empty(connection: Connection, schema: pa.Schema) -> str:
    relation = connection.from_arrow(schema.empty_table())
    pairs = zip(relation.columns, relation.types, strict=True)
    columns = (f'CAST(NULL AS {kind}) AS "{name}"' for name, kind in pairs)
    return f"SELECT {', '.join(columns)} WHERE false"


def _spill(run: RunDirectory) -> str:
    """Where a connection spills; DuckDB makes the folder when it needs it, and removes it."""
    return str(run.path(f".spill-{uuid.uuid4().hex[:8]}"))


def _memory() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(MEMORY, physical // 2)
