"""How precisely distributions are stored, and what becomes of them on the way back."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.distributions.precision import decoded, encoded, restored, stored
from factory.query import catalog
from factory.schemas import LOGITS, STORED_LOGITS
from factory.shards import write_part
from tests.runs import add_samples, add_shard, make_run

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
PRECISIONS = ("exact", "half", "compact")
SHARES = st.floats(-1e5, 0, width=32) | st.floats(-12, 0, width=32)


def spread(size: int) -> list[float]:
    """Log-probabilities of a whole distribution, most probable first."""
    logits = np.random.default_rng(4).normal(0, 4, size)
    exact = np.sort(logits - np.logaddexp.reduce(logits))[::-1]
    return [float(np.float32(value)) for value in exact]


def row(
    positions: list[tuple[list[int], list[float]]], k: int | None = None, **more: Any
) -> dict[str, Any]:
    """A row of `schemas.LOGITS`; `k` None keeps the widths. The realised token is the first."""
    widths = [len(ids) for ids, _ in positions]
    return {
        "sample_id": "a",
        "prompt_hash": 1,
        "origin": "candidate",
        "rank": 0,
        "n_tokens": len(positions),
        "k": k,
        "widths": None if k else widths,
        "token_ids": [ids[0] for ids, _ in positions],
        "token_logprobs": [logprobs[0] for _, logprobs in positions],
        "topk_ids": list(itertools.chain(*(ids for ids, _ in positions))),
        "topk_logprobs": list(itertools.chain(*(logprobs for _, logprobs in positions))),
        "tail_logprob": [-2.7182817 for _ in positions],
        **more,
    }


ADVERSARIAL = {
    "one-hot": row([([7, 9], [0.0, -np.inf]), ([9, 7], [-1e-8, -1e9])], k=2),
    "uniform": row([(list(range(50, 0, -1)), [float(-np.log(50))] * 50)], k=50),
    "denormal": row([([1, 2, 3], [-1e-7, -103.2789, -745.1])], k=3),
    "very low": row([([3, 2, 1], [-1e4, -44_000.0, -3e38])], k=3),
    "ties": row([([9, 4, 8, 1], [-1.0, -1.0, -2.0, -2.0])] * 3, k=4),
    "k = 1": row([([5], [-0.25]), ([2], [-9.0])], k=1),
    "k = vocabulary": row(
        [(np.random.default_rng(3).permutation(999).tolist(), spread(999))],
        k=999,
    ),
    "many ids": row([([262_145, 131_073, 300_000, 12], [-0.5, -1.5, -8.1, -8.2])], k=4),
    "ragged": row([([5, 4], [-0.5, -1.0]), ([6], [-0.01]), ([9, 8, 7], [-8.0, -8.0, -8.1])]),
    "sampled": row(
        [([5, 4], [-0.5, -1.0]), ([9, 8, 7], [-7.9, -8.0, -8.1])],
        counts=[31, 19, 1, 30, 19],
        draws=50,
    ),
}  # fmt: skip


def there_and_back(rows: list[dict[str, Any]], precision: str, folder: Path) -> pa.Table:
    """What `restored` makes of a written part."""
    run = make_run(folder / "run")
    table = stored(pa.Table.from_pylist(rows, schema=LOGITS), precision)
    path = run.path("logits", "00000.parquet")
    write_part(run, path, "logits", [table], STORED_LOGITS, {})
    return restored(pq.read_table(path).replace_schema_metadata())


def positions(table: pa.Table, name: str) -> list[list[Any]]:
    """A flat column of one row, cut into its positions."""
    [found] = table.to_pylist()
    widths = found["widths"] or [found["k"]] * found["n_tokens"]
    cuts = np.cumsum([0, *widths])
    return [found[name][a:b] for a, b in itertools.pairwise(cuts)]


def bound(given_: Floats, precision: str) -> tuple[Doubles, Doubles]:
    """The least and the greatest log-probability that may come back, in float64."""
    logs = given_.astype(np.float64)
    if precision == "exact":
        return logs, logs
    if precision == "half":
        logs = np.maximum(logs, -1e9)
        half = np.maximum(np.abs(logs) * 2.0**-11, 2.0**-25)
        return np.maximum(logs - half, -65504.0), np.maximum(logs + half, -65504.0)
    logs = np.maximum(logs, -1e9)
    shares = np.exp(logs)
    step = 2.0**-12 + 1e-7
    ratio = np.log(2) / 2 + 1e-6 * np.maximum(1, np.abs(logs))
    fine = shares >= 3 / 2048
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where(fine, np.log(shares - step), logs - ratio)
        high = np.where(fine, np.log(shares + step), logs + ratio)
    return np.maximum(low, -44_006.0), np.maximum(high, -44_005.0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_rows_come_back_within_the_bound(
    name: str, precision: str, tmp_path: Path
) -> None:
    given_ = pa.Table.from_pylist([ADVERSARIAL[name]], schema=LOGITS)
    back = there_and_back([ADVERSARIAL[name]], precision, tmp_path)
    assert back.schema.equals(LOGITS)
    moving = {"topk_ids", "topk_logprobs", "counts", "token_logprobs"}
    fixed = [column for column in LOGITS.names if column not in moving]
    assert back.select(fixed).to_pylist() == given_.select(fixed).to_pylist()
    low, high = bound(np.array(given_["token_logprobs"][0].as_py(), np.float32), "half")
    told = np.array(back["token_logprobs"][0].as_py())
    if precision == "exact":
        assert back["token_logprobs"].to_pylist() == given_["token_logprobs"].to_pylist()
    else:
        assert ((low <= told) & (told <= high)).all()
    names = ["topk_ids", "topk_logprobs", *(["counts"] if "counts" in ADVERSARIAL[name] else [])]
    before = zip(*(positions(given_, column) for column in names), strict=True)
    after = zip(*(positions(back, column) for column in names), strict=True)
    for old, new in zip(before, after, strict=True):
        values = np.array(new[1], np.float32)
        assert (np.diff(values) <= 0).all()
        of_id = {entry[0]: entry[1:] for entry in zip(*old, strict=True)}
        assert sorted(of_id) == sorted(new[0])
        low, high = bound(np.array([of_id[i][0] for i in new[0]], np.float32), precision)
        assert ((low <= values) & (values <= high)).all()
        if len(old) > 2:
            assert [of_id[i][1] for i in new[0]] == new[2]


@given(st.lists(SHARES, min_size=1, max_size=30))
def test_codes_keep_to_their_bound_and_their_order(values: list[float]) -> None:
    given_ = np.sort(np.array(values, np.float32))[::-1]
    back = decoded(encoded(given_))
    low, high = bound(given_, "compact")
    assert ((low <= back) & (back <= high)).all()
    assert (np.diff(back) <= 0).all()
    np.testing.assert_array_equal(encoded(back), encoded(given_))


@pytest.mark.parametrize(
    ("logprob", "code", "back"),
    [
        (0.0, 2048, 0.0),
        (1e-7, 2048, 0.0),
        (np.log(0.5), 1024, np.log(0.5)),
        (np.log(0.3), 614, np.log(614 / 2048)),
        (np.log(3 / 2048), 3, np.log(3 / 2048)),
        (np.log(2.6 / 2048), 3, np.log(3 / 2048)),
        (np.log(2.4 / 2048), 2, np.log(2 / 2048)),
        (np.log(1 / 2048), 2059, -11 * np.log(2)),
        (np.log(1e-6), 2068, -20 * np.log(2)),
        (-1e9, 65535, -63487 * np.log(2)),
        (-np.inf, 65535, -63487 * np.log(2)),
    ],
)
def test_code_of(logprob: float, code: int, back: float) -> None:
    [found] = encoded(np.array([logprob], np.float32))
    assert found == code
    assert decoded(np.array([code], np.uint16))[0] == np.float32(back)


def test_entries_of_one_code_stand_by_id_and_no_others_move() -> None:
    """Ranks 0 and 1 differ by less than a step, but stand in different positions' runs."""
    made = row([([9, 3, 8, 1], [-0.5, -8.0, -8.1, -8.2]), ([2, 1, 7, 6], [-8.0, -8.0, -9.0, -20])])
    found = stored(pa.Table.from_pylist([made, made], schema=LOGITS), "compact")
    assert found["topk_ids"].to_pylist() == [[9, 1, 3, 8, 1, 2, 7, 6]] * 2
    assert found["topk_codes"].to_pylist() == [[1242, 2060, 2060, 2061, 2077]] * 2
    assert found["topk_runs"].to_pylist() == [[1, 3, 2, 1, 1]] * 2
    assert found["topk_logprobs"].null_count == 2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_all_shapes_share_a_table(precision: str, tmp_path: Path) -> None:
    back = there_and_back(list(ADVERSARIAL.values()), precision, tmp_path)
    for index, (name, one) in enumerate(ADVERSARIAL.items()):
        alone = there_and_back([one], precision, tmp_path / name)
        assert back.slice(index, 1).to_pylist() == alone.to_pylist()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_rows_and_slices_are_stored_too(precision: str) -> None:
    whole = pa.Table.from_pylist(list(ADVERSARIAL.values()), schema=LOGITS)
    assert restored(stored(whole.slice(0, 0), precision)).equals(whole.slice(0, 0))
    sliced = stored(whole.slice(4, 3), precision)
    assert sliced.to_pylist() == stored(whole, precision).slice(4, 3).to_pylist()
    assert restored(sliced).to_pylist() == restored(stored(whole, precision)).to_pylist()[4:7]


