"""Draws with replacement from full distributions: exact at the edges, unbiased, gathered."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engines import drawing
from factory.engines.base import Drawn
from factory.engines.drawing import distinct, draw, uniforms

LAST = 1.0 - 2.0**-53  # the largest point there is
NOTHING = -float("inf")


def logs(*rows: list[float]) -> torch.Tensor:
    """float32 log-probabilities of some distributions."""
    return torch.tensor(rows, dtype=torch.float64).log().float()


def points(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("probabilities", "at", "expected"),
    [
        ([0.5, 0.0, 0.25, 0.25], [0.0, 0.499, 0.501, 0.751, LAST], [0, 0, 2, 3, 3]),
        ([0.0, 1.0, 0.0], [0.0, 0.5, LAST], [1, 1, 1]),
        ([0.0, 0.0, 0.5, 0.5, 0.0, 0.0], [0.0, LAST], [2, 3]),
        ([1.0], [0.0, LAST], [0, 0]),
        ([0.25] * 4, [0.0, 0.25, 0.5, 0.75], [0, 1, 2, 3]),
    ],
)
def test_tokens_lie_end_to_end_and_nothing_takes_no_room(probabilities, at, expected) -> None:
    ids, logprobs = draw(logs(probabilities), points(at))
    assert ids.tolist() == [expected]
    assert (ids.dtype, logprobs.dtype) == (torch.int32, torch.float32)
    assert logprobs.tolist() == [logs(probabilities)[0, expected].tolist()]


@pytest.mark.parametrize("size", [3, 7, 33, 1000, 150_000])
def test_the_last_point_has_a_token_with_room(size: int) -> None:
    """Sums of float32 miss 1, above and below: the end of the last token is theirs, not ours."""
    logits = torch.randn(8, size, generator=torch.Generator().manual_seed(size)) * 3
    logits[:, -size // 3 :] = NOTHING
    ids, logprobs = draw(logits.log_softmax(-1), torch.full((8, 2), LAST, dtype=torch.float64))
    assert int(ids.max()) < size - size // 3
    assert bool(logprobs.isfinite().all())


def test_rows_are_drawn_apart_and_some_not_at_all(monkeypatch) -> None:
    logprobs = (torch.randn(40, 50, generator=torch.Generator().manual_seed(1)) * 2).log_softmax(-1)
    at = torch.from_numpy(uniforms((5, 0), 40, 9))
    whole, told = draw(logprobs, at)
    alone = [draw(logprobs[i : i + 1], at[i : i + 1])[0] for i in range(40)]
    assert torch.equal(whole, torch.cat(alone))
    monkeypatch.setattr(drawing, "DRAWN_VALUES", 150)
    assert torch.equal(draw(logprobs, at)[0], whole)
    at[::2] = -1
    some, of_some = draw(logprobs, at)
    assert torch.equal(some[1::2], whole[1::2])
    assert torch.equal(of_some[1::2], told[1::2])


def test_uniforms_hang_on_the_seed_and_the_position_alone() -> None:
    long, short = uniforms((17, 2), 30, 50), uniforms((17, 2), 4, 50)
    assert (long.shape, long.dtype) == ((30, 50), np.float64)
    np.testing.assert_array_equal(long[:4], short)
    assert 0.0 <= long.min() < long.max() < 1.0
    for other in ((17, 1), (18, 2), (2, 17)):
        assert not np.isin(uniforms(other, 30, 50), long).any()
    far = (1 << 63) - 1  # the largest seed there is
    assert uniforms((far, 0), 1, 3).shape == (1, 3)


@pytest.mark.parametrize("size", [5, 400, 131_073, 262_145, 300_000])
def test_counts_estimate_every_probability_without_bias(size: int) -> None:
    """χ² over buckets of equal ids; a right sampler fails one seed set in 10,000.

    Ids are cut into at most 32 runs: a vocabulary's end weighs as much as its beginning.
    """
    count = 40_000
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 2
    logprobs = logits.log_softmax(-1)[None]
    [ids] = draw(logprobs, torch.from_numpy(uniforms((size, 0), 1, count)))[0].numpy()
    buckets = np.minimum(np.arange(size) * 32 // size, 31)
    shares = np.bincount(buckets, logprobs[0].double().exp().numpy())
    seen = np.bincount(buckets[ids], minlength=len(shares))
    wanted = count * shares / shares.sum()
    there = wanted > 0
    distance = ((seen - wanted)[there] ** 2 / wanted[there]).sum()
    freedom = torch.tensor(there.sum() - 1.0, dtype=torch.float64)
    assert torch.special.gammaincc(freedom / 2, torch.tensor(distance / 2)) > 1e-4
    assert size < 300_000 or (ids > 262_143).sum() > 1000


def test_gathered_by_token_most_probable_first_equals_by_id() -> None:
    ids = np.array([[4, 1, 4, 4, 9], [7, 7, 7, 7, 7], [3, 2, 5, 2, 3]], np.int32)
    of = {4: -1.0, 1: -3.0, 9: -0.5, 7: -0.0, 3: -2.0, 2: -2.0, 5: -1.5}
    drawn = distinct(ids, np.vectorize(of.get)(ids).astype(np.float32))
    assert drawn.widths.tolist() == [3, 1, 3]
    assert drawn.ids.tolist() == [9, 4, 1, 7, 5, 2, 3]
    assert drawn.counts.tolist() == [1, 3, 1, 5, 1, 2, 2]
    assert drawn.logprobs.tolist() == [-0.5, -1.0, -3.0, 0.0, -1.5, -2.0, -2.0]
    assert drawn.draws == 5
    assert [array.dtype for array in parts(drawn)] == [np.int32] * 3 + [np.float32]
    rest = drawn.after(1)
    assert [array.tolist() for array in parts(rest)] == [
        [1, 3], [7, 5, 2, 3], [5, 1, 2, 2], [0.0, -1.5, -2.0, -2.0],
    ]  # fmt: skip
    assert (drawn.after(3).draws, len(drawn.after(3).ids)) == (0, 0)


def parts(drawn: Drawn) -> list[npt.NDArray[np.generic]]:
    return [drawn.widths, drawn.ids, drawn.counts, drawn.logprobs]


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 6), st.integers(1, 20), st.integers(1, 30))
def test_nothing_is_lost_in_gathering(seed: int, n: int, draws: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.log(rng.dirichlet(np.ones(size), n)).astype(np.float32)
    ids = rng.integers(0, size, (n, draws)).astype(np.int32)
    drawn = distinct(ids, np.take_along_axis(table, ids, axis=1))
    assert drawn.widths.sum() == len(drawn.ids) == len(drawn.counts) == len(drawn.logprobs)
    ends = np.cumsum(drawn.widths)
    for row, (first, last) in enumerate(zip(ends - drawn.widths, ends, strict=True)):
        own = slice(first, last)
        again = np.repeat(drawn.ids[own], drawn.counts[own])
        assert sorted(again) == sorted(ids[row])
        assert len(set(drawn.ids[own])) == last - first
        assert (np.diff(drawn.logprobs[own]) <= 0).all()
        assert (drawn.logprobs[own] == table[row, drawn.ids[own]]).all()
