"""Objectives against float64 oracles that hold the whole vocabulary."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student import logprobs
from student.objectives import (
    Drawn,
    Sparse,
    Teacher,
    Weights,
    combine,
    cross_entropy,
    forward_kl,
    per_token,
    predicted,
)

N, V, K = 7, 23, 5
BOTH = Weights({"ce": 0.5, "forward_kl": 0.5})


def case(k: int = K, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Sparse]:
    """Student logits, full teacher log-probabilities, and the teacher's stored top k."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, V, dtype=torch.float64, generator=generator, requires_grad=True)
    full = torch.randn(N, V, dtype=torch.float64, generator=generator).mul(2).log_softmax(-1)
    return logits, full, top(full, k)


def top(full: torch.Tensor, k: int) -> Sparse:
    """The k most probable tokens of full distributions, and what lies beyond."""
    found = full.topk(k)
    rest = full.scatter(-1, found.indices, -torch.inf).logsumexp(-1)
    return Sparse(found.indices, found.values, rest)


def narrowed(full: torch.Tensor, widths: list[int]) -> Sparse:
    """The top `widths[i]` of position i, filled up with entries without mass."""
    sparse = top(full, max(widths))
    kept = torch.arange(max(widths)) < torch.tensor(widths)[:, None]
    rows = [top(row[None], width).tail_logprob for row, width in zip(full, widths, strict=True)]
    return Sparse(
        torch.where(kept, sparse.ids, 0),
        sparse.logprobs.masked_fill(~kept, -torch.inf),
        torch.cat(rows),
    )


def drawn(full: torch.Tensor, draws: int, generator: torch.Generator) -> Drawn:
    """Draws with replacement, as shares of the whole vocabulary: what is not drawn has none."""
    ids = torch.multinomial(full.exp(), draws, replacement=True, generator=generator)
    counts = torch.zeros_like(full).scatter_add_(
        -1, ids, torch.ones_like(full[:, :1]).expand_as(ids)
    )
    every = torch.arange(full.shape[-1]).expand_as(full)
    return Drawn(every, counts / draws)


def all_true() -> torch.Tensor:
    return torch.ones(N, dtype=torch.bool)


def kl(logits: torch.Tensor, teacher: Teacher) -> torch.Tensor:
    targets = torch.zeros(len(logits), dtype=torch.long)
    return forward_kl(predicted(logits, targets, teacher), teacher)


def dense_bucket_kl(logits: torch.Tensor, teacher: Sparse) -> torch.Tensor:
    """The definition, with probabilities written out."""
    q = logits.softmax(-1).gather(-1, teacher.ids)
    p = teacher.logprobs.exp()
    a, b = p.sum(-1), q.sum(-1)
    return (p * (p / q).log()).sum(-1) + (1 - a) * ((1 - a) / (1 - b)).log()


