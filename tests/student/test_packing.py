"""Packed rows: the loss and gradients of rows alone, and models that would mix them refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from factory.errors import RunError
from student.batches import Layout, collate, split_step
from student.objectives import Weights, combine, per_token
from student.packing import check_packing
from student.trainer import TargetHead
from tests.student.test_batches import Rows

SMALL: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0, "eos_token_id": 2}
NARROW: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WEIGHTS = Weights({"ce": 0.5, "forward_kl": 0.5})


def llama() -> Any:
    config = LlamaConfig(**SMALL, **NARROW, intermediate_size=16, initializer_range=0.3)
    return LlamaForCausalLM(config)


def gpt2() -> Any:
    config = GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(config)


def opt() -> Any:
    return OPTForCausalLM(OPTConfig(**SMALL, **NARROW, ffn_dim=16, word_embed_proj_dim=16))


def bloom() -> Any:
    return BloomForCausalLM(BloomConfig(**SMALL, hidden_size=16, n_layer=2, n_head=2))


def t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(**SMALL, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


def loss_of(model: Any, packed: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of three rows of unlike length, and its gradients."""
    rows = Rows(([5, 6, 7], [8, 2]), ([9], [10, 11, 2]), ([3, 12, 13, 14, 15], [16]))
    batch = collate(rows, [0, 1, 2], Layout(0, packed=packed), teacher=True)
    head = TargetHead(model)
    head.predicts = batch.predicts
    model.zero_grad()
    logits = model(**batch.inputs, use_cache=False).logits
    loss = combine(per_token(logits, batch.targets, batch.teacher, batch.mask, WEIGHTS), WEIGHTS)
    loss.sum().backward()
    head.predicts = None
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.sum().item(), gradients


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_loss_and_gradients_of_rows_alone(
    make: Callable[[], Any], attention: str
):
    torch.manual_seed(4)
    model = make().eval()  # GPT-2's dropout would draw otherwise
    model.set_attn_implementation(attention)
    check_packing(model)
    (alone, should), (packed, got) = loss_of(model, False), loss_of(model, True)
    assert packed == pytest.approx(alone, rel=1e-5)
    assert got.keys() == should.keys()
    for name, gradient in should.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def test_packed_rows_stand_in_one_sequence():
    rows = Rows(([5, 6, 7], [8, 2]), ([9], [10, 11, 2]))
    batch = collate(rows, [0, 1], Layout(0, packed=True), teacher=False)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 2, 9, 10, 11, 2]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]
    assert batch.predicts.int().tolist() == [[0, 0, 1, 1, 0, 1, 1, 1, 0]]
    assert batch.targets.tolist() == [8, 2, 10, 11, 2]


def test_packed_rows_fill_a_micro_batch_to_its_limit():
    lengths = torch.tensor([30, 10, 10, 10]).numpy()
    step = torch.arange(4).numpy()
    assert len(split_step(step, lengths, 1, 60, packed=True)) == 1
    assert len(split_step(step, lengths, 1, 60)) == 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (opt, "opt does not keep packed rows apart"),
        (bloom, "bloom does not keep packed rows apart"),
        (t5, "packs a decoder's rows"),
    ],
)
def test_a_model_that_would_mix_rows_is_refused(make: Callable[[], Any], says: str):
    torch.manual_seed(4)
    with pytest.raises(RunError, match=says):
        check_packing(make())
