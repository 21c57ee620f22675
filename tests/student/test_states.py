"""Distances of hidden states: by hand, in float64, and whom their gradients reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from student.states import States, Taught, hidden_mse

EVERY = torch.ones(2, dtype=torch.bool)


def test_values_are_those_worked_out_by_hand():
    """Two layers of width 2 at two positions: (1+4)/2 + (0+16)/2, and 0 + (9+1)/2."""
    student = [torch.tensor([[1.0, 2.0], [5.0, 5.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]])]
    teacher = [torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])]
    assert hidden_mse(student, teacher, EVERY).tolist() == [10.5, 5.0]
    assert hidden_mse(student[:1], teacher[:1], EVERY).tolist() == [2.5, 0.0]
    assert hidden_mse(student, teacher, torch.tensor([False, True])).tolist() == [0.0, 5.0]


def random(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=grad)


def test_it_is_the_sum_over_layers_of_torchs_mean_squared_error():
    """Over all positions, as DistilBART's `calc_hidden_loss`: sum / (tokens · width)."""
    ours, theirs = [[random(7, 5, seed=10 * side + i) for i in range(3)] for side in (1, 2)]
    got = hidden_mse(ours, theirs, torch.ones(7, dtype=torch.bool))
    pairs = zip(ours, theirs, strict=True)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got.mean(), sum(torch.nn.functional.mse_loss(*p) for p in pairs))


def test_gradients_are_those_of_finite_differences_and_masked_ones_are_none():
    theirs, mask = random(4, 3, seed=1), torch.tensor([True, False, True, True])
    weight = random(3, 2, seed=2, grad=True)
    ours = random(4, 2, seed=3, grad=True)
    told = lambda s, w: hidden_mse([s @ w.T], [theirs], mask)  # noqa: E731
    assert torch.autograd.gradcheck(told, (ours, weight))
    [grad] = torch.autograd.grad(told(ours, weight).sum(), ours)
    assert (grad[1] == 0).all()
    assert (grad[0] != 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_squared_in_float32(dtype: torch.dtype):
    """300² is no float16, and 1 + 2⁻⁸ no bfloat16: rounded they would be told as inf and 1."""
    ours = torch.tensor([[300.0, 0.0], [1.0, 0.0625]], dtype=dtype)
    got = hidden_mse([ours], [torch.zeros_like(ours)], EVERY)
    assert got.dtype == torch.float32
    assert got.tolist() == [45000.0, 0.501953125]


def test_nothing_is_told_of_no_positions():
    empty = torch.empty(0, 3)
    assert hidden_mse([empty], [empty], torch.ones(0, dtype=torch.bool)).shape == (0,)


class Blocks(torch.nn.Module):
    """Three linear layers of one width, one after another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs


def test_states_are_those_of_the_layers_and_positions_asked_for():
    model, inputs = Blocks(4), torch.randn(2, 5, 4)
    states = States([2, 0, 2])
    states.listen(model.layers)
    states.predicts = torch.zeros(2, 5, dtype=torch.bool)
    states.predicts[0, 3] = states.predicts[1, 1:3] = True
    final = model(inputs)
    last, first, again = states.take()
    torch.testing.assert_close(last, final[states.predicts])
    torch.testing.assert_close(first, model.layers[0](inputs)[states.predicts])
    torch.testing.assert_close(again, last)
    with pytest.raises(KeyError):
        states.take()  # each pass is told once


@pytest.mark.parametrize(("ours", "theirs"), [(4, 6), (6, 4), (4, 4)])
def test_a_narrower_student_learns_a_matrix_a_layer_that_begins_as_the_identity(
    ours: int, theirs: int
):
    student, inputs = Blocks(ours), torch.randn(2, 3, ours)
    taught = Taught(student, [0, 2], ours, theirs)
    taught.states.predicts = torch.ones(2, 3, dtype=torch.bool)
    taught.states.listen(student.layers)
    final = taught(inputs=inputs)
    torch.testing.assert_close(final, student(inputs))
    assert [told.shape for told in taught.told] == [(6, theirs)] * 2
    same = min(ours, theirs)
    torch.testing.assert_close(taught.told[1][:, :same], final.reshape(6, ours)[:, :same])
    assert (taught.told[1][:, same:] == 0).all()
    names = {name for name, _ in taught.named_parameters()} - {
        f"student.{name}" for name, _ in student.named_parameters()
    }
    assert names == ({f"projections.{i}.weight" for i in (0, 2)} if ours != theirs else set())
    wanted = [torch.randn(6, theirs) for _ in range(2)]
    hidden_mse(taught.told, wanted, torch.ones(6, dtype=torch.bool)).sum().backward()
    for parameter in taught.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
