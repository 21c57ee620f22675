"""Lists of most probable tokens that somebody else made: whether they are what they claim to be.

Everything is flat: n positions, one after the other over many rows, and m entries in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from factory.distributions.logits import LEAST_TAIL, tail_logprob
from factory.schemas import LOGITS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# What storing may have moved: the float16 grid moves a log-probability of -16 by 0.008 nats.
NEAR = 0.05
MASS = 0.01
FLAT = ("widths", "topk_ids", "token_ids", "topk_logprobs", "token_logprobs")


@dataclass(frozen=True, slots=True)
class TopLists:
    """Lists as they were given.

    Attributes:
        widths: [n], entries of each position, at least 1.
        ids, logprobs: [m], position by position; log-probabilities are natural.
        token_ids, token_logprobs: [n], the realised tokens.
        tails: [n], log of the mass outside each list; NaN where none was given.
    """

    widths: Ints
    ids: Ints
    logprobs: Floats
    token_ids: Ints
    token_logprobs: Floats
    tails: Floats

    @classmethod
    def of(cls, rows: pa.Table) -> TopLists:
        """The lists of rows that all have `widths`, `topk_ids` and `topk_logprobs`, flat."""
        flat = {name: _flat(rows[name]) for name in FLAT}
        told = _flat(pc.fill_null(rows["tail_logprob"], []))
        tails = np.full(len(flat["widths"]), np.nan)
        given = pc.is_valid(rows["tail_logprob"]).to_numpy()
        tails[np.repeat(given, pc.list_value_length(rows["widths"]).to_numpy())] = told
        ids = (flat[name].astype(np.int64) for name in FLAT[:3])
        widths, top_ids, token_ids = ids
        return cls(widths, top_ids, flat["topk_logprobs"], token_ids, flat["token_logprobs"], tails)

    @property
    def starts(self) -> Ints:
        """[n], where each position's entries begin."""
        starts: Ints = np.cumsum(self.widths) - self.widths
        return starts

    @property
    def places(self) -> Ints:
        """[m], the position of each entry."""
        return np.repeat(np.arange(len(self.widths)), self.widths)


Fault = tuple[int, float, str]  # position, the value there, and what is wrong with it


def first_fault(lists: TopLists) -> Fault | None:
    """The first position, in the order of rows, that cannot be a distribution of its token."""
    if not len(lists.widths):
        return None
    found = [fault for check in CHECKS if (fault := check(lists))]
    return min(found, default=None)


def logits_rows(rows: pa.Table, lists: TopLists, k: int | None) -> pa.Table:
    """Rows of `schemas.LOGITS`; `k` None keeps the widths. A tail not given is computed.

    Log-probabilities a hair above 0, as rounding leaves them, become 0.
    """
    mine = tail_logprob(lists.logprobs.astype(np.float32), lists.widths.astype(np.int32))
    tails = np.where(np.isnan(lists.tails), mine, np.clip(lists.tails, np.log(LEAST_TAIL), 0))
    places = rows["token_ids"].combine_chunks().offsets
    columns: dict[str, pa.Array] = {
        **{name: rows[name] for name in ("sample_id", "prompt_hash", "rank", "token_ids")},
        "origin": pa.array(["candidate"] * len(rows)),
        "n_tokens": pc.list_value_length(rows["token_ids"]),
        "k": None if k is None else pa.array([k] * len(rows)),
        "widths": rows["widths"] if k is None else None,
        "token_logprobs": _at_most_0(rows["token_logprobs"]),
        "topk_ids": rows["topk_ids"],
        "topk_logprobs": _at_most_0(rows["topk_logprobs"]),
        "tail_logprob": pa.ListArray.from_arrays(places, pa.array(tails)),
    }
    filled = [
        pa.nulls(len(rows), field.type)
        if columns.get(field.name) is None
        else columns[field.name].cast(field.type)
        for field in LOGITS
    ]
    return pa.table(filled, schema=LOGITS)


def _flat(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = column.combine_chunks().flatten().to_numpy()
    return values


def _at_most_0(column: pa.ChunkedArray) -> pa.Array:
    lists = column.combine_chunks()
    return pa.ListArray.from_arrays(lists.offsets, pc.min_element_wise(lists.values, 0.0))


def _ascending(lists: TopLists) -> Fault | None:
    same = lists.places[1:] == lists.places[:-1]
    return _first(lists, same & (lists.logprobs[1:] > lists.logprobs[:-1]), "topk_logprobs")


def _twice(lists: TopLists) -> Fault | None:
    order = np.lexsort((lists.ids, lists.places))
    places, ids = lists.places[order], lists.ids[order]
    again = np.flatnonzero((places[1:] == places[:-1]) & (ids[1:] == ids[:-1]))
    if not len(again):
        return None
    return int(places[again[0]]), float(ids[again[0]]), "stands twice in topk_ids: keep one of them"


def _too_heavy(lists: TopLists) -> Fault | None:
    mass = np.add.reduceat(np.exp(lists.logprobs), lists.starts)
    heavy = np.flatnonzero(mass > 1 + MASS)
    if not len(heavy):
        return None
    remedy = (
        "is the mass of topk_logprobs, more than 1: give natural logarithms of probabilities over "
        "the full vocabulary"
    )
    return int(heavy[0]), round(float(mass[heavy[0]]), 4), remedy


def _unbalanced(lists: TopLists) -> Fault | None:
    mass = np.add.reduceat(np.exp(lists.logprobs), lists.starts) + np.exp(lists.tails)
    off = np.flatnonzero(np.abs(mass - 1) > MASS)  # NaN is not
    if not len(off):
        return None
    remedy = "is the mass of topk_logprobs and tail_logprob together, not 1: leave the tail out"
    return int(off[0]), round(float(mass[off[0]]), 4), remedy


def _of_another_token(lists: TopLists) -> Fault | None:
    """A list moved by a position has its token's log-probability elsewhere."""
    places = lists.places
    own = lists.ids == lists.token_ids[places]
    differs = own & (np.abs(lists.logprobs - lists.token_logprobs[places]) > NEAR)
    held = np.logical_or.reduceat(own, lists.starts)
    last = lists.logprobs[lists.starts + lists.widths - 1]
    missing = ~held & (lists.token_logprobs > last + NEAR)
    wrong = np.flatnonzero(np.logical_or.reduceat(differs, lists.starts) | missing)
    if not len(wrong):
        return None
    remedy = (
        "is the token's log-probability, which its list of the most probable tokens contradicts: "
        "are the lists a position off?"
    )
    return int(wrong[0]), round(float(lists.token_logprobs[wrong[0]]), 4), remedy


def _first(lists: TopLists, wrong: npt.NDArray[np.bool_], name: str) -> Fault | None:
    found = np.flatnonzero(wrong)
    if not len(found):
        return None
    at = int(found[0]) + 1
    remedy = f"comes after a smaller value in {name}: sort each position, most probable first"
    return int(lists.places[at]), round(float(lists.logprobs[at]), 4), remedy


CHECKS: tuple[Callable[[TopLists], Fault | None], ...] = (
    _ascending,
    _twice,
    _too_heavy,
    _unbalanced,
    _of_another_token,
)
