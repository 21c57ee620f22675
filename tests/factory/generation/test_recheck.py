"""Capture checks itself: literal cases, sums in any order, and a real teacher tampered with."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from factory.cards.card import render
from factory.engines import Hypothesis, Request
from factory.errors import StepFailed, Told
from factory.generation.recheck import TOLERANCES, Agreement, agreement, chosen, require_agreement
from factory.manifest import Prompt
from factory.pipeline import run_steps
from factory.prompting.prompts import Prompter
from factory.reading import load_manifest
from tests.engines import FEW_BLOCKS, opened_vllm, results
from tests.models import TEMPLATE, manifest_tree, pairs, write_manifest_file

K = 3


def hypothesis(*logprobs: float, top: list[tuple[int, float]] | None = None) -> Hypothesis:
    """Tokens 7, 8, … with these log-probabilities; `top` is the same at every position."""
    n, table = len(logprobs), [top] * len(logprobs) if top else None
    return Hypothesis(
        token_ids=np.arange(7, 7 + n, dtype=np.int32),
        token_logprobs=np.array(logprobs, np.float32),
        finish_reason="stop",
        topk_ids=np.array(table, np.float32)[:, :, 0].astype(np.int32) if table else None,
        topk_logprobs=np.array(table, np.float32)[:, :, 1] if table else None,
    )


def test_differences_are_absolute_and_summed_over_positions():
    found = agreement(hypothesis(-1.0, -2.0, -3.0), hypothesis(-1.25, -2.0, -2.5))
    assert found == Agreement(candidates=1, positions=3, largest=0.5, total=0.75)
    assert found.mean == 0.25
    assert found.top1_agreement is None


def test_a_told_sum_is_compared_with_the_sum():
    kept = replace(hypothesis(-1.0, -2.0), token_logprobs=None, told_sum=-3.5)
    found = agreement(kept, hypothesis(-1.0, -2.0))
    assert found == Agreement(candidates=1, positions=2, largest=0.25, total=0.5)


def test_what_nothing_is_known_of_is_skipped():
    unknown = replace(hypothesis(-1.0), token_logprobs=None)
    assert agreement(unknown, hypothesis(-1.0)) == Agreement(skipped=1)
    assert agreement(hypothesis(-1.0), unknown) == Agreement(skipped=1)
    assert Agreement(skipped=1).mean == 0.0


@pytest.mark.parametrize(
    ("kept", "scored", "agreed"),
    [
        ([(7, -0.5), (8, -1.0)], [(7, -0.5), (8, -1.0)], 1),
        ([(7, -0.5), (8, -1.0)], [(7, -0.5)], 1),
        ([(8, -0.5), (7, -0.5)], [(7, -0.5), (8, -0.5004)], 1),
        ([(8, -0.5), (7, -0.5)], [(7, -0.5), (8, -0.6)], 0),
        ([(9, -0.5), (7, -0.5)], [(7, -0.5), (8, -0.5)], 0),
        (None, [(7, -0.5)], None),
        ([(7, -0.5)], None, None),
    ],
    ids=["same", "another k", "tie", "swapped", "absent", "kept without", "scored without"],
)
def test_the_most_probable_token_agrees_or_is_tied(kept, scored, agreed):
    found = agreement(hypothesis(-0.5, top=kept), hypothesis(-0.5, top=scored))
    known = agreed is not None
    assert (found.top1_agreed, found.top1_positions) == (agreed or 0, int(known))


def test_other_tokens_are_a_defect():
    shifted = replace(hypothesis(-1.0, -2.0), token_ids=np.array([8, 7], np.int32))
    with pytest.raises(StepFailed, match="other tokens"):
        agreement(hypothesis(-1.0, -2.0), shifted)
    with pytest.raises(StepFailed, match="other tokens"):
        agreement(hypothesis(-1.0), hypothesis(-1.0, -2.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_never_an_agreement(bad):
    for sides in [(-1.0, bad), (bad, -1.0)]:
        with pytest.raises(StepFailed, match="not a finite number"):
            agreement(*(hypothesis(side) for side in sides))


def test_impossible_on_both_sides_is_no_difference():
    impossible = hypothesis(-1.0, -float("inf"))
    assert agreement(impossible, impossible).largest == 0.0


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_each_tolerance_is_the_one_that_stops(dtype):
    allowed = TOLERANCES[dtype]
    mean, largest = allowed.mean, allowed.largest
    right = Agreement(32, 1000, largest, mean * 1000, 995, 1000)
    require_agreement(right, dtype)
    require_agreement(Agreement(skipped=32), dtype)
    for wrong in (
        replace(right, total=mean * 1001),
        replace(right, largest=largest * 1.01),
        replace(right, top1_agreed=int(allowed.top1 * 1000) - 1),
    ):
        with pytest.raises(StepFailed):
            require_agreement(wrong, dtype)


def test_the_explanation_is_one_line_with_figures_and_what_to_do():
    with pytest.raises(StepFailed) as raised:
        require_agreement(Agreement(32, 200, 3.25, 50.0, 150, 200), "float32")
    told = str(raised.value)
    assert "\n" not in told
    for words in (
        "32 candidates",
        "mean difference 0.25 (at most 0.0001)",
        "largest 3.2 (at most 0.01)",
        "top-1 agreement 75.0% (least 99%)",
        "float32",
        "generate.check: 0",
    ):
        assert words in told
    assert raised.value.exit_status == 1


FIGURES = st.builds(
    Agreement,
    *[st.integers(0, 99)] * 2,
    *[st.floats(0, 10)] * 2,
    *[st.integers(0, 99)] * 3,
)


@given(st.lists(FIGURES, max_size=8), st.randoms(use_true_random=False))
def test_figures_add_up_in_any_order(parts: list[Agreement], order: random.Random):
    shuffled = parts.copy()
    order.shuffle(shuffled)
    one, other = (reduce(Agreement.__add__, some, Agreement()) for some in (parts, shuffled))
    assert replace(one, total=0.0) == replace(other, total=0.0)
    assert one.total == pytest.approx(other.total)
    assert one.positions == sum(part.positions for part in parts)
    assert one.largest == max((part.largest for part in parts), default=0.0)


@given(FIGURES)
def test_records_keep_the_figures(figures: Agreement):
    told = json.loads(json.dumps(figures.as_record()))
    assert Agreement.from_record(told) == figures
    assert told["mean"] == figures.mean


IDS = st.lists(st.text(max_size=5), max_size=30, unique=True)


@given(IDS, st.integers(0, 40), st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_choice_is_of_ids_and_not_of_their_order(ids, count, seed, order):
    shuffled = ids.copy()
    order.shuffle(shuffled)
    places = chosen(ids, count, seed)
    assert places == sorted(set(places))
    assert len(places) == min(count, len(ids))
    assert {ids[i] for i in places} == {shuffled[i] for i in chosen(shuffled, count, seed)}
    assert set(chosen(ids, count // 2, seed)) <= set(places)


def test_the_choice_hangs_on_the_seed_and_stays_what_it_was():
    ids = [f"{i:02d}" for i in range(20)]
    assert chosen(ids, 4, 17) == [4, 7, 15, 19]
    assert chosen(ids, 4, 18) != chosen(ids, 4, 17)


@pytest.fixture(scope="module")
def captured(tiny_llama, tiny_tokenizer) -> list[tuple[Hypothesis, Hypothesis]]:
    """Candidates of a real teacher as decoded, and as the same engine scores them."""
    prompter = Prompter(tiny_tokenizer, Prompt(template=TEMPLATE))
    _, prompts = prompter.encode([{"source": source} for source, _ in pairs(12, 300)])
    engine = opened_vllm(tiny_llama, K)
    asked = [Request(str(i), prompt, 12) for i, prompt in enumerate(prompts)]
    kept = {key: result.hypotheses[0] for key, result in results(engine, asked).items()}
    again = [replace(r, target_ids=kept[r.key].token_ids.tolist()) for r in asked]
    scored = {key: result.hypotheses[0] for key, result in results(engine, again).items()}
    return [(kept[r.key], scored[r.key]) for r in asked]


def total(found: list[tuple[Hypothesis, Hypothesis]]) -> Agreement:
    return sum((agreement(*both) for both in found), Agreement())


def test_an_honest_teacher_passes(captured):
    found = total(captured)
    require_agreement(found, "float32")
    assert (found.candidates, found.skipped) == (12, 0)
    assert found.positions == sum(len(kept.token_ids) for kept, _ in captured) > 60
    assert found.top1_agreement == 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_temperature_that_leaked_in_is_caught(captured, dtype):
    """Log-probabilities at T = 0.5, as an engine tells them that processes before it tells."""
    warm = [(replace(kept, token_logprobs=sharper(kept)), scored) for kept, scored in captured]
    with pytest.raises(StepFailed, match="temperature"):
        require_agreement(total(warm), dtype)


def sharper(kept: Hypothesis) -> np.ndarray:
    """What T = 0.5 makes of the realised tokens, the mass beyond the top k as one more token."""
    top = kept.topk_logprobs.astype(np.float64)
    rest = np.log1p(-np.exp(top).sum(axis=1)).clip(-20)
    doubled = 2 * np.column_stack([top, rest])
    return (2 * kept.token_logprobs - np.logaddexp.reduce(doubled, axis=1)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_positions_out_of_step_are_caught(captured, dtype):
    shifted = [
        (replace(kept, token_logprobs=np.roll(kept.token_logprobs, 1)), scored)
        for kept, scored in captured
    ]
    with pytest.raises(StepFailed, match="mixed up"):
        require_agreement(total(shifted), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_prompt_is_caught(tiny_llama, tiny_tokenizer, captured, dtype):
    """The candidate of one row scored after the prompt of another."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    prompter = Prompter(tiny_tokenizer, Prompt(template=TEMPLATE))
    _, prompts = prompter.encode([{"source": source} for source, _ in pairs(12, 301)])
    wrong = []
    for (kept, _), prompt in zip(captured, prompts, strict=True):
        ids = torch.tensor([prompt + kept.token_ids.tolist()])
        with torch.inference_mode():
            logprobs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        told = logprobs.gather(-1, ids[0, len(prompt) :, None])[:, 0].numpy()
        wrong.append((kept, replace(kept, token_logprobs=told)))
    with pytest.raises(StepFailed, match="wrong prompt"):
        require_agreement(total(wrong), dtype)


SAMPLING = {"decoding": "sample", "num_return": 2, "temperature": 0.5, "max_new_tokens": 12}


def test_a_job_stops_where_its_engine_tells_lies_and_goes_on_unchecked(tiny_llama, tmp_path):
    """vLLM told to tell what it sampled from, T = 0.5, in place of the distribution itself."""
    tree = manifest_tree(tmp_path, tiny_llama, generate=SAMPLING)
    lying = FEW_BLOCKS | {"logprobs_mode": "processed_logprobs"}
    tree["teacher"] = {"model": str(tiny_llama), "engine": "vllm", "options": lying}
    del tree["student"]
    manifest = write_manifest_file(tmp_path / "manifest.yaml", tree)
    root = tmp_path / "run"
    with pytest.raises(Told, match="scored anew have other log-probabilities") as raised:
        run_steps(root, load_manifest(manifest, ()), ("generate",))
    assert raised.value.exit_status == 1
    assert not list(root.glob("shards/*.json"))
    run = run_steps(root, load_manifest(manifest, ("generate.check=0",)), ("generate",))
    assert run.step("generate")["candidates"] == 120
    assert "scored anew" not in render(run)