def test_many_rows_are_as_many_few() -> None:
    rows = [one for _ in range(30) for one in ADVERSARIAL.values()]
    table = pa.Table.from_pylist(rows, schema=LOGITS)
    few = stored(table.slice(0, len(ADVERSARIAL)), "compact").to_pylist()
    assert stored(table, "compact").to_pylist() == few * 30


def test_long_rows_go_into_small_row_groups(tmp_path: Path) -> None:
    """Of 1.6 MB each, so that 32 MiB hold 20 at most."""
    long = row([(list(range(100_000)), [-8.0] * 100_000)] * 2, k=100_000)
    run = make_run(tmp_path / "run")
    path = run.path("logits", "00000.parquet")
    table = pa.Table.from_pylist([long], schema=LOGITS)
    write_part(run, path, "logits", [pa.concat_tables([table] * 50)], LOGITS, {})
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert (sum(groups), max(groups)) == (50, 20)


def test_the_view_reads_what_restored_reads(tmp_path: Path) -> None:
    """Of every precision, in one run, and of every code there is."""
    codes = np.arange(1, 65536, dtype=np.uint16)
    every = row([([0], [0.0])] * len(codes), k=1) | {"topk_logprobs": None}
    every |= {"topk_codes": codes, "topk_runs": [1] * len(codes)}
    table = pa.Table.from_pylist([every], schema=STORED_LOGITS)
    for precision in PRECISIONS:
        rows = pa.Table.from_pylist(list(ADVERSARIAL.values()), schema=LOGITS)
        table = pa.concat_tables([table, stored(rows, precision)])
    ids = [f"s{index}" for index in range(len(table))]
    table = table.set_column(0, "sample_id", pa.array(ids))
    run = make_run(tmp_path / "run")
    add_samples(run, [{"sample_id": i, "source": i} for i in ids])
    distributions = [made | {"prompt_hash": 1} for made in table.to_pylist()]
    add_shard(run, 0, [{"sample_id": i, "text": i} for i in ids], distributions)
    columns = ", ".join(LOGITS.names)
    with catalog.connect(run) as connection:
        seen = connection.sql(f"SELECT {columns} FROM logits ORDER BY sample_id[2:]::INTEGER")
        assert seen.to_arrow_table().to_pylist() == restored(table).to_pylist()


