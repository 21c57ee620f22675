"""Beam search over vLLM, on tiny models: the hypotheses and distributions of transformers."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from factory.decoding import Generate
from factory.engines import EngineOptions, Request, decode, open_engine
from factory.manifest import Prompt
from factory.prompting.prompts import Prompter
from tests.models import TEMPLATE, pairs

K = 11
WIDTH = 4
BEAM = {"decoding": "beam", "beam_width": WIDTH, "num_return": WIDTH, "window": 16}
SHARED = Path(__file__).parents[4] / "shared"
REAL = SHARED / "teachers" / "multi30k-en-fr-decoder"
SENTENCES = SHARED / "data" / "multi30k" / "test_2016_flickr.en.gz"


@pytest.fixture(scope="module")
def requests(tiny_tokenizer) -> list[Request]:
    prompter = Prompter(tiny_tokenizer, Prompt(template=TEMPLATE))
    _, encoded = prompter.encode([{"source": source} for source, _ in pairs(24, 300)])
    return [Request(str(i), ids, 14 if i % 3 else 4) for i, ids in enumerate(encoded)]


@pytest.fixture(scope="module")
def model(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


@pytest.fixture(scope="session")
def opened():
    """Opens engines and keeps them: one that is collected takes vLLM's state for all along."""
    kept = []

    def opened(model: Path, k: int = 0, options=None, **settings):
        options = {"num_gpu_blocks_override": 512} | (options or {})
        generate = Generate(**BEAM | settings)
        asked = EngineOptions(str(model), k=k, generate=generate, options=options)
        kept.append(open_engine("vllm", asked))
        return kept[-1]

    return opened


@pytest.fixture(scope="session")
def engine(opened, tiny_llama):
    return opened(tiny_llama, K)


@pytest.fixture(scope="module")
def results(engine, requests):
    return {result.key: result for result in decode(engine, requests, window=16)}


def expected(model, request, **settings):
    """What `generate` returns: ids up to the end token, and scores."""
    ends = settings.pop("eos_token_id", [model.config.eos_token_id])
    out = model.generate(
        torch.tensor([request.prompt_ids]),
        do_sample=False,
        num_beams=WIDTH,
        num_return_sequences=WIDTH,
        max_new_tokens=request.max_new_tokens,
        return_dict_in_generate=True,
        output_scores=True,
        eos_token_id=ends,
        **settings,
    )
    bodies = [ids[len(request.prompt_ids) :] for ids in out.sequences.tolist()]
    cuts = [next((i + 1 for i, t in enumerate(b) if t in ends), len(b)) for b in bodies]
    ids = [body[:cut] for body, cut in zip(bodies, cuts, strict=True)]
    return ids, out.sequences_scores.tolist()


def told(result, penalty=1.0):
    ids = [h.token_ids.tolist() for h in result.hypotheses]
    return ids, [h.sum_logprob / len(h.token_ids) ** penalty for h in result.hypotheses]


def test_hypotheses_are_those_of_transformers(results, requests, model):
    for request in requests:
        ids, scores = told(results[request.key])
        expected_ids, expected_scores = expected(model, request)
        assert ids == expected_ids
        assert scores == pytest.approx(expected_scores, abs=1e-4)


def test_every_hypothesis_says_how_it_ended(results, requests, model):
    reasons = set()
    for request in requests:
        for hypothesis in results[request.key].hypotheses:
            ended = hypothesis.token_ids[-1] == model.config.eos_token_id
            assert hypothesis.finish_reason == ("stop" if ended else "length")
            assert ended or len(hypothesis.token_ids) == request.max_new_tokens
            reasons.add(hypothesis.finish_reason)
    assert reasons == {"stop", "length"}


def test_distributions_along_every_beam_are_the_models_own(results, requests, model):
    """More tokens than the search needs, the end-of-sequence row included, at T = 1."""
    for request in requests[:8]:
        for hypothesis in results[request.key].hypotheses:
            target = hypothesis.token_ids.tolist()
            with torch.inference_mode():
                logits = model(torch.tensor([request.prompt_ids + target])).logits[0]
            logprobs = logits[len(request.prompt_ids) - 1 : -1].double().log_softmax(-1)
            realised = logprobs[torch.arange(len(target)), target]
            top = logprobs.topk(K)
            np.testing.assert_allclose(hypothesis.token_logprobs, realised, atol=1e-4)
            np.testing.assert_allclose(hypothesis.topk_logprobs, top.values, atol=1e-4)
            assert (hypothesis.topk_ids == top.indices.numpy()).mean() > 0.95  # ties may swap
            assert hypothesis.topk_ids.dtype == np.int32
            assert hypothesis.topk_logprobs.dtype == np.float32


