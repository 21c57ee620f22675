"""Engine transformers over every kind of architecture: tiny models with random weights.

The oracle is each row alone: `generate`, or one plain forward pass, without batch or padding.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from factory.decoding import Generate
from factory.engines import Engine, EngineOptions, Request, decode, open_engine, scoring
from factory.errors import EngineError, UserError
from tests.models import CONTEXT

VOCABULARY = 40
BOS, PAD, EOS, START = 0, 1, 2, 3
K = 5
IDS = {"bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS, "vocab_size": VOCABULARY}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
         "max_position_embeddings": CONTEXT}  # fmt: skip
TWO_SIDES = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
             "max_position_embeddings": CONTEXT}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": SIZES,
    "Qwen3": SIZES | {"tie_word_embeddings": True},
    "Gemma2": SIZES | {"final_logit_softcapping": 2.0, "sliding_window": 8, "pad_token_id": EOS},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, "pad_token_id": None},
    "T5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
           "decoder_start_token_id": PAD},
    "Bart": TWO_SIDES | {"decoder_start_token_id": EOS, "forced_bos_token_id": BOS,
                         "forced_eos_token_id": EOS},
    "MBart": TWO_SIDES | {"decoder_start_token_id": START, "forced_eos_token_id": EOS},
    "Marian": TWO_SIDES | {"decoder_start_token_id": PAD, "forced_eos_token_id": None},
    "M2M100": TWO_SIDES | {"decoder_start_token_id": EOS},
}  # fmt: skip
CAUSAL = ["Llama", "Qwen3", "Gemma2", "GPT2"]
LIMITS = (3, 7, 12, 5)


def tiny_model(name: str) -> Any:
    """A model of that architecture whose weights are large enough to have opinions."""
    config = getattr(transformers, f"{name}Config")(**(IDS | CONFIGS[name]))
    kind = {"T5": "ForConditionalGeneration", "Marian": "MTModel", "GPT2": "LMHeadModel"}
    suffix = kind.get(name, "ForCausalLM" if name in CAUSAL else "ForConditionalGeneration")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        model = getattr(transformers, name + suffix)(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.5)
    if name == "Marian":
        model.generation_config.bad_words_ids = [[PAD]]
        model.final_logits_bias.normal_(generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name in CONFIGS:
        made[name] = tmp_path_factory.mktemp(name)
        tiny_model(name).save_pretrained(made[name])
    return made


def load(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = "Seq2SeqLM" if config.is_encoder_decoder else "CausalLM"
    return getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder).eval()


def prompts(count: int, *, seed: int = 3) -> list[list[int]]:
    rng = random.Random(seed)
    sizes = [rng.randint(1, 20) for _ in range(count)]
    return [[rng.randrange(START, VOCABULARY) for _ in range(size)] for size in sizes]


def rows(count: int, **fields: Any) -> list[Request]:
    return [
        Request(str(i), ids, LIMITS[i % len(LIMITS)], **fields)
        for i, ids in enumerate(prompts(count))
    ]


def opened(folder: Path, *, k: int = 0, batch: int = 6, **generate: Any) -> Engine:
    options = {"batch_size": batch}
    asked = EngineOptions(str(folder), k=k, generate=Generate(**generate), options=options)
    return open_engine("transformers", asked)


def run(engine: Engine, requests: list[Request], window: int = 16) -> dict[str, Any]:
    found = {result.key: result for result in decode(engine, requests, window)}
    assert sorted(found) == sorted(request.key for request in requests)
    return found


def targets(found: dict[str, Any], key: str) -> list[list[int]]:
    return [hypothesis.token_ids.tolist() for hypothesis in found[key].hypotheses]


def alone(model: Any, request: Request, **values: Any) -> list[list[int]]:
    """What `generate` makes of one row, without what stands before and behind its targets."""
    prompt = torch.tensor([request.prompt_ids])
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        **values,
    )
    start = 1 if model.config.is_encoder_decoder else prompt.shape[1]
    return [_until_end(row) for row in out[:, start:].tolist()]


def _until_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def plain_logprobs(model: Any, prompt: list[int], target: list[int]) -> torch.Tensor:
    """Log-probabilities [n, vocabulary] along a target, from one whole forward pass."""
    with torch.inference_mode():
        if not model.config.is_encoder_decoder:
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        else:
            shifted = [model.generation_config.decoder_start_token_id, *target[:-1]]
            logits = model(
                torch.tensor([prompt]), decoder_input_ids=torch.tensor([shifted])
            ).logits[0]
    return logits.double().log_softmax(-1)


def assert_scored(model: Any, request: Request, hypothesis: Any) -> None:
    """The stored figures are those of one plain forward pass."""
    ids = hypothesis.token_ids.tolist()
    logprobs = plain_logprobs(model, request.prompt_ids, ids)
    realised = logprobs[torch.arange(len(ids)), torch.tensor(ids)]
    top = logprobs.topk(K, dim=-1)
    np.testing.assert_allclose(hypothesis.token_logprobs, realised, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(hypothesis.topk_logprobs, top.values, rtol=1e-5, atol=1e-5)
    assert hypothesis.topk_ids.tolist() == top.indices.tolist()
    assert hypothesis.topk_ids.dtype == np.int32


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_and_its_distributions_are_those_of_each_row_alone(name, folders):
    requests, model = rows(12), load(folders[name])
    found = run(opened(folders[name], k=K), requests)
    for request in requests:
        assert targets(found, request.key) == alone(model, request)
        assert_scored(model, request, found[request.key].hypotheses[0])


@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_beam_is_that_of_each_row_alone_whatever_the_others_limits(name, early, folders):
    requests, model = rows(10), load(folders[name])
    shape = {"num_beams": 3, "num_return_sequences": 3, "early_stopping": early}
    penalty = {True: 0.0, False: 1.0, "never": 2.0}[early]
    engine = opened(
        folders[name],
        decoding="beam",
        beam_width=3,
        num_return=3,
        early_stopping=early,
        length_penalty=penalty,
    )
    found = run(engine, requests)
    for request in requests:
        expected = alone(model, request, length_penalty=penalty, **shape)
        assert targets(found, request.key) == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_given_targets_are_scored_as_one_forward_pass_scores_them(name, folders, monkeypatch):
    """In portions of a few positions, of which no logits are larger than the bound."""
    bound = VOCABULARY * 10
    monkeypatch.setattr(scoring, "SCORED_VALUES", bound)
    given = prompts(14, seed=5)
    requests = [
        Request(str(i), ids, 1, target_ids=given[-1 - i]) for i, ids in enumerate(prompts(14))
    ]
    engine, model = opened(folders[name], k=K, batch=4), load(folders[name])
    sizes = []
    engine._model.register_forward_hook(lambda _m, _i, out: sizes.append(out.logits.numel()))
    found = run(engine, requests)
    for request in requests:
        [hypothesis] = found[request.key].hypotheses
        assert hypothesis.token_ids.tolist() == request.target_ids
        assert hypothesis.finish_reason == "length"
        assert_scored(model, request, hypothesis)
    assert max(sizes) <= bound
    assert len(sizes) > len(requests)


def test_the_bound_holds_where_one_position_of_a_batch_is_beyond_it(folders, monkeypatch):
    monkeypatch.setattr(scoring, "SCORED_VALUES", VOCABULARY * 2)
    engine = opened(folders["Bart"], k=K, batch=6)
    sizes = []
    engine._model.register_forward_hook(lambda _m, _i, out: sizes.append(out.logits.numel()))
    run(engine, [Request(str(i), [5, 6], 1, target_ids=[7, 8, EOS]) for i in range(6)])
    assert max(sizes) == VOCABULARY * 2


@pytest.mark.parametrize(("name", "context"), [("GPT2", CONTEXT), ("T5", None), ("Bart", CONTEXT)])
def test_the_context_is_the_models(name, context, folders):
    engine = opened(folders[name])
    assert engine.context == context
    found = run(engine, [Request("long", [5] * CONTEXT, 3), Request("edge", [5] * 62, 90)])
    assert (found["long"].error is not None) == (name == "GPT2")
    assert len(targets(found, "edge")[0]) <= (2 if name == "GPT2" else 90)


def test_both_kinds_of_request_share_the_queue(folders):
    """Steps are of one kind; a decoded target scored anew gets the same figures and reason."""
    engine = opened(folders["Llama"], k=K, batch=4)
    requests = rows(20)
    first = run(engine, requests)
    again = [
        Request(f"score {r.key}", r.prompt_ids, 1, target_ids=targets(first, r.key)[0])
        for r in requests
    ]
    both = run(engine, [request for pair in zip(again, requests, strict=True) for request in pair])
    for request in requests:
        [decoded] = both[request.key].hypotheses
        [scored] = both[f"score {request.key}"].hypotheses
        assert decoded.token_ids.tolist() == scored.token_ids.tolist()
        np.testing.assert_allclose(
            decoded.token_logprobs, scored.token_logprobs, rtol=1e-5, atol=1e-5
        )
        assert decoded.finish_reason == scored.finish_reason
    reasons = Counter(r.hypotheses[0].finish_reason for r in both.values())
    assert set(reasons) == {"stop", "length"}


def test_finish_reasons_are_those_of_the_last_token(folders):
    for name in ("GPT2", "T5", "Marian"):
        engine = opened(folders[name], decoding="beam", beam_width=4, num_return=4)
        for result in run(engine, rows(20)).values():
            for hypothesis in result.hypotheses:
                ids = hypothesis.token_ids.tolist()
                assert EOS not in ids[:-1]
                assert hypothesis.finish_reason == ("stop" if ids[-1] == EOS else "length")


def test_an_end_that_the_model_forces_at_its_limit_is_a_cut(folders):
    found = run(opened(folders["Bart"]), rows(12))
    reasons = Counter()
    for request in rows(12):
        [hypothesis] = found[request.key].hypotheses
        assert hypothesis.token_ids[-1] == EOS
        cut = len(hypothesis.token_ids) == request.max_new_tokens
        assert hypothesis.finish_reason == ("length" if cut else "stop")
        reasons[hypothesis.finish_reason] += 1
    assert reasons["length"]


# Sampling


def draws(folder: Path, requests: list[Request], *, batch: int, **generate: Any) -> dict[str, Any]:
    return run(opened(folder, batch=batch, decoding="sample", **generate), requests)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bart", "T5"])
def test_a_draw_depends_on_its_seed_and_prompt_alone(name, folders):
    """Batch size, order, and which draws stand together leave every target as it is."""
    together = [
        Request(str(i), ids, 8, seeds=(100 + i, 2**62 + i, 7)) for i, ids in enumerate(prompts(9))
    ]
    one_by_one = [
        Request(f"{r.key} {place}", r.prompt_ids, 8, seeds=(seed,))
        for r in reversed(together)
        for place, seed in enumerate(r.seeds)
    ]
    filters = {"temperature": 1.3, "top_p": 0.95, "min_p": 0.001}
    found = draws(folders[name], together, batch=5, num_return=3, **filters)
    single = draws(folders[name], one_by_one, batch=1, **filters)
    for request in together:
        expected = [targets(single, f"{request.key} {place}")[0] for place in range(3)]
        assert targets(found, request.key) == expected
        assert [h.seed for h in found[request.key].hypotheses] == list(request.seeds)
    distinct = {tuple(ids) for r in together for ids in targets(found, r.key)}
    assert len(distinct) > len(together)


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 2.0, "top_k": 4},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"epsilon": 0.05},
    ],
    ids=str,
)
def test_draws_are_distributed_as_the_filtered_softmax(filters, folders):
    """χ² over the first token of 2,000 draws; a right sampler fails one seed set in 10,000."""
    prompt, count = [9, 8, 30], 2000
    request = Request("p", prompt, 1, seeds=tuple(range(count)))
    found = draws(folders["Gemma2"], [request], batch=500, num_return=count, **filters)
    seen = Counter(ids[0] for ids in targets(found, "p"))
    model = load(folders["Gemma2"])
    whole = plain_logprobs(model, prompt, [0])[0].exp()
    expected = [count * share for share in filtered(whole, **filters)]
    assert set(seen) <= {i for i in range(VOCABULARY) if expected[i] > 0}
    common = [i for i in range(VOCABULARY) if expected[i] >= 5]
    observed = [seen[i] for i in common] + [count - sum(seen[i] for i in common)]
    wanted = [expected[i] for i in common] + [count - sum(expected[i] for i in common)]
    pairs = [(o, w) for o, w in zip(observed, wanted, strict=True) if w > 1e-6]
    distance = sum((o - w) ** 2 / w for o, w in pairs)
    freedom, distance = torch.tensor([len(pairs) - 1.0, distance], dtype=torch.float64)
    assert torch.special.gammaincc(freedom / 2, distance / 2) > 1e-4


def filtered(
    p: torch.Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    epsilon: float = 0.0,
) -> list[float]:
    """The filters, written out."""
    p = p ** (1 / temperature)
    p = p / p.sum()
    order = p.argsort(descending=True)
    if top_k:
        p[order[top_k:]] = 0
    if top_p < 1:
        before = p[order].cumsum(0) - p[order]
        p[order[before >= top_p]] = 0
    p[p < min_p * p.max()] = 0
    p[p < epsilon] = 0
    return (p / p.sum()).tolist()


def test_stored_logprobs_of_a_draw_are_of_the_whole_distribution(folders):
    requests = [Request(str(i), ids, 6, seeds=(i,)) for i, ids in enumerate(prompts(8))]
    engine = opened(folders["Qwen3"], k=K, decoding="sample", temperature=0.5, top_k=2)
    found, model = run(engine, requests), load(folders["Qwen3"])
    for request in requests:
        assert_scored(model, request, found[request.key].hypotheses[0])


# Penalties, lengths, ends


@pytest.mark.parametrize("name", ["Gemma2", "GPT2", "Bart", "T5"])
@pytest.mark.parametrize("beams", [1, 3])
def test_penalties_do_not_see_padding(name, beams, folders):
    """In Gemma2 and GPT2 here padding is the end token, which a penalty would then hold back."""
    values = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 2}
    shape = {"decoding": "beam", "beam_width": beams} if beams > 1 else {}
    requests, model = rows(12), load(folders[name])
    found = run(opened(folders[name], **shape, **values), requests)
    for request in requests:
        assert targets(found, request.key) == alone(model, request, num_beams=beams, **values)
        lengths = [len(ids) for ids in targets(found, request.key)]
        assert min(lengths) >= 2


def test_more_end_tokens(folders):
    """The end is the first of any of them."""
    extra = (11, 12, 13)
    plain = run(opened(folders["Llama"]), rows(12))
    found = run(opened(folders["Llama"], stop_token_ids=extra), rows(12))
    shorter = 0
    for request in rows(12):
        [whole], [ids] = targets(plain, request.key), targets(found, request.key)
        end = next((i + 1 for i, token in enumerate(whole) if token in extra), len(whole))
        assert ids == whole[:end]
        stopped = ids[-1] in (EOS, *extra)
        assert found[request.key].hypotheses[0].finish_reason == ("stop" if stopped else "length")
        shorter += end < len(whole)
    assert shorter


DECODINGS = [{}, {"decoding": "beam", "beam_width": 3, "num_return": 3}, {"decoding": "sample"}]


@pytest.mark.parametrize("decoding", DECODINGS, ids=["greedy", "beam", "sample"])
def test_stop_strings_end_a_target_with_the_token_that_completes_them(
    decoding, tiny_llama, tiny_tokenizer
):
    ids = [tiny_tokenizer(f"<s>{text}<sep>")["input_ids"] for text in ("a dog sees", "the cat")]
    requests = [Request(str(i), p, 12, seeds=(i,)) for i, p in enumerate(ids * 3)]
    engine = opened(tiny_llama, stop=("i", "ou"), **decoding)
    reasons = Counter()
    for result in run(engine, requests).values():
        for hypothesis in result.hypotheses:
            target = hypothesis.token_ids.tolist()
            before, whole = (tiny_tokenizer.decode(t) for t in (target[:-1], target))
            assert not any(string in before for string in ("i", "ou"))
            stopped = target[-1] == tiny_tokenizer.eos_token_id or "i" in whole or "ou" in whole
            assert hypothesis.finish_reason == ("stop" if stopped else "length")
            reasons["i" in whole or "ou" in whole] += 1
    assert reasons[True]


def test_stop_strings_wait_for_the_least_length(tiny_llama, tiny_tokenizer):
    request = Request("p", tiny_tokenizer("<s>a dog sees<sep>")["input_ids"], 12)
    early = run(opened(tiny_llama, stop=("n",)), [request])
    late = run(opened(tiny_llama, stop=("n",), min_new_tokens=6), [request])
    assert len(targets(early, "p")[0]) < 6 <= len(targets(late, "p")[0])


@pytest.fixture(scope="session")
def spoken(tiny_tokenizer, tmp_path_factory) -> dict[str, Path]:
    """The NLLB architecture, and a causal one, with a tokenizer."""
    made = {}
    for name in ("M2M100", "Llama"):
        made[name] = tmp_path_factory.mktemp(f"spoken-{name}")
        sizes = {"vocab_size": len(tiny_tokenizer)}
        config = getattr(transformers, f"{name}Config")(**(IDS | CONFIGS[name] | sizes))
        kind = "ForCausalLM" if name == "Llama" else "ForConditionalGeneration"
        torch.manual_seed(3)
        getattr(transformers, name + kind)(config).save_pretrained(made[name])
        tiny_tokenizer.save_pretrained(made[name])
    return made


@pytest.mark.parametrize("decoding", DECODINGS, ids=["greedy", "beam", "sample"])
@pytest.mark.parametrize("name", ["M2M100", "Llama"])
def test_the_first_token_is_forced_and_stands_in_the_target(name, decoding, spoken, tiny_tokenizer):
    first = tiny_tokenizer.get_vocab()["<sep>"]
    engine = opened(spoken[name], k=K, first_token="<sep>", **decoding)
    requests = rows(8, seeds=(5,))
    found, model = run(engine, requests), load(spoken[name])
    for request in requests:
        for hypothesis in found[request.key].hypotheses:
            assert hypothesis.token_ids[0] == first
            np.testing.assert_allclose(
                hypothesis.token_logprobs[0],
                plain_logprobs(model, request.prompt_ids, [first])[0, first],
                atol=1e-5,
            )
        if name == "M2M100" and decoding.get("decoding") != "sample":
            beams = decoding.get("beam_width", 1)
            shape = {"num_beams": beams, "num_return_sequences": beams}
            assert targets(found, request.key) == alone(
                model, request, forced_bos_token_id=first, **shape
            )


def test_a_beam_gives_what_it_finds(spoken):
    """One forced token and no more: there is one target, however wide the beam."""
    engine = opened(spoken["M2M100"], first_token="<sep>", decoding="beam", num_return=4)
    found = run(engine, [Request("p", [5, 6], 1), Request("q", [5, 6], 4)])
    assert len(found["p"].hypotheses) == 1
    assert len(found["q"].hypotheses) == 4


# What must not decide, and what is refused


@pytest.mark.parametrize("name", ["Llama", "Bart"])
def test_a_checkpoints_own_decoding_never_decides(name, folders, tmp_path):
    model = load(folders[name])
    habits = {"no_repeat_ngram_size": 1, "min_length": 9, "num_beams": 3, "length_penalty": 3.0,
              "early_stopping": True, "max_length": 10, "repetition_penalty": 3.0,
              "temperature": 0.1, "top_p": 0.2, "top_k": 1, "do_sample": True}  # fmt: skip
    for key, value in habits.items():
        setattr(model.generation_config, key, value)
    model.save_pretrained(tmp_path)
    for decoding in ({}, {"decoding": "beam", "beam_width": 2}, {"decoding": "sample"}):
        requests = rows(8, seeds=(4,))
        plain = run(opened(folders[name], **decoding), requests)
        found = run(opened(tmp_path, **decoding), requests)
        for request in requests:
            assert targets(found, request.key) == targets(plain, request.key)


@pytest.mark.parametrize("name", ["Llama", "T5"])
def test_a_row_at_fault_is_a_result_and_the_others_go_on(name, folders):
    wrong = [
        Request("prompt", [5, VOCABULARY], 3),
        Request("negative", [-1, 5], 3),
        Request("target", [5], 1, target_ids=[6, VOCABULARY + 7]),
        Request("empty", [5], 1, target_ids=[]),
    ]
    found = run(opened(folders[name]), [*wrong, *rows(3)])
    assert f"{VOCABULARY} is beyond the model's vocabulary" in found["prompt"].error
    assert "-1 is beyond" in found["negative"].error
    assert f"{VOCABULARY + 7} is beyond" in found["target"].error
    assert found["empty"].error == "the target is empty"
    assert all(found[str(i)].hypotheses for i in range(3))


def test_a_draw_without_a_seed_is_refused(folders):
    found = run(opened(folders["Llama"], decoding="sample"), [Request("p", [5], 3)])
    assert "seed" in found["p"].error


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({"generate": Generate(first_token="<fra>")}, "generate.first_token: '<fra>'"),
        ({"options": {"batch_size": 0}}, "teacher.options.batch_size: 0"),
        ({"options": {"batch_size": "many"}}, "teacher.options.batch_size: 'many'"),
        ({"options": {"num_beams": 3}}, "teacher.options: 'num_beams'"),
    ],
    ids=["first token", "no batch", "words", "unknown"],
)
def test_what_cannot_be_done_is_told_in_one_line(asked, place, spoken):
    with pytest.raises(UserError) as raised:
        open_engine("transformers", EngineOptions(str(spoken["M2M100"]), **asked))
    assert str(raised.value).startswith(place)
    assert "\n" not in str(raised.value)


def test_pickled_weights_are_not_read(folders, tmp_path):
    model = load(folders["Llama"])
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="cannot be loaded"):
        open_engine("transformers", EngineOptions(str(tmp_path)))