# --- half and exact ------------------------------------------------------------------------------


def after(logprobs: Floats, precision: str) -> Floats:
    """What is left of the top's log-probabilities of one row."""
    made: dict[str, Any] = {"token_logprobs": logprobs.ravel(), "topk_logprobs": logprobs.ravel()}
    table = stored(pa.Table.from_pylist([made], schema=LOGITS), precision)
    told, top = (table[name].combine_chunks().values.to_numpy() for name in made)
    np.testing.assert_array_equal(told, top)
    rounded: Floats = top.reshape(logprobs.shape)
    return rounded


@given(st.lists(st.floats(-1e5, 0, width=32), min_size=1, max_size=30))
def test_half_is_the_float16_grid(values: list[float]) -> None:
    given_ = np.array(values, np.float32)
    rounded = after(given_, "half")
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded, rounded.astype(np.float16).astype(np.float32))
    assert np.isfinite(rounded).all()
    kept = given_ >= -65504
    # Half a step: relative 2^-11 among normal numbers, 2^-25 below them.
    bound = np.maximum(np.abs(given_[kept]) * 2.0**-11, 2.0**-25)
    assert (np.abs(rounded[kept] - given_[kept]) <= bound).all()
    assert (rounded[~kept] == -65504).all()
    assert (rounded <= 0).all()


@pytest.mark.parametrize(
    ("value", "half"),
    [
        (0.0, 0.0),
        (-1.0, -1.0),
        (-0.1, -0.0999755859375),
        (-8.001, -8.0),
        (-np.inf, -65504.0),
        (-1e9, -65504.0),
    ],
)
def test_half_of(value: float, half: float) -> None:
    assert after(np.array([value], np.float32), "half")[0] == half


def test_exact_changes_nothing() -> None:
    values = np.array([[-0.1, -1e9], [-np.inf, 0.0]], np.float32)
    np.testing.assert_array_equal(after(values, "exact"), values)


def test_the_stated_bounds_of_half() -> None:
    """Those of the docstring: 4.9e-4 nats above 1/e, 3.9e-3 nats at −8."""
    likely = np.linspace(-1, 0, 100_001, dtype=np.float32)
    assert np.abs(after(likely, "half") - likely).max() <= 4.9e-4
    near = np.linspace(-8, -7.9, 10_001, dtype=np.float32)
    assert np.abs(after(near, "half") - near).max() <= 3.91e-3
