"""vLLM's log-probabilities as arrays: the same bits as its flat lists, or its flat lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from factory.engines import Engine, Hypothesis, Request, Result, arrays
from factory.engines.arrays import METHODS, REPLACED, Arrays, hand_back, rows, take_over
from factory.engines.vllm import private_names, take_arrays
from factory.manifest import Prompt
from factory.prompting.prompts import Prompter
from tests.engines import opened_vllm, results
from tests.models import TEMPLATE, pairs

K = 5
LIMIT = 12


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer) -> list[list[int]]:
    prompter = Prompter(tiny_tokenizer, Prompt(template=TEMPLATE))
    return prompter.encode([{"source": source} for source, _ in pairs(8, 400)])[1]


@pytest.fixture(scope="module")
def greedy(tiny_llama) -> Engine:
    """Greedy, as far as a stop string, no shorter than four tokens."""
    return opened_vllm(tiny_llama, K, stop=[" v"], min_new_tokens=4)


@pytest.fixture
def flat() -> Iterator[None]:
    """vLLM as it comes."""
    hand_back(private_names())
    yield
    assert take_over(private_names()) is None


@pytest.fixture
def own(flat) -> Any:
    """The names, with nothing taken over."""
    return private_names()


def both(engine: Engine, requests: list[Request]) -> tuple[dict[str, Result], dict[str, Result]]:
    """What an engine tells by arrays, and by flat lists."""
    assert is_taken()
    by_arrays = results(engine, requests)
    hand_back(private_names())
    assert not is_taken()
    by_lists = results(engine, requests)
    assert take_over(private_names()) is None
    return by_arrays, by_lists


def is_taken() -> bool:
    processor = private_names().processor
    return all(hasattr(getattr(processor, name), REPLACED) for name in METHODS)


def bits(hypothesis: Hypothesis) -> tuple[Any, ...]:
    """Every value of a hypothesis, with dtypes and shapes."""
    told = (hypothesis.token_ids, hypothesis.token_logprobs)
    held = [a for a in (*told, hypothesis.topk_ids, hypothesis.topk_logprobs) if a is not None]
    arrays = [(a.dtype.str, a.shape, a.tobytes()) for a in held]
    return hypothesis.finish_reason, hypothesis.seed, *arrays


def assert_same(found: dict[str, Result], expected: dict[str, Result]) -> None:
    assert found.keys() == expected.keys()
    for key, result in found.items():
        assert result.error == expected[key].error
        assert list(map(bits, result.hypotheses)) == list(map(bits, expected[key].hypotheses))


def test_greedy_and_scoring_are_the_same_bit_by_bit(greedy, prompts, tiny_tokenizer):
    """Targets cut by a stop string, held back by min_tokens, of other k, and scored, in a batch."""
    end = tiny_tokenizer.eos_token_id
    decoding = [Request(f"d{i}", prompt, 4 + i) for i, prompt in enumerate(prompts)]
    scoring = [Request(f"s{i}", p, 1, (), [9, 8, 7, end]) for i, p in enumerate(prompts)]
    short = [Request("short", [1], 1, (), [9]), Request("long", [1] * 99, 1, (), [9])]
    by_arrays, by_lists = both(greedy, [*decoding, *scoring, *short])
    assert_same(by_arrays, by_lists)
    reasons = {r.hypotheses[0].finish_reason for r in by_arrays.values() if r.hypotheses}
    assert reasons == {"stop", "length"}
    assert by_arrays["s0"].hypotheses[0].topk_ids.shape == (4, K)


@pytest.mark.parametrize("k", [K, 0])
def test_samples_are_the_same_bit_by_bit(tiny_llama, prompts, k):
    engine = opened_vllm(tiny_llama, k, decoding="sample", num_return=2, temperature=1.5)
    requests = [Request(str(i), p, LIMIT, (i, i + 50)) for i, p in enumerate(prompts)]
    assert_same(*both(engine, requests))


def test_beams_are_the_same_bit_by_bit(tiny_llama, prompts):
    """Rows come step by step, and rollouts are aborted on the way."""
    engine = opened_vllm(tiny_llama, K, decoding="beam", beam_width=3, num_return=3)
    assert_same(*both(engine, [Request(str(i), p, LIMIT) for i, p in enumerate(prompts)]))


def raw(engine: Any, prompt: list[int], **asked: Any) -> Any:
    """One request straight into the engine below."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=6, **asked)
    engine._engine.add_request("raw", {"prompt_token_ids": prompt}, sampling)
    while True:
        for output in engine._engine.step():
            if output.finished:
                return output.outputs[0]


