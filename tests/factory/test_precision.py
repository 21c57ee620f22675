"""How precisely log-probabilities are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.precision import stored
from factory.schemas import LOGITS


def after(logprobs: npt.NDArray[np.float32], precision: str) -> npt.NDArray[np.float32]:
    """What is left of the top's log-probabilities of one row."""
    row: dict[str, Any] = {"token_logprobs": logprobs.ravel(), "topk_logprobs": logprobs.ravel()}
    table = stored(pa.Table.from_pylist([row], schema=LOGITS), precision)
    assert table.schema.equals(LOGITS)
    told, top = (table[name].combine_chunks().values.to_numpy() for name in row)
    np.testing.assert_array_equal(told, top)
    return top.reshape(logprobs.shape)


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
