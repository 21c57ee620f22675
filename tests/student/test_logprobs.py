"""Chosen log-probabilities against log_softmax and gather, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from student import logprobs
from student.logprobs import chosen_logprobs

N, V, M = 7, 23, 5


def case(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, ids with one that stands twice, and what each result weighs."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(N, V, dtype=torch.float64, generator=generator).mul(3).to(dtype)
    ids = torch.randint(0, V, (N, M), generator=generator)
    ids[:, 1] = ids[:, 0]
    weights = torch.randn(N, M + 1, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), ids, weights


def reference(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    every = logits.log_softmax(-1)
    return torch.cat([every.gather(-1, ids), every.mean(-1, keepdim=True)], -1)


@pytest.mark.parametrize("elements", [1, 2 * V, 1 << 20])
def test_values_and_gradients_are_those_of_log_softmax(
    monkeypatch: pytest.MonkeyPatch, elements: int
):
    monkeypatch.setattr(logprobs, "CPU_CHUNK", elements)
    logits, ids, weights = case()
    found = chosen_logprobs(logits, ids, average=True)
    wanted = reference(logits, ids)
    torch.testing.assert_close(found, wanted)
    [got] = torch.autograd.grad((found * weights).sum(), logits)
    [should] = torch.autograd.grad((wanted * weights).sum(), logits)
    torch.testing.assert_close(got, should)
    [narrow] = torch.autograd.grad((chosen_logprobs(logits, ids) * weights[:, :M]).sum(), logits)
    [should] = torch.autograd.grad((reference(logits, ids)[:, :M] * weights[:, :M]).sum(), logits)
    torch.testing.assert_close(narrow, should)


@pytest.mark.parametrize("average", [False, True])
def test_the_gradient_is_that_of_finite_differences(average: bool):
    logits, ids, _ = case()
    assert torch.autograd.gradcheck(lambda z: chosen_logprobs(z, ids, average), (logits,))


def test_half_precision_is_summed_in_float32():
    logits, ids, weights = case(torch.bfloat16)
    found = chosen_logprobs(logits, ids)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference(logits.float(), ids)[:, :M])
    (found * weights[:, :M]).sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


@given(st.lists(st.sampled_from([-torch.inf, -80.0, 0.0, 3.0, 80.0]), min_size=2, max_size=9))
def test_tokens_without_mass_take_no_gradient_and_give_no_nan(row: list[float]):
    row[0] = 1.0
    logits = torch.tensor([row], requires_grad=True)
    chosen_logprobs(logits, torch.tensor([[0]])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[logits == -torch.inf] == 0).all()


class Widest(TorchDispatchMode):
    """Notes the most elements of any float32 tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float32:
            self.elements = max(self.elements, made.untyped_storage().nbytes() // 4)
        return made


def test_float32_is_never_as_wide_as_all_positions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logprobs, "CPU_CHUNK", 4 * 500)
    logits = torch.randn(64, 500).bfloat16().requires_grad_()
    ids = torch.randint(0, 500, (64, 3))
    with Widest() as seen:
        chosen_logprobs(logits, ids).sum().backward()
    assert 4 * 500 <= seen.elements < 8 * 500


def test_no_position_at_all_is_no_mistake():
    logits = torch.empty(0, V, requires_grad=True)
    chosen_logprobs(logits, torch.empty(0, 2, dtype=torch.long)).sum().backward()
    assert logits.grad is not None