def test_who_asks_for_dictionaries_gets_dictionaries(greedy, prompts):
    told = raw(greedy, prompts[0], logprobs=2)
    ids, logprobs = rows(raw(greedy, prompts[0], logprobs=2, flat_logprobs=True).logprobs, 2)
    assert is_taken()
    assert [set(position) for position in told.logprobs] == [set(row) for row in ids.tolist()]
    for position, row, values in zip(told.logprobs, ids.tolist(), logprobs, strict=True):
        assert [position[token].logprob for token in row] == values.tolist()
        assert position[row[0]].decoded_token is not None


def test_what_was_sent_is_copied_and_sums_are_kept(own):
    assert take_over(own) is None
    told = own.processor(
        tokenizer=None, logprobs=own.flat(), prompt_logprobs=None, cumulative_logprob=0.0,
        num_logprobs=1, num_prompt_logprobs=None,
    )  # fmt: skip
    batch = np.arange(40, dtype=np.int32).reshape(4, 10), -np.arange(40, dtype=np.float32)
    sent = own.lists(batch[0][2:3], batch[1].reshape(4, 10)[2:3], np.ones(1, np.int32))
    told._update_sample_logprobs(sent)
    batch[0][:], batch[1][:] = 0, 0
    assert told.logprobs.token_ids == [20, 21]
    assert told.logprobs.logprobs == [-20.0, -21.0]
    assert told.cumulative_logprob == -20.0


def test_positions_are_counted_and_sliced():
    held = Arrays()
    assert (len(held), held.token_ids, held.rows(3)[0].shape) == (0, [], (0, 4))
    for n in (1, 2, 1):
        held.add(np.full((n, 9), n, np.int64), np.full((n, 9), -n, np.float64), 3)
    assert len(held) == 4
    assert len(held[-3:]) == 3
    assert held[-1:].token_ids == [1] * 4
    assert held[:0].logprobs == []
    ids, logprobs = held[1:3].rows(3)
    assert (ids.dtype, logprobs.dtype) == (np.int32, np.float32)
    assert ids.tolist() == [[2] * 4] * 2
    whole = Arrays()
    whole.add(np.ones((2, 7), np.int32), np.ones((2, 7), np.float32), -1)
    assert whole.rows(6)[0].shape == (2, 7)


def changed(own: Any, method: str, make: Callable[[Any], Any]) -> Any:
    """The names of a vLLM with another method of its own; None: without it."""
    other = type("LogprobsProcessor", (own.processor,), {method: make(own.processor)})
    return replace(own, processor=other)


def test_where_the_names_are_not_there_lists_are_told_and_why(own):
    sample, prompt = METHODS

    def other_order(processor: Any) -> Any:
        def update(self: Any, sent: Any) -> None:
            getattr(processor, sample)(self, sent._replace(logprobs=sent.logprobs[:, ::-1]))

        return update

    unlike = {
        "vLLM 0.24 may have changed": replace(own, version=(0, 24)),
        "vLLM 1.0 may have changed": replace(own, version=(1, 0)),
        "is not what it was": changed(own, sample, other_order),
        "'NoneType' object is not callable": changed(own, prompt, lambda _: None),
        "'dict' has no attribute '_update_sample_logprobs'": replace(own, processor=dict),
    }
    for words, names in unlike.items():
        before = [getattr(names.processor, name, None) for name in METHODS]
        assert words in (take_over(names) or "")
        assert [getattr(names.processor, name, None) for name in METHODS] == before
    assert not is_taken()


def test_the_notice_is_a_warning(flat, monkeypatch):
    monkeypatch.setattr(arrays, "VERSIONS", ((0, 1), (0, 2)))
    told = r"taken as lists, which is slower: vLLM \d+\.\d+ may have changed"
    with pytest.warns(RuntimeWarning, match=told):
        take_arrays()
    assert not is_taken()


def test_taking_over_twice_is_taking_over_once(own):
    before = [getattr(own.processor, name) for name in METHODS]
    assert take_over(own) is None
    assert take_over(own) is None
    hand_back(own)
    hand_back(own)
    assert [getattr(own.processor, name) for name in METHODS] == before