@pytest.mark.filterwarnings("ignore:Unfeasible length")
@pytest.mark.parametrize(
    "settings",
    [
        {"early_stopping": True, "length_penalty": 0.0, "stop_token_ids": (77, 120)},
        {"early_stopping": "never", "length_penalty": 2.0, "min_new_tokens": 6},
    ],
    ids=["more-ends", "never-and-a-minimum"],
)
def test_settings_mean_what_they_mean_to_transformers(
    opened, tiny_llama, requests, model, settings
):
    engine = opened(tiny_llama, **settings)
    theirs = dict(settings)
    more = theirs.pop("stop_token_ids", ())
    for result in decode(engine, requests, window=16):
        request = requests[int(result.key)]
        ids, scores = told(result, settings["length_penalty"])
        ends = [model.config.eos_token_id, *more]
        expected_ids, expected_scores = expected(model, request, eos_token_id=ends, **theirs)
        assert ids == expected_ids
        assert scores == pytest.approx(expected_scores, abs=1e-4)
        assert result.hypotheses[0].topk_ids is None


def test_little_room_changes_nothing(opened, tiny_llama, requests, results):
    """Two sources at a time, one hypothesis asked for, and never more requests than have room."""
    little = {"max_num_seqs": 2 * WIDTH, "enable_prefix_caching": False}
    engine = opened(tiny_llama, 2, little, num_return=1)
    for request in requests:
        engine.submit(request)
    assert engine.unfinished == len(requests)
    found = {}
    while engine.unfinished:
        for result in engine.step():
            found[result.key] = result
        assert engine._engine.get_num_unfinished_requests() <= 2 * WIDTH
    for key, result in found.items():
        [hypothesis] = result.hypotheses
        assert hypothesis.token_ids.tolist() == results[key].hypotheses[0].token_ids.tolist()
        assert hypothesis.topk_ids.shape == (len(hypothesis.token_ids), 2)
    assert found.keys() == results.keys()


def test_nothing_is_left_running(engine, results):
    assert engine.step() == []
    assert engine._engine.get_num_unfinished_requests() == 0


def test_targets_are_scored_beside_the_searches(engine, requests, results, model):
    """The keys of rollouts are numbers: a target whose key is one is not mistaken for them."""
    target = results["1"].hypotheses[2]
    asked = Request("3", requests[1].prompt_ids, 20, target_ids=target.token_ids.tolist())
    searches = [Request(f"s{r.key}", r.prompt_ids, r.max_new_tokens) for r in requests[:8]]
    found = {r.key: r for r in decode(engine, [*searches[:4], asked, *searches[4:]], window=16)}
    [scored] = found["3"].hypotheses
    np.testing.assert_allclose(scored.token_logprobs, target.token_logprobs, atol=1e-4)
    np.testing.assert_allclose(scored.topk_logprobs, target.topk_logprobs, atol=1e-4)
    for search in searches:
        assert told(found[search.key])[0] == told(results[search.key[1:]])[0]


def test_what_vllm_refuses_is_one_result_with_an_error(engine, requests, results):
    beyond = Request("beyond", [100_000], 4)
    found = {r.key: r for r in decode(engine, [requests[0], beyond, requests[1]], window=16)}
    assert "vocab" in found["beyond"].error.lower()
    assert found["beyond"].hypotheses == []
    assert told(found["0"]) == told(results["0"])
    assert told(found["1"])[0] == told(results["1"])[0]


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the teacher is not here")
def test_real_sentences_have_the_beams_of_transformers(opened):
    """500 sentences: the same best hypothesis, or one whose score is the same to 1e-4."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(REAL)
    with gzip.open(SENTENCES, "rt", encoding="utf-8") as lines:
        sources = [line.rstrip("\n") for _, line in zip(range(500), lines, strict=False)]
    _, encoded = Prompter(tokenizer, Prompt(template=TEMPLATE)).encode(
        [{"source": source} for source in sources]
    )
    requests = [Request(str(i), ids, 64) for i, ids in enumerate(encoded)]
    real = AutoModelForCausalLM.from_pretrained(REAL, dtype=torch.float32).eval()
    engine = opened(REAL)
    same = 0
    for result in decode(engine, requests, window=64):
        ids, scores = told(result)
        expected_ids, expected_scores = expected(real, requests[int(result.key)])
        same += ids[0] == expected_ids[0]
        assert scores[0] == pytest.approx(expected_scores[0], abs=1e-4)
    assert same >= 0.99 * len(requests)
