"""Distributions to measure the cache on: a run's own, or drawn from a pinned generator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from factory.distributions.precision import restored
from factory.records import RunDirectory
from factory.schemas import LOGITS

Array = npt.NDArray[np.float64]
PART = 2048  # rows, as many as a shard has by default
TOKENS = 16
VOCABULARY = 150_000
POOL = 1024  # ids drawn for a position; all others have no mass there
BATCH = 1024  # positions drawn at a time


def of_run(folder: Path) -> Iterator[pa.Table]:
    """The parts of a run made with `precision: exact`: rows of `schemas.LOGITS`."""
    run = RunDirectory(folder)
    for record in run.files("logits"):
        yield restored(pq.read_table(run.path(record["path"])).replace_schema_metadata())


def drawn(rows: int, k: int, shuffled: bool, seed: int = 17) -> Iterator[pa.Table]:
    """Parts of rows of 16 greedy tokens over 150,000 ids: rows of `schemas.LOGITS`.

    Ids follow Zipf and Mandelbrot: the id of popularity rank r has a share of 1 / (r + 10). They
    are numbered like a byte-pair tokenizer's, roughly by popularity: by log(r + 1) with normal
    noise of 0.5; or else at random (`shuffled`). A position draws 1,024 ids by popularity, of which
    doubles are dropped, and the logits of the others are Gumbel variables times a scale of its
    own, log-normal around 2 with a deviation of 0.3.
    """
    random = np.random.default_rng(seed)
    places = np.arange(VOCABULARY)
    order = random.normal(0, 1, VOCABULARY) + (0 if shuffled else 2 * np.log(places + 1))
    numbered = np.empty(VOCABULARY, np.int32)
    numbered[np.argsort(order)] = places
    shares = np.cumsum(1 / (places + 10.0))
    for first in range(0, rows, PART):
        size = min(PART, rows - first)
        batches = (_positions(random, shares, k) for _ in range(size * TOKENS // BATCH))
        ids, logprobs, tails = (np.concatenate(part) for part in zip(*batches, strict=True))
        yield _table(first, size, numbered[ids], logprobs.astype(np.float32), tails)


def _positions(
    random: np.random.Generator, shares: Array, k: int
) -> tuple[npt.NDArray[np.int64], Array, Array]:
    """Popularity ranks and log-probabilities [n, k], most probable first, and the tails [n]."""
    pool = np.searchsorted(shares, random.uniform(0, shares[-1], (BATCH, POOL)))
    pool.sort(axis=1)
    scale = random.lognormal(np.log(2), 0.3, (BATCH, 1))
    logits = random.gumbel(size=(BATCH, POOL)) * scale
    logits[:, 1:][pool[:, 1:] == pool[:, :-1]] = -np.inf
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    order = np.argsort(-logprobs, axis=1)
    ranked = np.take_along_axis(logprobs, order, axis=1)
    tails = np.logaddexp.reduce(ranked[:, k:], axis=1)
    return np.take_along_axis(pool, order, axis=1)[:, :k], ranked[:, :k], tails


def _table(
    first: int,
    rows: int,
    ids: npt.NDArray[np.int32],
    logprobs: npt.NDArray[np.float32],
    tails: Array,
) -> pa.Table:
    k = ids.shape[1]

    def lists(values: npt.NDArray[np.generic], each: int) -> pa.ListArray:
        offsets = np.arange(0, rows * each + 1, each, dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))

    columns = {
        "sample_id": [
            hashlib.sha256(b"%d" % (first + row)).hexdigest()[:20] for row in range(rows)
        ],
        "prompt_hash": np.random.default_rng(first).integers(-(2**63), 2**63, rows),
        "origin": ["candidate"] * rows,
        "rank": np.zeros(rows, np.int32),
        "n_tokens": np.full(rows, TOKENS, np.int32),
        "k": np.full(rows, k, np.int32),
        "token_ids": lists(ids[:, 0], TOKENS),
        "token_logprobs": lists(logprobs[:, 0], TOKENS),
        "topk_ids": lists(ids, TOKENS * k),
        "topk_logprobs": lists(logprobs, TOKENS * k),
        "tail_logprob": lists(tails.astype(np.float32), TOKENS),
    }
    return pa.table(
        [columns.get(field.name, pa.nulls(rows, field.type)) for field in LOGITS], schema=LOGITS
    )
