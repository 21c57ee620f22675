"""Held-out decoding, where ids alone are wanted: every engine writes what transformers writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.decoding import Generate
from factory.engines import Engine, EngineOptions, Request, Result, open_engine
from factory.engines.choice import installed
from factory.manifest import Prompt
from factory.prompting.prompts import Prompter
from factory.prompting.tokenizing import decode_targets
from tests.engines import opened_vllm, results
from tests.models import TEMPLATE, pairs

BEAM = {"decoding": "beam", "early_stopping": True}
OTHERS = [
    ("tiny_llama", "ctranslate2"),
    ("tiny_llama", "vllm"),
    ("tiny_t5", "ctranslate2"),
]


@pytest.fixture(scope="module")
def requests(tiny_tokenizer) -> list[Request]:
    """Limits of their own, some of which cut the target."""
    prompter = Prompter(tiny_tokenizer, Prompt(template=TEMPLATE))
    _, encoded = prompter.encode([{"source": source} for source, _ in pairs(16, 200)])
    return [Request(str(i), ids, 12 if i % 4 else 4) for i, ids in enumerate(encoded)]


def opened(name: str, model: Path, *, logprobs: bool = False, **generate: Any) -> Engine:
    if name == "vllm":
        return opened_vllm(model, logprobs=logprobs, **generate)
    asked = EngineOptions(str(model), generate=Generate(**generate), logprobs=logprobs)
    return open_engine(name, asked)


def ids_of(found: dict[str, Result]) -> dict[str, list[int]]:
    return {key: result.hypotheses[0].token_ids.tolist() for key, result in found.items()}


@pytest.mark.parametrize("search", [{}, BEAM], ids=["greedy", "beam"])
@pytest.mark.parametrize(("model", "engine"), OTHERS, ids="-".join)
def test_texts_are_those_of_transformers(
    model: str, engine: str, search: dict[str, Any], request, requests, tiny_tokenizer
):
    if engine not in installed():
        pytest.skip(f"{engine} is not installed")
    folder = request.getfixturevalue(model)
    wanted = ids_of(results(opened("transformers", folder, **search), requests))
    found = results(opened(engine, folder, **search), requests)
    assert ids_of(found) == wanted
    texts = decode_targets(tiny_tokenizer, list(wanted.values()))
    assert len(set(texts)) > len(requests) // 2  # the model says something
    ends = {result.hypotheses[0].finish_reason for result in found.values()}
    assert ends == {"stop", "length"}


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_t5"])
@pytest.mark.parametrize("search", [{}, BEAM | {"num_return": 3}], ids=["greedy", "beam"])
def test_transformers_leaves_the_scoring_out(model: str, search, request, requests):
    """The same hypotheses with the same reasons to end; a target that is given is scored still."""
    folder = request.getfixturevalue(model)
    scored = results(opened("transformers", folder, logprobs=True, **search), requests)
    engine = opened("transformers", folder, **search)
    found = results(engine, requests)
    for key, result in scored.items():
        pairs_ = zip(result.hypotheses, found[key].hypotheses, strict=True)
        for ours, bare in pairs_:
            np.testing.assert_array_equal(ours.token_ids, bare.token_ids)
            assert ours.finish_reason == bare.finish_reason
            assert bare.token_logprobs is None
    target = scored["1"].hypotheses[0]
    given = Request("1", requests[1].prompt_ids, 1, target_ids=target.token_ids.tolist())
    [told] = results(engine, [given])["1"].hypotheses
    np.testing.assert_allclose(told.token_logprobs, target.token_logprobs, atol=1e-5)
