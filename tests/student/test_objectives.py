"""Objectives against float64 oracles that hold the whole vocabulary."""

from __future__ import annotations

import math

import pytest
import torch

from student import objectives
from student.objectives import Sparse, Weights, combine, cross_entropy, forward_kl, per_token

N, V, K = 7, 23, 5


def case(k: int = K, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Sparse]:
    """Student logits, full teacher log-probabilities, and the teacher's stored top k."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, V, dtype=torch.float64, generator=generator, requires_grad=True)
    full = torch.randn(N, V, dtype=torch.float64, generator=generator).mul(2).log_softmax(-1)
    top = full.topk(k)
    rest = full.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    return logits, full, Sparse(top.indices, top.values, rest)


def all_true() -> torch.Tensor:
    return torch.ones(N, dtype=torch.bool)


def dense_bucket_kl(logits: torch.Tensor, teacher: Sparse) -> torch.Tensor:
    """The definition, with probabilities written out."""
    q = logits.softmax(-1).gather(-1, teacher.ids)
    p = teacher.logprobs.exp()
    a, b = p.sum(-1), q.sum(-1)
    return (p * (p / q).log()).sum(-1) + (1 - a) * ((1 - a) / (1 - b)).log()


def test_cross_entropy_is_that_of_torch():
    logits, _, _ = case()
    targets = torch.arange(N) % V
    for smoothing in (0.0, 0.1):
        wanted = torch.nn.functional.cross_entropy(
            logits, targets, reduction="none", label_smoothing=smoothing
        )
        torch.testing.assert_close(cross_entropy(logits, targets, all_true(), smoothing), wanted)


def test_forward_kl_is_its_definition():
    logits, _, teacher = case()
    wanted = dense_bucket_kl(logits, teacher)
    torch.testing.assert_close(forward_kl(logits, teacher, all_true()), wanted)


def test_gradient_on_stored_tokens_is_that_of_the_full_kl():
    logits, full, teacher = case()
    forward_kl(logits, teacher, all_true()).sum().backward()
    assert logits.grad is not None
    wanted = (logits.softmax(-1) - full.exp()).detach()
    stored = logits.grad.gather(-1, teacher.ids)
    torch.testing.assert_close(stored, wanted.gather(-1, teacher.ids), atol=1e-6, rtol=0)


def test_gradient_is_that_of_finite_differences():
    logits, _, teacher = case()
    targets = torch.zeros(N, dtype=torch.long)
    assert torch.autograd.gradcheck(lambda x: forward_kl(x, teacher, all_true()), (logits,))
    smooth = (lambda x: cross_entropy(x, targets, all_true(), 0.1), (logits,))
    assert torch.autograd.gradcheck(*smooth)


def test_whole_vocabulary_gives_the_full_kl():
    logits, full, teacher = case(k=V)
    stored = teacher._replace(tail_logprob=torch.full((N,), math.log(1e-7), dtype=torch.float64))
    wanted = (full.exp() * (full - logits.log_softmax(-1))).sum(-1)
    for tail in (teacher, stored):
        values = forward_kl(logits, tail, all_true())
        torch.testing.assert_close(values, wanted, atol=1e-5, rtol=0)


def test_kl_of_a_teacher_with_itself_is_zero():
    _, full, teacher = case()
    zero = torch.zeros(N, dtype=torch.float64)
    torch.testing.assert_close(forward_kl(full, teacher, all_true()), zero, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_hot_teachers_and_sure_students_stay_finite(dtype: torch.dtype):
    logits = torch.full((2, V), -80.0, dtype=dtype)
    logits[:, 3] = 80.0
    logits.requires_grad_()
    one_hot = torch.full((2, K), -torch.inf)
    one_hot[0, 0] = 0.0
    one_hot[1, 1] = 0.0
    teacher = Sparse(torch.tensor([[3, 0, 1, 2, 4]] * 2), one_hot, torch.full((2,), -torch.inf))
    values = forward_kl(logits, teacher, torch.ones(2, dtype=torch.bool))
    values.sum().backward()
    assert values[0].item() == pytest.approx(0, abs=1e-6)
    assert values[1].item() == pytest.approx(160, rel=0.01)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_masked_positions_are_zero_and_pass_no_gradient():
    logits, _, teacher = case()
    mask = torch.tensor([True, False] * 3 + [False])
    targets = torch.where(mask, 4, -100)
    weights = Weights({"ce": 0.5, "forward_kl": 0.5})
    terms = per_token(logits, targets, teacher, mask, weights)
    for values in terms.values():
        assert (values[~mask] == 0).all()
        assert (values[mask] > 0).all()
    combine(terms, weights).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[~mask] == 0).all()
    nothing = per_token(logits, targets, teacher, torch.zeros(N, dtype=torch.bool), weights)
    assert combine(nothing, weights).sum().item() == 0


def test_chunks_change_neither_values_nor_gradients(monkeypatch: pytest.MonkeyPatch):
    weights = Weights({"ce": 0.3, "forward_kl": 0.7}, label_smoothing=0.1)
    found = []
    for elements in (1 << 26, 2 * V):
        monkeypatch.setattr(objectives, "CHUNK_ELEMENTS", elements)
        logits, _, teacher = case()
        terms = per_token(logits, torch.arange(N), teacher, all_true(), weights)
        combine(terms, weights).sum().backward()
        found.append((terms["ce"], terms["forward_kl"], logits.grad))
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(whole, chunked)


def test_combine_weighs_each_term():
    terms = {"ce": torch.tensor([1.0, 2.0]), "forward_kl": torch.tensor([10.0, 20.0])}
    total = combine(terms, Weights({"ce": 0.25, "forward_kl": 0.5}))
    assert total.tolist() == [5.25, 10.5]


def test_forward_kl_without_a_teacher_is_refused():
    logits, _, _ = case()
    with pytest.raises(ValueError, match="teacher"):
        per_token(logits, torch.arange(N), None, all_true(), Weights({"forward_kl": 1.0}))
