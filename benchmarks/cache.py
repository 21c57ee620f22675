"""What distributions cost on disk, to write, to read and to query, and what rounding does to them.

    python benchmarks/cache.py --run RUN          a run made with logits.precision exact and top_k
    python benchmarks/cache.py --rows 4096        drawn over 150,000 ids, see distributions.py
    python benchmarks/cache.py --rows 4096 --shuffled

Bytes count whole files: tails, realised tokens, widths, sample ids, Parquet's own. A pair is a
stored token id with its log-probability. MB are those of the rows in memory, 8 bytes a pair and
more. Rows are written part by part as a job writes them, with encoding, checksum and sync; *read*
is the whole file as Arrow with NumPy's decoding, *SQL* the whole view as Arrow out of DuckDB. The
query is the entropy held in the stored entries, over every one of them. Times are the
best of two writes, three reads and three queries, from the page cache.

Errors are means over positions, in nats, p being what was given and s what was stored. *Cross* is
|Σ p (log p − log s)| over the stored entries: by so much the loss of any student whatever differs.
*KL* is Σ p (log p − log s) + s − p, the divergence of s, the tail counted as exact, which it is.

The bound is what an ideal static code takes for compact's own values: the entropy of the ids in the
whole set, and that of the steps between codes along the ranks, given the rank. It knows nothing of
order, and pays for nothing else; ours pays for everything. *Bound* is a format's bytes over it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq
from distributions import drawn, of_run

from factory.distributions.precision import encoded, restored, stored
from factory.files import shipped
from factory.query.catalog import parquet, quoted
from factory.records import RunDirectory
from factory.schemas import LOGITS, STORED_LOGITS
from factory.shards import write_part

QUERY = """
SELECT sum(list_sum(list_transform(topk_logprobs, lambda x: -x * exp(x)))) / sum(n_tokens)
FROM logits
"""
Arrays = npt.NDArray[Any]


@dataclass
class Format:
    """A way to keep rows: how a part is written and read, and SQL that makes the view `logits`."""

    suffix: str
    write: Callable[[pa.Table, Path], object]
    read: Callable[[Path], pa.Table]
    view: Callable[[list[Path]], list[str]]


def main() -> None:
    """Print the bound, and a row of figures for each format."""
    asked = _arguments()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        parts = sorted(_keep(_parts(asked), Path(folder, "given")))
        tokens, pairs = _sizes(parts)
        bound = _bound(parts)
        print(f"{len(parts)} parts, {tokens:,} tokens, {pairs:,} pairs; bound {bound:.3f} B/pair\n")
        print("| format | B/token | B/pair | bound | write MB/s | read tok/s | SQL tok/s |", end="")
        print(" query s | cross | KL |\n|---|" + "---:|" * 9)
        for name, form in _formats(Path(folder)).items():
            figures = _measure(form, parts, Path(folder, name), bound)
            print(f"| {name} |", " | ".join(figures), "|", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--shuffled", action="store_true", help="number the ids at random")
    parser.add_argument("--folder", help="where files are written meanwhile")
    return parser.parse_args()


def _parts(asked: argparse.Namespace) -> Iterable[pa.Table]:
    return of_run(asked.run) if asked.run else drawn(asked.rows, asked.k, asked.shuffled)


def _keep(tables: Iterable[pa.Table], folder: Path) -> Iterator[Path]:
    folder.mkdir()
    for number, table in enumerate(tables):
        path = folder / f"{number:05d}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, LOGITS) as writer:
            writer.write_table(table)
        yield path


def _given(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _sizes(parts: list[Path]) -> tuple[int, int]:
    lists = [_given(path) for path in parts]
    tokens = sum(int(table["n_tokens"].to_numpy().sum()) for table in lists)
    return tokens, sum(len(_values(table, "topk_ids")) for table in lists)


def _formats(folder: Path) -> dict[str, Format]:
    run = RunDirectory(folder / "run")

    def ours(precision: str) -> Format:
        def write(table: pa.Table, path: Path) -> None:
            write_part(run, path, "logits", [stored(table, precision)], STORED_LOGITS, {})

        return Format("parquet", write, lambda path: restored(pq.read_table(path)), _our_view)

    return {
        "JSONL": Format("jsonl", _write_json, _read_json, _json_view),
        "plain lists, zstd": Format(
            "parquet",
            lambda table, path: pq.write_table(table, path, compression="zstd"),
            pq.read_table,
            lambda paths: [f"CREATE VIEW logits AS {parquet(paths)}"],
        ),
        **{precision: ours(precision) for precision in ("exact", "half", "compact")},
    }


def _measure(form: Format, parts: list[Path], folder: Path, bound: float) -> list[str]:
    """The figures of a format, in the order of the columns."""
    folder = folder.parent / "run" / folder.name
    folder.mkdir(parents=True)
    tokens, pairs = _sizes(parts)
    paths = [folder / f"{path.stem}.{form.suffix}" for path in parts]
    megabytes = sum(_given(part).nbytes for part in parts) / 1e6
    files = list(zip(parts, paths, strict=True))
    written = _seconds(lambda: [form.write(_given(a), b) for a, b in files], 2)
    size = sum(path.stat().st_size for path in paths)
    read = _seconds(lambda: [form.read(path) for path in paths])
    with duckdb.connect() as connection:
        for statement in form.view(paths):
            connection.execute(statement)
        drained = _seconds(lambda: _drain(connection.sql("FROM logits").to_arrow_reader(512)))
        queried = _seconds(lambda: connection.execute(QUERY).fetchall())
    errors = [_errors(_given(a), form.read(b)) for a, b in files]
    cross, divergence = np.concatenate(errors, axis=1).mean(axis=1)
    return [
        f"{size / tokens:,.1f}",
        f"{size / pairs:.3f}",
        f"{size / pairs / bound:.3f}",
        f"{megabytes / written:,.0f}",
        f"{tokens / read:,.0f}",
        f"{tokens / drained:,.0f}",
        f"{queried:.2f}",
        f"{cross:.1e}",
        f"{divergence:.1e}",
    ]


def _our_view(paths: list[Path]) -> list[str]:
    samples = "SELECT sample_id, prompt_hash, 'train' AS split FROM raw.logits"
    view = shipped("sql").joinpath("views", "logits.sql").read_text("utf-8")
    return [
        "CREATE SCHEMA raw",
        f"CREATE VIEW raw.logits AS {parquet(paths)}",
        f"CREATE TABLE raw.samples AS {samples}",
        view,
    ]


def _write_json(table: pa.Table, path: Path) -> None:
    with duckdb.connect() as connection:
        connection.register("rows", table)
        connection.execute(f"COPY rows TO {quoted(str(path))} (FORMAT json)")


def _read_json(path: Path) -> pa.Table:
    return pj.read_json(path, pj.ReadOptions(block_size=1 << 28), pj.ParseOptions(LOGITS))


def _json_view(paths: list[Path]) -> list[str]:
    types = duckdb.from_arrow(LOGITS.empty_table())
    columns = ", ".join(f"{n}: '{t}'" for n, t in zip(types.columns, types.types, strict=True))
    files = ", ".join(quoted(str(path)) for path in paths)
    return [f"CREATE VIEW logits AS FROM read_json([{files}], columns = {{{columns}}})"]


def _seconds(work: Callable[[], object], times: int = 3) -> float:
    """The shortest time that the work took."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _drain(batches: Iterable[pa.RecordBatch]) -> None:
    for _ in batches:
        pass


