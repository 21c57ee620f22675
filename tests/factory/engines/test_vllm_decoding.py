"""What vLLM is told is what it does: draws, filters, stops, penalties and scoring, on tiny models.

The oracle is a plain forward pass of the same model, in float64 from its float32 logits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from factory.engines import Engine, Hypothesis, Request, Result
from factory.manifest import Prompt
from factory.prompting.prompts import Prompter
from tests.engines import opened_vllm, results
from tests.models import CONTEXT, TEMPLATE, pairs

K = 5
LIMIT = 12
CLOSE = 1e-4
WARM = 1.5


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer) -> list[list[int]]:
    prompter = Prompter(tiny_tokenizer, Prompt(template=TEMPLATE))
    return prompter.encode([{"source": source} for source, _ in pairs(8, 400)])[1]


@pytest.fixture(scope="module")
def model(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


@pytest.fixture(scope="module")
def warm(tiny_llama) -> Engine:
    """One engine that samples far from greedily, for all that differs in requests alone."""
    return opened_vllm(tiny_llama, K, decoding="sample", num_return=3, temperature=WARM)


@pytest.fixture(scope="module")
def greedy(tiny_llama, prompts) -> dict[str, list[int]]:
    """What greedy decoding makes of every prompt."""
    found = results(opened_vllm(tiny_llama), asked(prompts))
    return {key: ids(result)[0] for key, result in found.items()}


def once(folder: Path, requests: Iterable[Request], k: int = K, **generate: Any) -> Any:
    """Decode with an engine of its own."""
    return results(opened_vllm(folder, k, **generate), requests)


def asked(prompts: list[list[int]], *seeds: int) -> list[Request]:
    """A request a prompt; every row has seeds of its own."""
    return [
        Request(str(i), prompt, LIMIT, tuple(100 * i + seed for seed in seeds))
        for i, prompt in enumerate(prompts)
    ]


def ids(result: Result) -> list[list[int]]:
    assert result.error is None
    return [hypothesis.token_ids.tolist() for hypothesis in result.hypotheses]


def raw(model: Any, prompt: list[int], target: list[int]) -> np.ndarray:
    """float64 [n, vocabulary]: the model's log-probabilities at each position of a target."""
    joined = torch.tensor([[*prompt, *target]])
    with torch.inference_mode():
        logits = model(joined).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1).numpy()


