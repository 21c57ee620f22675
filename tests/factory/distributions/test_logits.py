"""The mass beyond the stored tokens, and the precision they are stored in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.distributions.logits import nucleus, tail_logprob

FLOOR = np.log(-np.expm1(-1e-7))  # where the stored tokens hold all of the mass


def log_softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = np.asarray(logits, np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def top(logprobs: npt.NDArray[np.float64], k: int) -> tuple[npt.NDArray[np.float32], float]:
    """The k highest in float32, and the log of the rest's mass, summed in float64 without them."""
    ordered = np.sort(logprobs)[::-1]
    with np.errstate(divide="ignore"):
        rest = np.log(np.exp(ordered[k:]).sum())
    return ordered[None, :k].astype(np.float32), float(rest)


UNIFORM = np.zeros(1000)
PEAKED = np.concatenate([[40.0], np.zeros(999)])
STEEP = -np.arange(1000.0)
FLAT_TAIL = np.concatenate([np.full(16, 5.0), np.zeros(150_000)])
MASKED = np.concatenate([np.zeros(3), np.full(997, -1e9)])


@pytest.mark.parametrize(
    ("logits", "k"),
    [
        (UNIFORM, 1),
        (UNIFORM, 16),
        (UNIFORM, 999),
        (FLAT_TAIL, 16),
        (FLAT_TAIL, 1),
        (STEEP, 1),
        (STEEP, 4),
        (STEEP, 8),
        (np.array([0.0, 0.0]), 1),
    ],
)
def test_tail_is_the_mass_of_the_rest(logits: npt.NDArray[np.float64], k: int) -> None:
    stored, rest = top(log_softmax(logits), k)
    [tail] = tail_logprob(stored)
    assert tail.dtype == np.float32
    # What float32 leaves uncertain is the mass itself: k values of a relative error of 2^-24.
    assert np.exp(float(tail)) == pytest.approx(np.exp(rest), abs=1e-6)
    assert float(tail) == pytest.approx(rest, abs=1e-6 / np.exp(rest))


@pytest.mark.parametrize(
    ("logits", "k"),
    [(UNIFORM, 1000), (PEAKED, 1), (PEAKED, 16), (STEEP, 30), (MASKED, 3), (MASKED, 1000)],
)
def test_tail_stays_finite_where_nothing_is_left(logits: npt.NDArray[np.float64], k: int) -> None:
    stored, _ = top(log_softmax(logits), k)
    [tail] = tail_logprob(stored)
    assert np.isfinite(tail)
    assert FLOOR - 1e-3 <= tail <= -13.0


def test_one_hot() -> None:
    stored = np.array([[0.0, -np.inf, -np.inf], [0.0, -1e4, -65504.0]], np.float32)
    np.testing.assert_allclose(tail_logprob(stored), [FLOOR, FLOOR], rtol=1e-6)


def test_positions_do_not_touch_each_other() -> None:
    rng = np.random.default_rng(17)
    rows = np.sort(log_softmax(rng.normal(size=(50, 400)) * 4), axis=1)[:, :-9:-1]
    stored = rows.astype(np.float32)
    alone = np.concatenate([tail_logprob(row[None]) for row in stored])
    np.testing.assert_array_equal(tail_logprob(stored), alone)
    assert tail_logprob(stored[:0]).shape == (0,)


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-50, 50), min_size=2, max_size=40),
    data=st.data(),
)
def test_top_and_tail_are_one_distribution(logits: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(logits)))
    stored, _ = top(log_softmax(logits), k)
    tail = tail_logprob(stored)
    mass = np.exp(stored.astype(np.float64)).sum() + np.exp(tail.astype(np.float64)).sum()
    assert mass == pytest.approx(1.0, abs=1e-6 + 1e-7)


# Ragged positions


def test_ragged_positions_have_the_tails_they_have_alone() -> None:
    rng = np.random.default_rng(17)
    widths = rng.integers(1, 40, 60).astype(np.int32)
    rows = [top(log_softmax(rng.normal(size=50) * 3), int(width))[0][0] for width in widths]
    flat = tail_logprob(np.concatenate(rows), widths)
    assert flat.dtype == np.float32
    alone = np.concatenate([tail_logprob(row[None]) for row in rows])
    np.testing.assert_allclose(np.exp(flat), np.exp(alone), atol=1e-12)
    assert tail_logprob(np.zeros(0, np.float32), np.zeros(0, np.int32)).shape == (0,)


def test_ragged_positions_that_hold_everything_have_a_finite_tail() -> None:
    """One draw of a one-hot distribution, a few that hold all but 1e-9, a sum past 1."""
    logprobs = np.array([0.0, np.log(0.5), np.log(0.5), 1e-7, -1e9, -np.inf], np.float32)
    tails = tail_logprob(logprobs, np.array([1, 2, 3], np.int32))
    np.testing.assert_allclose(tails, [FLOOR] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("p", "widths"),
    [
        (1e-9, [1, 1, 1]),
        (0.4, [1, 1, 2]),
        (0.499, [1, 1, 2]),
        (0.501, [2, 1, 3]),
        (0.874, [3, 1, 4]),
        (0.9, [4, 1, 4]),  # never reached: all that there is
        (0.999999, [4, 4, 4]),
    ],
)
def test_the_nucleus_is_the_fewest_that_reach_the_mass(p: float, widths: list[int]) -> None:
    probabilities = [[0.5, 0.25, 0.125, 0.0625], [0.96, 0.01, 0.01, 0.005], [0.25] * 3 + [0.2]]
    logprobs = np.log(probabilities).astype(np.float32)
    ids = np.arange(12, dtype=np.int32).reshape(3, 4)
    found, kept_ids, kept = nucleus(ids, logprobs, p)
    assert found.tolist() == widths
    held = [(i, j) for i, width in enumerate(widths) for j in range(width)]
    assert kept_ids.tolist() == [ids[place] for place in held]
    assert kept.tolist() == [logprobs[place] for place in held]
    assert [found.dtype, kept_ids.dtype, kept.dtype] == [np.int32, np.int32, np.float32]


@settings(deadline=None)
@given(
    n=st.integers(0, 5),
    k=st.integers(1, 30),
    p=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_a_nucleus_and_its_tail_are_one_distribution(n: int, k: int, p: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(n, 30)) * 3
    logprobs = -np.sort(-log_softmax(logits), axis=1)[:, :k].astype(np.float32)
    widths, _, kept = nucleus(np.zeros((n, k), np.int32), logprobs, p)
    ends = np.cumsum(widths)
    for first, last, tail in zip(ends - widths, ends, tail_logprob(kept, widths), strict=True):
        masses = np.exp(kept[first:last].astype(np.float64))
        assert masses.sum() >= p or last - first == k
        assert masses[:-1].sum() < p
        assert masses.sum() + np.exp(float(tail)) == pytest.approx(1.0, abs=2e-6)
