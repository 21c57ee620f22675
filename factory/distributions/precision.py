"""How precisely distributions are stored: float32, the float16 grid, or fixed point."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from factory.schemas import LOGITS, STORED_LOGITS

UNIT = 2048
LAST = 65535
SLICE = 128  # rows that are rounded at a time: sorting many at once leaves the processor's caches
# The least code of a power of two is 2^-11; below the mean of that and 2 / UNIT, one is nearer.
FIRST_HALVING = 11
LN2 = float(np.log(2))
HALVINGS_BELOW = -(FIRST_HALVING - 0.5) * LN2

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Codes = npt.NDArray[np.uint16]


def stored(table: pa.Table, precision: str) -> pa.Table:
    """Rows of `schemas.LOGITS` as rows of `schemas.STORED_LOGITS`.

    `tail_logprob` stays float32, whatever the precision; and so does what is no log-probability.

    `exact` keeps float32. `half` rounds to the float16 grid: a relative error of at most 2^-11, so
    at most 4.9e-4 nats for a token of probability above 1/e, 3.9e-3 nats at -8.

    `compact` puts codes, see `encoded`, in the place of `topk_logprobs`: each once where several
    entries of a position have it, with their number in `topk_runs`. Such entries are told apart by
    nothing any more; they stand in the order of their ids, which takes less room. The realised
    tokens are on the float16 grid.
    """
    for field in list(STORED_LOGITS)[len(LOGITS) :]:
        table = table.append_column(field, pa.nulls(len(table), field.type))
    slices = [table.slice(first, SLICE) for first in range(0, max(1, len(table)), SLICE)]
    return pa.concat_tables(_stored(part, precision) for part in slices)


def restored(table: pa.Table) -> pa.Table:
    """Rows of `schemas.STORED_LOGITS`, in any precision, as rows of `schemas.LOGITS`.

    The view `logits` does the same in SQL, to the last bit.
    """
    told, ids = _lists(table, "topk_logprobs"), _lists(table, "topk_ids")
    codes, runs = (_lists(table, name).flatten().to_numpy() for name in ("topk_codes", "topk_runs"))
    coded = told.is_null().to_numpy(False)
    values = np.empty(len(ids.flatten()), np.float32)
    place = np.repeat(coded, _lengths(ids))
    values[place], values[~place] = np.repeat(decoded(codes), runs), told.flatten().to_numpy()
    return _put(table, "topk_logprobs", _like(ids, values)).select(LOGITS.names)


def encoded(logprobs: Floats) -> Codes:
    """Fixed-point codes, each for the probability nearest to what is given.

    A code up to 2048 is a probability in 2048ths; a code above it is the power 2^(2048 - code).
    So a probability of 3/2048 or more is off by at most 2^-12, and a smaller one by a factor of at
    most sqrt(2), which is 0.347 nats, down to the last code: what lies below -44,006 nats, minus
    infinity too, becomes -44,006.

    Steps even in probability, because the error of a KL divergence is the sum of errors in
    probability; even in log below, where those errors are smaller still.
    """
    logs = np.maximum(logprobs, np.float32(-1e5))
    shares = np.clip(np.rint(np.exp(logs) * UNIT), 2, UNIT)
    halvings = UNIT + np.maximum(np.rint(logs / -LN2), FIRST_HALVING)
    codes = np.where(logs >= HALVINGS_BELOW, shares, np.minimum(halvings, LAST))
    return codes.astype(np.uint16)


def decoded(codes: Codes) -> Floats:
    """Natural-log probabilities of codes; of 0, which is never written, that of 1."""
    return _TABLE[codes]


def _table() -> Floats:
    codes = np.arange(LAST + 1)
    shares = np.log(np.maximum(codes, 1) / UNIT)
    return np.where(codes <= UNIT, shares, (UNIT - codes) * LN2).astype(np.float32)


_TABLE = _table()


def _stored(table: pa.Table, precision: str) -> pa.Table:
    if precision == "compact":
        table = _coded(table)
    elif precision == "half":
        table = _put(table, "topk_logprobs", _halved(_lists(table, "topk_logprobs")))
    if precision != "exact":
        table = _put(table, "token_logprobs", _halved(_lists(table, "token_logprobs")))
    return table


def _coded(table: pa.Table) -> pa.Table:
    ids, counts = _lists(table, "topk_ids"), _lists(table, "counts")
    codes = encoded(_lists(table, "topk_logprobs").flatten().to_numpy())
    starts = (np.diff(_positions(table), prepend=-1) != 0) | (np.diff(codes, prepend=LAST) != 0)
    order = np.argsort(np.cumsum(starts) << 32 | ids.flatten().to_numpy())
    # An order that stays within rows leaves what is counted where it is.
    counted = np.repeat(counts.is_valid().to_numpy(False), _lengths(ids))
    places = (np.cumsum(counted) - 1)[order][counted]
    first = np.flatnonzero(starts)
    cuts = np.searchsorted(first, np.cumsum([0, *_lengths(ids)]))
    columns = {
        "topk_ids": _like(ids, ids.flatten().to_numpy()[order]),
        "counts": _like(counts, counts.flatten().to_numpy()[places]),
        "topk_codes": _cut(codes[first], cuts),
        "topk_runs": _cut(np.diff(first, append=len(codes)).astype(np.uint32), cuts),
        "topk_logprobs": pa.nulls(len(table), pa.list_(pa.float32())),
    }
    for name, column in columns.items():
        table = _put(table, name, column)
    return table


def _positions(table: pa.Table) -> npt.NDArray[np.int64]:
    """Of every entry of the table, the position it belongs to, counted through all rows."""
    lengths = table.column("n_tokens").to_numpy()
    widths = np.repeat(table.column("k").fill_null(0).to_numpy(), lengths)
    ragged = np.repeat(table.column("k").is_null().to_numpy(), lengths)
    widths[ragged] = _lists(table, "widths").flatten().to_numpy()
    return np.repeat(np.arange(len(widths)), widths)


def _halved(lists: pa.ListArray) -> pa.ListArray:
    """Each value on the float16 grid; what lies below its least becomes its least."""
    values = np.maximum(lists.flatten().to_numpy(), -65504.0)
    return _like(lists, values.astype(np.float16).astype(np.float32))


def _lists(table: pa.Table, name: str) -> pa.ListArray:
    return table.column(name).combine_chunks()


def _lengths(lists: pa.ListArray) -> npt.NDArray[np.int32]:
    lengths: npt.NDArray[np.int32] = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    return lengths


def _like(lists: pa.ListArray, values: npt.NDArray[Any]) -> pa.ListArray:
    """Other values in lists of the same lengths, NULL in the same places."""
    return _cut(values, np.cumsum([0, *_lengths(lists)]), lists.is_null())


def _cut(
    values: npt.NDArray[Any], cuts: npt.NDArray[np.int64], nulls: pa.BooleanArray | None = None
) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(cuts, pa.int32()), pa.array(values), mask=nulls)


def _put(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), column)
