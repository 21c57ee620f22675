"""Engines against each other and against transformers: real tiny models, nothing mocked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from factory.decoding import Generate
from factory.engines import Engine, EngineOptions, Request, Result, decode, open_engine
from factory.errors import EngineError
from factory.manifest import Prompt
from factory.prompting.prompts import Prompter
from tests.models import CONTEXT, TEMPLATE, pairs

K = 5
LIMIT = 12


@pytest.fixture(scope="session")
def requests(tiny_tokenizer) -> list[Request]:
    prompter = Prompter(tiny_tokenizer, Prompt(template=TEMPLATE))
    _, encoded = prompter.encode([{"source": source} for source, _ in pairs(40, 200)])
    return [Request(str(i), ids, LIMIT if i % 3 else 4) for i, ids in enumerate(encoded)]


@pytest.fixture(scope="session")
def engines(tiny_llama) -> dict[str, Engine]:
    options = EngineOptions(str(tiny_llama), k=K, generate=Generate(window=16))
    return {name: open_engine(name, options) for name in ("transformers", "vllm")}


@pytest.fixture(scope="session")
def results(engines, requests) -> dict[str, dict[str, Result]]:
    return {
        name: {result.key: result for result in decode(engine, requests, window=16)}
        for name, engine in engines.items()
    }


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_greedy_is_what_transformers_generates(name, results, requests, tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    for request in requests:
        prompt = torch.tensor([request.prompt_ids])
        expected = model.generate(prompt, do_sample=False, max_new_tokens=request.max_new_tokens)[
            0, prompt.shape[1] :
        ].tolist()
        [hypothesis] = results[name][request.key].hypotheses
        assert hypothesis.token_ids.tolist() == expected
        ended = expected[-1] == model.config.eos_token_id
        assert hypothesis.finish_reason == ("stop" if ended else "length")


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_logprobs_are_the_models_own_at_every_position(name, results, requests, tiny_llama):
    """The end-of-sequence row included; over the full vocabulary, at T = 1."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    for request in requests:
        [hypothesis] = results[name][request.key].hypotheses
        joined = torch.tensor([request.prompt_ids + hypothesis.token_ids.tolist()])
        with torch.inference_mode():
            logits = model(joined).logits[0, len(request.prompt_ids) - 1 : -1]
        logprobs = logits.double().log_softmax(-1)
        top = logprobs.topk(K, dim=-1)
        realised = logprobs.gather(-1, joined[0, len(request.prompt_ids) :, None])[:, 0]
        np.testing.assert_allclose(hypothesis.token_logprobs, realised.numpy(), atol=1e-4)
        np.testing.assert_allclose(hypothesis.topk_logprobs, top.values.numpy(), atol=1e-4)
        assert hypothesis.topk_ids.shape == (len(hypothesis.token_ids), K)
        assert (hypothesis.topk_ids == top.indices.numpy()).mean() > 0.98  # ties may swap


def test_both_ends_occur(results):
    """The comparison means something: some rows end by themselves, some are cut."""
    reasons = {r.hypotheses[0].finish_reason for r in results["vllm"].values()}
    assert reasons == {"stop", "length"}


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_a_prompt_that_does_not_fit_is_a_result_with_an_error(name, engines):
    unfit = [Request("long", [1] * CONTEXT, 5), Request("empty", [], 5), Request("fits", [1, 7], 2)]
    found = {result.key: result for result in decode(engines[name], unfit, window=4)}
    assert (
        found["long"].error == f"prompt of {CONTEXT} tokens does not fit the context of {CONTEXT}"
    )
    assert found["empty"].error == "the prompt is empty"
    assert found["fits"].error is None
    assert len(found["fits"].hypotheses[0].token_ids) <= 2


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_the_context_bounds_the_target(name, engines):
    [result] = decode(engines[name], [Request("edge", [1] * (CONTEXT - 3), 50)], window=4)
    assert 1 <= len(result.hypotheses[0].token_ids) <= 3


def test_what_the_engine_refuses_comes_back_as_a_result(engines, tiny_tokenizer):
    """An id beyond the vocabulary: vLLM raises, the job must go on."""
    beyond = [Request("beyond", [len(tiny_tokenizer) + 1000], 4), Request("fits", [1, 7], 2)]
    found = {result.key: result for result in decode(engines["vllm"], beyond, window=4)}
    assert "vocab" in found["beyond"].error.lower()
    assert found["fits"].hypotheses


def test_the_window_bounds_what_is_inside(requests):
    """However many requests there are, `window` at most are in the engine, and none is lost."""

    class Counting:
        context, encoder_decoder = None, False

        def __init__(self):
            self.inside, self.most = [], 0

        @property
        def unfinished(self):
            return len(self.inside)

        def submit(self, request):
            self.inside.append(request)
            self.most = max(self.most, len(self.inside))

        def step(self):
            return [Result(self.inside.pop(0).key, [])]

    engine = Counting()
    keys = [result.key for result in decode(engine, requests, window=3)]
    assert keys == [request.key for request in requests]
    assert engine.most == 3


def test_encoder_decoder_greedy_is_what_transformers_generates(tiny_t5, requests):
    engine = open_engine("transformers", EngineOptions(str(tiny_t5), k=K))
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval()
    for result in decode(engine, requests[:12], window=12):
        request = requests[int(result.key)]
        out = model.generate(
            torch.tensor([request.prompt_ids]),
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
        )
        assert result.hypotheses[0].token_ids.tolist() == out[0, 1:].tolist()
        assert (np.diff(result.hypotheses[0].topk_logprobs, axis=1) <= 0).all()


@pytest.mark.parametrize(
    ("name", "options", "remedy"),
    [
        ("transformers", {"options": {"beams": 3}}, "takes batch_size alone"),
        ("vllm", {"options": {"max_modle_len": 3}}, "refuses it"),
        ("vlm", {}, "did you mean 'vllm'?"),
    ],
)
def test_engines_refuse_in_one_line(name, options, remedy, tiny_llama: Path):
    with pytest.raises(EngineError, match="(?s)" + remedy.replace("?", r"\?")) as raised:
        open_engine(name, EngineOptions(str(tiny_llama), **options))
    assert "\n" not in str(raised.value)