def assert_raw(model: Any, prompt: list[int], found: Hypothesis) -> None:
    """What is stored are the raw log-probabilities at T = 1, realised and top k."""
    target = found.token_ids.tolist()
    expected = raw(model, prompt, target)
    realised = expected[np.arange(len(target)), target]
    np.testing.assert_allclose(found.token_logprobs, realised, atol=CLOSE)
    if found.topk_ids is None:
        assert found.topk_logprobs is None
        return
    width = found.topk_ids.shape[1]
    np.testing.assert_allclose(
        found.topk_logprobs, -np.sort(-expected, axis=1)[:, :width], atol=CLOSE
    )
    at_ids = np.take_along_axis(expected, found.topk_ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(found.topk_logprobs, at_ids, atol=CLOSE)


def test_a_draw_a_seed_in_the_order_of_the_seeds(warm, prompts):
    found = results(warm, [Request("a", prompts[0], LIMIT, (3, 5, 3))])["a"]
    assert [hypothesis.seed for hypothesis in found.hypotheses] == [3, 5, 3]
    first, second, third = ids(found)
    assert first == third != second
    assert ids(results(warm, [Request("a", prompts[0], LIMIT, (5,))])["a"]) == [second]
    far = (1 << 63) - 1  # the largest seed there is
    assert len(ids(results(warm, [Request("a", prompts[0], LIMIT, (far, 0))])["a"])) == 2


def test_a_rows_draws_do_not_depend_on_what_else_is_in_the_batch(warm, prompts):
    requests = asked(prompts, 0, 1, 2)
    together = {key: ids(result) for key, result in results(warm, requests).items()}
    assert len({tuple(draw) for draws in together.values() for draw in draws}) > 16
    backwards = results(warm, requests[::-1], window=3)
    assert {key: ids(result) for key, result in backwards.items()} == together
    for request in requests[:3]:
        assert ids(results(warm, [request], window=1)[request.key]) == together[request.key]


def test_draws_follow_the_distribution(warm, model, prompts):
    """First tokens of many draws, against softmax(logits / T)."""
    draws = 1500
    request = Request("a", prompts[0], 1, tuple(range(draws)))
    drawn = [target[0] for target in ids(results(warm, [request])["a"])]
    expected = np.exp(raw(model, prompts[0], [0])[0] / WARM)
    expected /= expected.sum()
    seen = np.bincount(drawn, minlength=len(expected)) / draws
    # Half the expected L1 distance of an honest sample is at most half the sum of its deviations.
    honest = 0.5 * np.sqrt(expected * (1 - expected) / draws).sum()
    assert 0.5 * np.abs(seen - expected).sum() < 1.2 * honest


def test_stored_logprobs_of_draws_are_those_of_temperature_one(warm, model, prompts):
    for request in asked(prompts, 0, 1):
        for hypothesis in results(warm, [request])[request.key].hypotheses:
            assert_raw(model, request.prompt_ids, hypothesis)


@pytest.mark.parametrize("one", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_the_narrowest_filter_is_greedy(tiny_llama, prompts, greedy, one):
    found = once(tiny_llama, asked(prompts, 0), 0, decoding="sample", temperature=2.0, **one)
    assert {key: ids(result)[0] for key, result in found.items()} == greedy


FILTERS = [
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"min_p": 0.02, "top_k": 6, "top_p": 0.8},
]


def allowed(logprobs: np.ndarray, temperature: float, **filters: float) -> set[int]:
    """The tokens vLLM may draw, in its order: temperature, min-p, top-k, top-p of what is left.

    A token whose place at an edge hangs on rounding is allowed.
    """
    probabilities = np.exp(logprobs / temperature)
    probabilities /= probabilities.sum()
    least = filters.get("min_p", 0.0) * probabilities.max()
    probabilities[probabilities < least * (1 - CLOSE)] = 0.0
    order = np.argsort(-probabilities)
    if width := int(filters.get("top_k", 0)):
        probabilities[probabilities < probabilities[order[width - 1]] * (1 - CLOSE)] = 0.0
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities[order]) - probabilities[order]
    held = (before < filters.get("top_p", 1.0) + CLOSE) & (probabilities[order] > 0)
    return set(order[held].tolist())


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filters_leave_only_what_they_allow(tiny_llama, model, prompts, filters):
    requests = asked(prompts, *range(6))
    settings = {"decoding": "sample", "num_return": 6, "temperature": 2.0}
    found = once(tiny_llama, requests, **settings, **filters)
    sizes, outside = [], 0
    for request in requests:
        for hypothesis in found[request.key].hypotheses:
            target = hypothesis.token_ids.tolist()
            rows = raw(model, request.prompt_ids, target)
            for token, logprobs in zip(target, rows, strict=True):
                may = allowed(logprobs, 2.0, **filters)
                assert token in may
                sizes.append(len(may))
                outside += token != logprobs.argmax()
            assert_raw(model, request.prompt_ids, hypothesis)
    assert np.mean(sizes) < 300  # of 400: the filter filters
    assert outside > 10  # and leaves a choice


@pytest.mark.parametrize("decoding", ["greedy", "sample"])
def test_the_end_token_waits_for_the_least_length(
    tiny_llama, tiny_tokenizer, model, prompts, decoding
):
    requests = asked(prompts, 0) if decoding == "sample" else asked(prompts)
    found = once(tiny_llama, requests, decoding=decoding, min_new_tokens=LIMIT - 2)
    end = tiny_tokenizer.eos_token_id
    for request in requests:
        [hypothesis] = found[request.key].hypotheses
        assert LIMIT - 2 <= len(hypothesis.token_ids) <= LIMIT
        assert end not in hypothesis.token_ids[: LIMIT - 2]
        assert_raw(model, request.prompt_ids, hypothesis)


def test_a_stop_string_ends_with_the_token_that_completed_it(
    tiny_llama, tiny_tokenizer, model, prompts, greedy
):
    requests, stop = asked(prompts), " v"
    found = once(tiny_llama, requests, stop=[stop, "no such text"])
    stopped = 0
    for request in requests:
        [hypothesis] = found[request.key].hypotheses
        target, whole = hypothesis.token_ids.tolist(), greedy[request.key]
        assert target == whole[: len(target)]
        assert stop not in tiny_tokenizer.decode(target[:-1])
        if stop in tiny_tokenizer.decode(whole):
            assert stop in tiny_tokenizer.decode(target)
            assert hypothesis.finish_reason == "stop"
            stopped += len(target) < len(whole)
        else:
            assert target == whole
        assert_raw(model, request.prompt_ids, hypothesis)
    assert stopped > 2


