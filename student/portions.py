"""A part of a stage's rows as an endless sequence, of which each epoch takes the next stretch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from student.batches import Indices, seed_of


class Portion:
    """Passes over some rows, one after another, each of them shuffled by a seed of its own.

    A pass holds every row once; with `sample_ids` every source once, with one of its rows: the next
    of them at every pass, from one that its id and the seed decide.
    """

    def __init__(self, rows: Indices, seed: int, sample_ids: pa.StringArray | None = None) -> None:
        self._seed = seed
        self._rows: Callable[[Indices, Indices], Indices] = lambda units, _: rows[units]
        self._length = len(rows)
        if sample_ids is not None:
            sources = Sources(rows, sample_ids, seed)
            self._rows, self._length = sources.rows, len(sources)

    def __len__(self) -> int:
        """Rows of a pass."""
        return self._length

    def take(self, first: int, count: int) -> Indices:
        """The rows at `count` places of the sequence from `first`, ascending."""
        passes = np.arange(first // self._length, (first + count) // self._length + 1)
        wanted = slice(first % self._length, first % self._length + count)
        units = np.concatenate([self._order(int(number)) for number in passes])[wanted]
        return np.sort(self._rows(units, np.repeat(passes, self._length)[wanted]))

    def _order(self, number: int) -> Indices:
        random = np.random.default_rng(seed_of(self._seed, number))
        return random.permutation(self._length)


class Sources:
    """The rows of each source, of which a pass takes one."""

    def __init__(self, rows: Indices, sample_ids: pa.StringArray, seed: int) -> None:
        encoded = sample_ids.dictionary_encode()
        of_row = encoded.indices.to_numpy()
        self._ordered = rows[np.argsort(of_row, kind="stable")]
        self._counts = np.bincount(of_row, minlength=len(encoded.dictionary))
        self._firsts = np.cumsum(self._counts) - self._counts
        ids = encoded.dictionary.to_pylist()
        self._begins = np.array([seed_of(seed, "target", id_) for id_ in ids], np.int64)

    def __len__(self) -> int:
        return len(self._counts)

    def rows(self, sources: Indices, passes: Indices) -> Indices:
        """The row that each of some sources, by number, gives to a pass."""
        turn = (self._begins[sources] % self._counts[sources] + passes) % self._counts[sources]
        return self._ordered[self._firsts[sources] + turn]