def full_kl(logits: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    return (full.exp() * (full - logits.log_softmax(-1))).sum(-1)


def gradient(values: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(values.sum(), logits, retain_graph=True)[0]


def test_cross_entropy_is_that_of_torch():
    logits, _, _ = case()
    targets = torch.arange(N) % V
    for smoothing in (0.0, 0.1):
        wanted = torch.nn.functional.cross_entropy(
            logits, targets, reduction="none", label_smoothing=smoothing
        )
        student = predicted(logits, targets, None, average=smoothing > 0)
        torch.testing.assert_close(cross_entropy(student, smoothing), wanted)


def test_forward_kl_is_its_definition():
    logits, _, teacher = case()
    torch.testing.assert_close(kl(logits, teacher), dense_bucket_kl(logits, teacher))


@pytest.mark.parametrize("k", [1, K, V - 1])
def test_gradient_on_stored_tokens_is_that_of_the_full_kl(k: int):
    logits, full, teacher = case(k)
    got = gradient(kl(logits, teacher), logits)
    wanted = gradient(full_kl(logits, full), logits)
    at = teacher.ids
    torch.testing.assert_close(got.gather(-1, at), wanted.gather(-1, at), atol=1e-6, rtol=0)
    rest = torch.ones_like(full).scatter_(-1, at, 0)  # they share what the others' should sum to
    torch.testing.assert_close((got * rest).sum(-1), (wanted * rest).sum(-1), atol=1e-6, rtol=0)


@given(st.lists(st.integers(1, V - 1), min_size=N, max_size=N), st.integers(0, 99))
def test_gradient_is_exact_whatever_each_position_holds(widths: list[int], seed: int):
    logits, full, _ = case(seed=seed)
    ragged = narrowed(full, widths)
    wanted = gradient(full_kl(logits, full), logits)
    got = gradient(kl(logits, ragged), logits)
    for i, width in enumerate(widths):
        at = ragged.ids[i, :width]
        torch.testing.assert_close(got[i, at], wanted[i, at], atol=1e-6, rtol=0)


def test_what_fills_a_narrow_position_changes_nothing():
    """Fillers carry id 0: they must not count as mass that the student puts on stored tokens."""
    logits, full, _ = case()
    widths = [1, 2, 3, 4, 5, 2, 1]
    ragged = kl(logits, narrowed(full, widths))
    alone = [kl(logits[i : i + 1], top(full[i : i + 1], width)) for i, width in enumerate(widths)]
    torch.testing.assert_close(ragged, torch.cat(alone))
    torch.testing.assert_close(gradient(ragged, logits), gradient(torch.cat(alone), logits))


def test_gradient_is_that_of_finite_differences():
    logits, full, teacher = case()
    targets = torch.zeros(N, dtype=torch.long)
    draws = drawn(full, 8, torch.Generator().manual_seed(1))
    for stored in (teacher, draws):
        assert torch.autograd.gradcheck(lambda x, t=stored: kl(x, t), (logits,))
    smooth = lambda x: cross_entropy(predicted(x, targets, None, True), 0.1)  # noqa: E731
    assert torch.autograd.gradcheck(smooth, (logits,))


def test_whole_vocabulary_gives_the_full_kl():
    logits, full, teacher = case(k=V)
    stored = teacher._replace(tail_logprob=torch.full((N,), math.log(1e-7), dtype=torch.float64))
    wanted = full_kl(logits, full)
    for tail in (teacher, stored):
        values = kl(logits, tail)
        torch.testing.assert_close(values, wanted, atol=1e-5, rtol=0)
        should = logits.softmax(-1) - full.exp()
        torch.testing.assert_close(gradient(values, logits), should, atol=1e-6, rtol=0)


def test_kl_of_a_teacher_with_itself_is_zero():
    _, full, teacher = case()
    zero = torch.zeros(N, dtype=torch.float64)
    torch.testing.assert_close(kl(full, teacher), zero, atol=1e-9, rtol=0)


def test_draws_give_the_cross_entropy_with_their_shares():
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    teacher = Drawn(torch.tensor([[2, 0], [1, 0]]), torch.tensor([[0.75, 0.25], [1.0, 0.0]]))
    q = logits.log_softmax(-1)
    wanted = torch.stack([-0.75 * q[0, 2] - 0.25 * q[0, 0], -q[1, 1]])
    torch.testing.assert_close(kl(logits, teacher), wanted)


def test_draws_are_unbiased():
    """Mean gradient over 4,000 caches of 6 draws against the full KL's.

    A coordinate's standard error is √(p(1−p)/6/4000). Where p > 1e-3 (24 draws expected) each mean
    lies within 4.7 of them; that one of at most 161 does not has a chance below
    161 · 2.6e-6 = 4.2e-4 (normal tails, Bonferroni). The same measure sees the bias of a cache cut
    to its most frequent token.
    """
    logits, full, _ = case()
    repeats, draws, p = 4000, 6, full.exp()
    generator = torch.Generator().manual_seed(17)
    shares = torch.stack([drawn(full, draws, generator).shares for _ in range(repeats)])
    every = torch.arange(V).expand(repeats * N, V)
    wanted = (logits.softmax(-1) - p).detach()
    error = (p * (1 - p) / draws / repeats).sqrt()

    def worst(shares: torch.Tensor) -> float:
        many = logits.detach().repeat(repeats, 1).requires_grad_()
        got = gradient(kl(many, Drawn(every, shares.reshape(-1, V))), many).view(repeats, N, V)
        return float(((got.mean(0) - wanted).abs() / error)[p > 1e-3].max())

    assert worst(shares) < 4.7
    assert worst(torch.nn.functional.one_hot(shares.argmax(-1), V).double()) > 20


def test_values_of_draws_are_unbiased_too():
    """Mean value over 4,000 caches within 4.4 standard errors of Σ p·(−log q): 7 positions."""
    logits, full, _ = case(seed=2)
    generator = torch.Generator().manual_seed(18)
    wanted = -(full.exp() * logits.log_softmax(-1)).sum(-1).detach()
    with torch.no_grad():
        values = torch.stack([kl(logits, drawn(full, 6, generator)) for _ in range(4000)])
    error = values.std(0) / math.sqrt(4000)
    assert float(((values.mean(0) - wanted).abs() / error).max()) < 4.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tail", [-math.inf, math.log(1e-7), -100.0])
def test_one_hot_teachers_and_sure_students_stay_finite(dtype: torch.dtype, tail: float):
    logits = torch.full((2, V), -80.0, dtype=dtype)
    logits[:, 3] = 80.0
    logits.requires_grad_()
    one_hot = torch.full((2, K), -torch.inf)
    one_hot[0, 0] = 0.0
    one_hot[1, 1] = 0.0
    teacher = Sparse(torch.tensor([[3, 0, 1, 2, 4]] * 2), one_hot, torch.full((2,), tail))
    values = kl(logits, teacher)
    assert gradient(values, logits).isfinite().all()
    assert values[0].item() == pytest.approx(0, abs=1e-5)
    assert values[1].item() == pytest.approx(160, rel=0.01)


def test_one_hot_draws_and_sure_students_stay_finite():
    logits = torch.full((2, V), -80.0)
    logits[:, 3] = 80.0
    logits.requires_grad_()
    teacher = Drawn(torch.tensor([[3, 0], [4, 0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    values = kl(logits, teacher)
    assert gradient(values, logits).isfinite().all()
    assert values.tolist() == pytest.approx([0, 160])


def test_tokens_that_the_student_cannot_say_cost_nothing_where_the_teacher_never_does():
    """−inf among the student's logits, at fillers and at stored tokens without mass."""
    logits = torch.zeros(2, V)
    logits[:, :2] = -torch.inf
    logits.requires_grad_()
    teacher = Sparse(
        torch.tensor([[5, 1, 0], [6, 0, 0]]),
        torch.tensor([[-0.5, -torch.inf, -torch.inf], [-0.1, -torch.inf, -torch.inf]]),
        torch.log1p(-torch.tensor([-0.5, -0.1]).exp()),
    )
    shares = Drawn(teacher.ids, torch.tensor([[1.0, 0.0, 0.0]] * 2))
    for stored in (teacher, shares):
        values = kl(logits, stored)
        assert values.isfinite().all()
        assert gradient(values, logits).isfinite().all()


def test_masked_positions_are_zero_and_pass_no_gradient():
    logits, full, teacher = case()
    draws = drawn(full, 5, torch.Generator().manual_seed(1))
    mask = torch.tensor([True, False] * 3 + [False])
    targets = torch.where(mask, 4, -100)
    for stored in (teacher, draws):
        terms = per_token(logits, targets, stored, mask, BOTH)
        for values in terms.values():
            assert (values[~mask] == 0).all()
            assert (values[mask] > 0).all()
        assert (gradient(combine(terms, BOTH), logits)[~mask] == 0).all()
        nothing = per_token(logits, targets, stored, torch.zeros(N, dtype=torch.bool), BOTH)
        assert combine(nothing, BOTH).sum().item() == 0
        assert (gradient(combine(nothing, BOTH), logits) == 0).all()


def test_chunks_change_neither_values_nor_gradients(monkeypatch: pytest.MonkeyPatch):
    weights = Weights({"ce": 0.3, "forward_kl": 0.7}, label_smoothing=0.1)
    found = []
    for elements in (1 << 20, 2 * V):
        monkeypatch.setattr(logprobs, "CPU_CHUNK", elements)
        logits, _, teacher = case()
        terms = per_token(logits, torch.arange(N), teacher, all_true(), weights)
        found.append((*terms.values(), gradient(combine(terms, weights), logits)))
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=0, atol=1e-14)


def test_terms_without_weight_are_not_computed():
    logits, _, teacher = case()
    terms = per_token(
        logits, torch.arange(N), teacher, all_true(), Weights({"forward_kl": 1.0, "ce": 0.0})
    )
    assert list(terms) == ["forward_kl"]


def test_combine_weighs_each_term():
    terms = {"ce": torch.tensor([1.0, 2.0]), "forward_kl": torch.tensor([10.0, 20.0])}
    total = combine(terms, Weights({"ce": 0.25, "forward_kl": 0.5}))
    assert total.tolist() == [5.25, 10.5]


def test_forward_kl_without_a_teacher_is_refused():
    logits, _, _ = case()
    with pytest.raises(ValueError, match="teacher"):
        per_token(logits, torch.arange(N), None, all_true(), Weights({"forward_kl": 1.0}))


def test_smoothing_without_the_mean_is_refused():
    logits, _, _ = case()
    with pytest.raises(ValueError, match="mean"):
        cross_entropy(predicted(logits, torch.arange(N), None), 0.1)
