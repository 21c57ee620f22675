"""Batches: every row once, budgets kept, the same steps for any number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from student.batches import Layout, collate, plan_epoch, seed_of, split_step
from student.objectives import Weights, per_token
from student.trainer import TargetHead

LENGTHS = st.lists(st.integers(2, 50), min_size=1, max_size=200).map(np.array)


class Rows:
    """Rows as `StageRows` gives them, from lists."""

    def __init__(self, *parts: tuple[list[int], list[int]], k: int = 2) -> None:
        self.parts, self.k = parts, k

    def row(self, index: int) -> dict[str, np.ndarray]:
        prompt, target = self.parts[index]
        n, k = len(target), self.k + index
        return {
            "prompt_ids": np.array(prompt, np.int32),
            "target_ids": np.array(target, np.int32),
            "widths": np.full(n, k, np.int32),
            "topk_ids": np.arange(n * k, dtype=np.int32),
            "topk_logprobs": -np.arange(n * k, dtype=np.float32),
            "tail_logprob": np.full(n, -3.0, np.float32),
            "counts": np.empty(0, np.int32),
            "draws": np.array([0], np.int32),
        }


@given(LENGTHS, st.integers(50, 400), st.integers(0, 5))
def test_an_epoch_holds_every_row_once_within_the_budget(lengths, budget, seed):
    steps = plan_epoch(lengths, budget, seed)
    assert sorted(np.concatenate(steps)) == list(range(len(lengths)))
    assert all(lengths[step].sum() <= budget for step in steps)


@given(LENGTHS, st.integers(50, 400), st.integers(1, 4), st.integers(50, 120))
def test_processes_share_a_step_without_overlap(lengths, budget, world, limit):
    for step in plan_epoch(lengths, budget, 1):
        rounds = split_step(step, lengths, world, limit)
        pieces = [piece for pieces in rounds for piece in pieces]
        assert {len(pieces) for pieces in rounds} == {world}
        assert sorted(np.concatenate(pieces)) == sorted(step)
        assert all(len(p) * lengths[p].max() <= limit for p in pieces if len(p))


@given(LENGTHS, st.integers(1, 6))
def test_no_process_idles_while_there_are_rows(lengths, world):
    order = np.argsort(-lengths, kind="stable")
    pieces = [p for round_ in split_step(order, lengths, world, 10**6) for p in round_]
    assert sum(len(p) == 0 for p in pieces) == max(0, len(pieces) - len(lengths))


def test_epochs_differ_and_repeat():
    lengths = np.arange(2, 60)
    plans = [plan_epoch(lengths, 100, seed_of(17, "gold", epoch)) for epoch in (1, 2, 1)]
    flat = [np.concatenate(plan).tolist() for plan in plans]
    assert flat[0] == flat[2] != flat[1]


def test_rows_of_like_length_train_together():
    lengths = np.array([2, 50] * 100)
    steps = plan_epoch(lengths, 100, 0)
    assert sum(len(set(lengths[step])) > 1 for step in steps) <= 2  # one a pool


def test_collate_predicts_targets_alone():
    rows = Rows(([5, 6, 7], [8, 2]), ([9], [10, 11, 2]))
    batch = collate(rows, [0, 1], Layout(0), teacher=True)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 2], [9, 10, 11, 2, 0]]
    assert batch.predicts.tolist() == [
        [False, False, True, True, False],
        [True, True, True, False, False],
    ]
    assert batch.targets.tolist() == [8, 2, 10, 11, 2]
    assert batch.mask.all()
    assert batch.teacher is not None
    assert batch.teacher.ids.tolist() == [[0, 1, 0], [2, 3, 0], [0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert batch.teacher.logprobs[0].tolist() == [0.0, -1.0, -np.inf]
    assert batch.teacher.tail_logprob.tolist() == [-3.0] * 5


def test_a_process_without_rows_gets_a_masked_batch():
    batch = collate(Rows(([1], [2])), [], Layout(0), teacher=True)
    assert batch.mask.tolist() == [False]
    assert batch.predicts.sum() == len(batch.targets) == 1
    assert batch.teacher is not None
    assert batch.teacher.ids.shape == (1, 2)


def test_an_encoder_takes_the_prompt_and_a_decoder_the_target_shifted():
    batch = collate(Rows(([5, 6, 7], [8, 2]), ([9], [10, 11, 2])), [0, 1], Layout(0, 4), False)
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[4, 8, 0], [4, 10, 11]]
    assert batch.predicts.tolist() == [[True, True, False], [True, True, True]]
    assert batch.targets.tolist() == [8, 2, 10, 11, 2]


TINY: dict[str, Any] = {"vocab_size": 20, "pad_token_id": 0, "eos_token_id": 2}
LLAMA = LlamaConfig(
    **TINY, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
)
T5 = T5Config(
    **TINY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
)


@pytest.mark.parametrize(
    ("model", "layout"),
    [(LlamaForCausalLM(LLAMA), Layout(0)), (T5ForConditionalGeneration(T5), Layout(0, 0))],
    ids=["decoder", "encoder-decoder"],
)
def test_the_loss_is_that_of_the_model_with_labels(model: Any, layout: Layout):
    """What passes the head, and where it stands, against transformers' own labels, row by row."""
    rows = Rows(([5, 6, 7], [8, 2]), ([9], [10, 11, 2]))
    model.eval()
    own = []
    for index in range(2):
        prompt, target = (torch.tensor([part]) for part in rows.parts[index])
        masked = torch.cat([torch.full_like(prompt, -100), target], dim=1)
        given = (torch.cat([prompt, target], dim=1), masked)
        ids, labels = given if layout.start is None else (prompt, target)
        own.append(model(input_ids=ids, labels=labels).loss.item() * target.numel())
    batch = collate(rows, [0, 1], layout, teacher=False)
    TargetHead(model).predicts = batch.predicts
    logits = model(**batch.inputs, use_cache=False).logits
    assert logits.shape == (5, 20)
    values = per_token(logits, batch.targets, None, batch.mask, Weights({"ce": 1.0}))["ce"]
    assert values.sum().item() == pytest.approx(sum(own), rel=1e-5)
