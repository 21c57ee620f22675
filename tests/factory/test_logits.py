"""The mass beyond the stored tokens, and the precision they are stored in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.logits import tail_logprob

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
