"""The chunked head against the whole one: loss, terms and gradients; and what it never holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
)

from factory.errors import RunError
from student import chunks
from student.batches import Batch, Layout, collate
from student.chunks import ChunkedHead
from student.objectives import Weights, combine, per_token
from student.trainer import TargetHead
from tests.student.test_batches import Rows
from tests.student.test_logprobs import Widest
from tests.student.test_packing import NARROW, SMALL, gpt2, llama, t5

WEIGHTS = Weights({"ce": 0.25, "forward_kl": 0.75}, label_smoothing=0.1)


def capped() -> Any:
    """Its logits go through a tanh behind the head."""
    config = Gemma2Config(
        **SMALL, **NARROW, intermediate_size=16, head_dim=8, num_key_value_heads=2,
        final_logit_softcapping=2.0, initializer_range=0.3,
    )  # fmt: skip
    return Gemma2ForCausalLM(config)


def scaled() -> Any:
    """Its logits are scaled behind the head."""
    return CohereForCausalLM(CohereConfig(**SMALL, **NARROW, intermediate_size=16, logit_scale=0.5))


def bart() -> Any:
    """A bias is added behind the head, and there is an encoder."""
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    width = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "init_std": 0.3}
    return BartForConditionalGeneration(BartConfig(**SMALL, **layers, **heads, **width))


def batch_of(model: Any) -> Batch:
    rows = Rows(([5, 6, 7], [8, 2]), ([9], [10, 11, 2]), ([3, 12, 13, 14, 15], [16]))
    layout = Layout(0, 0 if model.config.is_encoder_decoder else None)
    return collate(rows, [0, 1, 2], layout, teacher=True)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def whole(model: Any, batch: Batch) -> tuple[Any, ...]:
    head = TargetHead(model)
    head.predicts = batch.predicts
    logits = model(**batch.inputs, use_cache=False).logits
    terms = per_token(logits, batch.targets, batch.teacher, batch.mask, WEIGHTS)
    loss = combine(terms, WEIGHTS).sum()
    (loss * 0.5).backward()
    head.predicts = None
    sums = [float(value.sum()) for value in terms.values()]
    return float(loss), sums, gradients(model)


def chunked(model: Any, batch: Batch) -> tuple[Any, ...]:
    apart, head = ChunkedHead(model), TargetHead(model, keeps=True)
    head.predicts = batch.predicts
    logits = model(**batch.inputs, use_cache=False).logits
    assert logits.shape[0] == 0
    loss, terms = apart.loss(head.kept(), batch, WEIGHTS)
    (loss * 0.5).backward()
    return float(loss), [float(value.sum()) for value in terms.values()], gradients(model)


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("make", [llama, gpt2, capped, scaled, bart])
def test_chunks_have_the_loss_and_gradients_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any], size: int
):
    monkeypatch.setattr(chunks, "FEWEST", size)
    monkeypatch.setattr(chunks, "CPU_CHUNK", 1)
    torch.manual_seed(4)
    model = make().eval()
    batch = batch_of(model)
    loss, terms, should = whole(model, batch)
    model.zero_grad()
    got_loss, got_terms, got = chunked(model, batch)
    assert got_loss == pytest.approx(loss, rel=1e-5)
    assert got_terms == pytest.approx(terms, rel=1e-5)
    assert got.keys() == should.keys()
    for name, gradient in should.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def test_a_frozen_head_gets_no_gradient():
    torch.manual_seed(4)
    model = llama()
    model.lm_head.weight.requires_grad_(False)
    _, _, got = chunked(model, batch_of(model))
    assert "lm_head.weight" not in got
    assert got["model.norm.weight"].abs().sum() > 0


def test_logits_never_stand_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunks, "FEWEST", 2)
    monkeypatch.setattr(chunks, "CPU_CHUNK", 1)
    model = llama()
    hidden = torch.randn(64, 16, requires_grad=True)
    rows = Rows(([5] * 3, [8] * 64))
    batch = collate(rows, [0], Layout(0), teacher=False)
    apart = ChunkedHead(model)
    with Widest() as seen:
        apart.loss(hidden, batch, Weights({"ce": 1.0}))[0].backward()
    assert 0 < seen.elements <= 64 * 16 < 64 * 40


def test_a_model_without_a_head_of_its_own_is_refused():
    with pytest.raises(RunError, match="t5 has no head that stands apart"):
        ChunkedHead(t5())