def _errors(given: pa.Table, back: pa.Table) -> Arrays:
    """Float64 [2, n]: the error of a cross term, and the divergence, of each position.

    By rank: of entries whose ids changed places both have the same value.
    """
    k = given["k"][0].as_py()
    logs, kept = (_values(t, "topk_logprobs").reshape(-1, k).astype(float) for t in (given, back))
    shares, kept_shares = np.exp(logs), np.exp(kept)
    cross = (shares * (logs - kept)).sum(axis=1)
    return np.stack([np.abs(cross), cross + (kept_shares - shares).sum(axis=1)])


def _bound(parts: list[Path]) -> float:
    """Bytes a pair; prints the entropies it is made of."""
    tables = [_given(path) for path in parts]
    k = tables[0]["k"][0].as_py()
    ids = np.concatenate([_values(table, "topk_ids") for table in tables])
    codes = [encoded(_values(table, "topk_logprobs")).reshape(-1, k) for table in tables]
    steps = np.diff(np.concatenate(codes).astype(np.int32), axis=1, prepend=0)
    of_ids, of_steps = _entropy(ids), float(np.mean([_entropy(steps[:, r]) for r in range(k)]))
    print(f"entropy of {len(np.unique(ids)):,} ids {of_ids:.2f} bits, of steps {of_steps:.2f} bits")
    return (of_ids + of_steps) / 8


def _entropy(values: Arrays) -> float:
    """Of the values' frequencies, in bits."""
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(shares * np.log2(shares)).sum())


def _values(table: pa.Table, name: str) -> Arrays:
    values: Arrays = table.column(name).combine_chunks().flatten().to_numpy()
    return values


if __name__ == "__main__":
    main()