def test_a_stop_id_ends_a_target_and_stands_in_it(tiny_llama, model, prompts, greedy):
    requests = asked(prompts)
    wanted = greedy["0"][2]
    found = once(tiny_llama, requests, stop_token_ids=[wanted])
    for request in requests:
        [hypothesis] = found[request.key].hypotheses
        target, whole = hypothesis.token_ids.tolist(), greedy[request.key]
        if wanted in whole:
            assert target == whole[: whole.index(wanted) + 1]
            assert hypothesis.finish_reason == "stop"
        else:
            assert target == whole
        assert_raw(model, request.prompt_ids, hypothesis)


def test_a_repetition_penalty_changes_the_text_and_not_what_is_stored(
    tiny_llama, model, prompts, greedy
):
    requests = asked(prompts)
    found = once(tiny_llama, requests, repetition_penalty=3.0)
    assert any(ids(found[r.key])[0] != greedy[r.key] for r in requests)
    for request in requests:
        [hypothesis] = found[request.key].hypotheses
        assert_raw(model, request.prompt_ids, hypothesis)


def test_scoring_stands_beside_decoding_in_one_engine(warm, tiny_tokenizer, model, prompts):
    end = tiny_tokenizer.eos_token_id
    targets = [[9, 8, 7, end], [end], [40, 41]] * 3
    decoding = asked(prompts, 0, 1)
    scoring = [
        Request(f"score {i}", prompt, 1, (), target)
        for i, (prompt, target) in enumerate(zip(prompts, targets, strict=False))
    ]
    mixed = [request for both in zip(decoding, scoring, strict=True) for request in both]
    found, alone = results(warm, mixed, window=6), results(warm, decoding)
    for request in decoding:
        assert ids(found[request.key]) == ids(alone[request.key])
    for request in scoring:
        [hypothesis] = found[request.key].hypotheses
        assert hypothesis.token_ids.tolist() == request.target_ids
        assert hypothesis.token_logprobs.dtype == np.float32
        assert hypothesis.topk_ids.shape == (len(request.target_ids), K)
        assert_raw(model, request.prompt_ids, hypothesis)


def test_without_a_top_k_the_realised_tokens_are_told_alone(tiny_llama, model, prompts):
    """And scoring knows nothing of how the teacher decodes."""
    decoded = Request("decoded", prompts[0], LIMIT)
    scored = Request("scored", prompts[1], LIMIT, (), [5, 6, 5, 6])
    settings = {"repetition_penalty": 3.0, "min_new_tokens": 4}
    found = once(tiny_llama, [decoded, scored], 0, **settings)
    for request in (decoded, scored):
        [hypothesis] = found[request.key].hypotheses
        assert hypothesis.topk_ids is None
        assert_raw(model, request.prompt_ids, hypothesis)


def test_the_shortest_of_prompts_and_targets_is_scored(warm, model):
    scoring = Request("short", [1], 1, (), [9])
    found = results(warm, [scoring, replace(scoring, key="empty", target_ids=[])])
    assert_raw(model, [1], found["short"].hypotheses[0])
    assert found["empty"].error == "the target is empty"


def test_a_target_may_fill_the_context_and_not_one_token_more(warm, model, prompts):
    room = CONTEXT - len(prompts[0])
    fits = Request("fits", prompts[0], 1, (), [11] * room)
    unfit = replace(fits, key="unfit", target_ids=[11] * (room + 1))
    found = results(warm, [unfit, fits])
    assert found["unfit"].error == (
        f"prompt and target of {CONTEXT + 1} tokens does not fit the context of {CONTEXT}"
    )
    [hypothesis] = found["fits"].hypotheses
    assert len(hypothesis.token_ids) == room
    assert_raw(model, prompts[0], hypothesis)


@pytest.mark.parametrize(
    "decoding",
    [{"decoding": "sample"}, {"decoding": "beam", "beam_width": 2}],
    ids=lambda settings: settings["decoding"],
)
def test_one_bad_row_is_one_error(tiny_llama, prompts, tiny_tokenizer, decoding):
    seeds = (1, 2) if decoding["decoding"] == "sample" else ()
    bad = Request("beyond", [len(tiny_tokenizer) + 1000], 4, seeds)
    long = Request("long", [1] * CONTEXT, 4, seeds)
    requests = [bad, *asked(prompts[:2], *seeds), long]
    found = once(tiny_llama, requests, num_return=2, **decoding)
    assert "vocab" in found["beyond"].error.lower()
    assert f"does not fit the context of {CONTEXT}" in found["long"].error
    assert [len(ids(found[key])) for key in "01"] == [2, 2]
