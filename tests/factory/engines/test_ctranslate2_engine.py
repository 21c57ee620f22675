"""CTranslate2 against transformers: the same models, real conversions, nothing mocked."""

from __future__ import annotations

import gzip
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from factory.decoding import Generate
from factory.engines import ABILITIES, Engine, EngineOptions, Request, Result, decode, open_engine
from factory.engines.conversion import RECORD
from factory.errors import EngineError, ManifestError
from factory.manifest import Prompt
from factory.prompting.prompts import Prompter
from factory.prompting.tokenizing import load_tokenizer
from tests.models import TEMPLATE, pairs

pytest.importorskip("ctranslate2")

LIMIT = 12
VOCABULARY = 96
SHARED = Path(__file__).parents[4] / "shared"
TEACHER = SHARED / "teachers" / "multi30k-en-fr-seq2seq"
SENTENCES = SHARED / "data" / "multi30k" / "test_2016_flickr.en.gz"


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("converted")


@pytest.fixture(scope="session")
def requests(tiny_tokenizer) -> list[Request]:
    prompter = Prompter(tiny_tokenizer, Prompt(template=TEMPLATE))
    _, encoded = prompter.encode([{"source": source} for source, _ in pairs(24, 200)])
    return [Request(str(i), ids, LIMIT if i % 3 else 4) for i, ids in enumerate(encoded)]


@pytest.fixture(params=["tiny_t5", "tiny_llama"])
def model(request) -> Path:
    return request.getfixturevalue(request.param)


def opened(model: Path, cache: Path | None, options: Any = None, **generate: Any) -> Engine:
    asked = Generate(**generate)
    place = str(cache) if cache else None
    return open_engine(
        "ctranslate2", EngineOptions(str(model), generate=asked, options=options, cache=place)
    )


def decoded(engine: Engine, requests: list[Request], window: int = 64) -> list[Result]:
    found = {result.key: result for result in decode(engine, requests, window)}
    return [found[request.key] for request in requests]


def original(folder: Path) -> Any:
    encoder_decoder = json.loads((folder / "config.json").read_text()).get("is_encoder_decoder")
    kind = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    return kind.from_pretrained(folder).eval()


def generated(model: Any, request: Request, **options: Any) -> list[list[int]]:
    """What `generate` gives for a row alone, up to the end token."""
    prompt = torch.tensor([request.prompt_ids])
    told = {"do_sample": False, "max_new_tokens": request.max_new_tokens} | options
    with torch.inference_mode():
        rows = model.generate(prompt, attention_mask=torch.ones_like(prompt), **told).tolist()
    start = 1 if model.config.is_encoder_decoder else len(request.prompt_ids)
    return [cut(row[start:], model.generation_config.eos_token_id) for row in rows]


def cut(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def logprobs(model: Any, prompt: list[int], target: list[int]) -> np.ndarray:
    """Teacher-forced, over the full vocabulary at T = 1."""
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            start = torch.tensor([[model.generation_config.decoder_start_token_id, *target[:-1]]])
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=start).logits[0]
        else:
            logits = model(input_ids=torch.tensor([prompt + target[:-1]])).logits[0]
    rows = logits[-len(target) :].double().log_softmax(-1)
    return rows.gather(-1, torch.tensor(target)[:, None])[:, 0].numpy()


def ids_of(result: Result) -> list[list[int]]:
    assert result.error is None
    return [hypothesis.token_ids.tolist() for hypothesis in result.hypotheses]


def sums(result: Result) -> list[float]:
    return [hypothesis.sum_logprob for hypothesis in result.hypotheses]


def test_greedy_is_what_transformers_generates(model, cache, requests):
    reference = original(model)
    for request, result in zip(requests, decoded(opened(model, cache), requests), strict=True):
        [ids] = ids_of(result)
        assert [ids] == generated(reference, request)
        [hypothesis] = result.hypotheses
        ended = ids[-1] == reference.generation_config.eos_token_id
        assert hypothesis.finish_reason == ("stop" if ended else "length")
        assert hypothesis.token_logprobs is None
        expected = logprobs(reference, request.prompt_ids, ids).sum()
        assert hypothesis.sum_logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
def test_beams_are_what_transformers_generates(length_penalty, model, cache, requests):
    reference = original(model)
    asked = {"length_penalty": length_penalty, "early_stopping": True}
    engine = opened(model, cache, decoding="beam", num_return=1, **asked)
    results = decoded(engine, requests)
    same = 0
    for request, result in zip(requests, results, strict=True):
        same += ids_of(result) == generated(reference, request, num_beams=4, **asked)
        expected = [logprobs(reference, request.prompt_ids, ids).sum() for ids in ids_of(result)]
        assert sums(result) == pytest.approx(expected, abs=1e-4)
    assert same >= len(requests) - 1


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_a_beam_returns_all_it_is_asked_for(early_stopping, model, cache, requests):
    asked = {"decoding": "beam", "num_return": 4, "early_stopping": early_stopping}
    engine = opened(model, cache, **asked)
    for result in decoded(engine, requests):
        assert len({tuple(ids) for ids in ids_of(result)}) == 4
        scores = [h.sum_logprob / len(h.token_ids) for h in result.hypotheses]
        assert scores == sorted(scores, reverse=True)


def test_a_row_does_not_depend_on_the_rows_beside_it(model, cache, requests):
    engine = opened(model, cache, {"max_batch_tokens": 64}, decoding="beam", num_return=3)
    together = decoded(engine, requests)
    alone = decoded(engine, requests, window=1)
    backwards = decoded(engine, requests[::-1], window=7)[::-1]
    for one, two, three in zip(together, alone, backwards, strict=True):
        assert ids_of(one) == ids_of(two) == ids_of(three)
        assert sums(one) == pytest.approx(sums(two), abs=1e-4)


@pytest.mark.parametrize(
    "asked",
    [
        {"repetition_penalty": 1.5, "min_new_tokens": 11},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 11},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 10},
    ],
    ids=str,
)
def test_penalties_choose_tokens_and_leave_logprobs_alone(asked, tiny_t5, cache, requests):
    reference = original(tiny_t5)
    plain = [ids_of(result) for result in decoded(opened(tiny_t5, cache), requests)]
    results = decoded(opened(tiny_t5, cache, **asked), requests)
    assert [ids_of(result) for result in results] != plain
    for request, result in zip(requests, results, strict=True):
        least = min(asked.get("min_new_tokens", 0), request.max_new_tokens)
        expected = generated(reference, request, **asked | {"min_new_tokens": least})
        assert ids_of(result) == expected
        [hypothesis] = result.hypotheses
        forced = logprobs(reference, request.prompt_ids, expected[0])
        np.testing.assert_allclose(hypothesis.token_logprobs, forced, atol=1e-4)


def test_a_decoder_keeps_the_least_length(tiny_llama, cache, requests):
    engine = opened(tiny_llama, cache, min_new_tokens=11)
    for request, result in zip(requests, decoded(engine, requests), strict=True):
        [ids] = ids_of(result)
        assert len(ids) == request.max_new_tokens
        assert result.hypotheses[0].token_logprobs is not None


def test_stop_ids_end_a_target_and_stay_in_it(model, cache, requests):
    plain = decoded(opened(model, cache), requests)
    stop = int(plain[1].hypotheses[0].token_ids[2])
    stopped = decoded(opened(model, cache, stop_token_ids=[stop]), requests)
    for before, after in zip(plain, stopped, strict=True):
        assert ids_of(after) == [cut(ids_of(before)[0], stop)]
    assert stopped[1].hypotheses[0].token_ids[-1] == stop
    assert stopped[1].hypotheses[0].finish_reason == "stop"


@pytest.mark.parametrize("decoding", ["greedy", "beam"])
def test_a_first_token_is_forced_and_counted(decoding, tiny_t5, cache, requests):
    token = "<sep>"
    forced = load_tokenizer(str(tiny_t5)).convert_tokens_to_ids(token)
    width = 4 if decoding == "beam" else 1
    reference = original(tiny_t5)
    engine = opened(tiny_t5, cache, first_token=token, decoding=decoding)
    results = decoded(engine, requests)
    same = 0
    for request, result in zip(requests, results, strict=True):
        [ids] = ids_of(result)
        assert ids[0] == forced
        assert len(ids) <= request.max_new_tokens
        options = {"forced_bos_token_id": forced, "num_beams": width}
        same += [ids] == generated(reference, request, **options)
        expected = logprobs(reference, request.prompt_ids, ids)
        np.testing.assert_allclose(result.hypotheses[0].token_logprobs, expected, atol=1e-4)
    assert same >= len(requests) - 2


def test_targets_are_scored_between_decoded_rows(model, cache, requests):
    """Targets of every ending: the end token, another token, the end token in the middle."""
    reference = original(model)
    end = reference.generation_config.eos_token_id
    targets = [[30, 31, end], [30], [end], [30, end, 31], [*range(20, 40)]]
    prompts = [request.prompt_ids for request in requests]
    scoring = [
        Request(f"score {i}", prompts[i], 1, target_ids=ids) for i, ids in enumerate(targets)
    ]
    engine = opened(model, cache)
    results = decoded(engine, [*requests[:3], *scoring, *requests[3:]])
    assert [ids_of(result) for result in results[3:8]] == [[ids] for ids in targets]
    for request, result in zip(scoring, results[3:8], strict=True):
        [hypothesis] = result.hypotheses
        expected = logprobs(reference, request.prompt_ids, hypothesis.token_ids.tolist())
        np.testing.assert_allclose(hypothesis.token_logprobs, expected, atol=1e-4)
        assert hypothesis.topk_ids is None
        ended = hypothesis.token_ids[-1] == end
        assert hypothesis.finish_reason == ("stop" if ended else "length")


def test_every_id_is_itself(model, cache):
    """Of all ids in turn, in the prompt and in the target: what transformers makes of them."""
    reference = original(model)
    size = reference.config.vocab_size
    chunks = [list(range(first, min(first + 25, size))) for first in range(0, size, 25)]
    rows = [(chunk, other) for chunk, other in zip(chunks, chunks[1:] + chunks[:1], strict=True)]
    scoring = [Request(str(i), a, 1, target_ids=b) for i, (a, b) in enumerate(rows)]
    for (prompt, target), result in zip(rows, decoded(opened(model, cache), scoring), strict=True):
        expected = logprobs(reference, prompt, target)
        np.testing.assert_allclose(result.hypotheses[0].token_logprobs, expected, atol=1e-3)


@pytest.mark.parametrize("bad", [-1, 400, 10**6])
def test_a_row_with_a_foreign_id_fails_alone(bad, model, cache, requests):
    foreign = Request("foreign", [5, bad], LIMIT)
    target = Request("target", [5], LIMIT, target_ids=[bad])
    results = decoded(opened(model, cache), [requests[1], foreign, target, requests[2]])
    assert [result.error is None for result in results] == [True, False, False, True]
    assert results[1].error == f"token id {bad} is beyond the model's vocabulary of 400"
    [none] = decoded(opened(model, cache), [Request("none", [5], 1, target_ids=[])])
    assert none.error == "the target is empty"


def test_int8_is_close(model, cache, requests):
    reference = original(model)
    engine = opened(model, cache, {"compute_type": "int8"}, decoding="beam")
    results = decoded(engine, requests)
    differences = []
    for request, result in zip(requests, results, strict=True):
        [ids] = ids_of(result)
        expected = logprobs(reference, request.prompt_ids, ids).sum()
        differences.append(abs(sums(result)[0] - expected) / len(ids))
    assert 1e-6 < np.mean(differences) < 0.1


def test_unfinished_counts_what_is_inside(tiny_t5, cache, requests):
    engine = opened(tiny_t5, cache)
    assert engine.unfinished == 0
    for request in requests:
        engine.submit(request)
    engine.submit(Request("foreign", [4000], LIMIT))
    inside, found = len(requests) + 1, 0
    while engine.unfinished:
        found += len(engine.step())
        assert engine.unfinished == inside - found
    assert found == inside
    assert engine.step() == []


ENDS = {"vocab_size": VOCABULARY, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}
HALVES = {
    f"{half}_{name}": value
    for half in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))
} | {"d_model": 32, "max_position_embeddings": 64}
T5 = {"d_model": 32, "d_kv": 24, "d_ff": 64, "num_layers": 2, "num_heads": 2}
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 5e5}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
LAST = VOCABULARY - 1
MARIAN = {"pad_token_id": LAST, "decoder_start_token_id": LAST, "eos_token_id": 0}
ARCHITECTURES: dict[str, tuple[Any, Any]] = {
    "bart": (
        BartForConditionalGeneration,
        BartConfig(**ENDS, **HALVES, decoder_start_token_id=2, forced_bos_token_id=0),
    ),
    "mbart": (
        MBartForConditionalGeneration,
        MBartConfig(**ENDS, **HALVES, decoder_start_token_id=5, scale_embedding=True),
    ),
    "marian": (
        MarianMTModel,
        MarianConfig(**ENDS | MARIAN, **HALVES, decoder_vocab_size=VOCABULARY),
    ),
    "m2m100": (
        M2M100ForConditionalGeneration,
        M2M100Config(**ENDS, **HALVES, decoder_start_token_id=2),
    ),
    # Unlike T5 1.0 it does not scale the decoder's outputs.
    "t5 1.1": (
        T5ForConditionalGeneration,
        T5Config(**ENDS, **T5, decoder_start_token_id=1, tie_word_embeddings=False),
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**GPT2, eos_token_id=LAST, bos_token_id=LAST)),
    "llama": (LlamaForCausalLM, LlamaConfig(**ENDS, **LLAMA, **HEADS)),
}


def random_model(kind: Any, config: Any, folder: Path) -> Path:
    """A folder: a model of random weights, large enough that its outputs differ with its inputs."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(17)
        model = kind(config)
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and weight.requires_grad:
                weight.mul_(2 if "embed" in name or "shared" in name else 6)
    model.generation_config.forced_eos_token_id = None
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name, tmp_path):
    """Beams and scores of each architecture; its tokenizer is not asked for."""
    folder = random_model(*ARCHITECTURES[name], tmp_path / "model")
    reference = original(folder)
    rows = [[3 + 7 * i * j % 89 for j in range(1, 3 + i)] for i in range(1, 7)]
    requests = [Request(str(i), row, LIMIT) for i, row in enumerate(rows)]
    engine = opened(folder, tmp_path, decoding="beam", num_return=2, early_stopping=True)
    scoring = opened(folder, tmp_path)
    for request, result in zip(requests, decoded(engine, requests), strict=True):
        beams = {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True}
        assert ids_of(result) == generated(reference, request, **beams)
        target = ids_of(result)[0]
        [scored] = decoded(scoring, [Request("score", request.prompt_ids, 1, target_ids=target)])
        expected = logprobs(reference, request.prompt_ids, target)
        # Marian's pad is never produced, and here has no probability either.
        close = 0.02 if name == "marian" else 1e-4
        np.testing.assert_allclose(scored.hypotheses[0].token_logprobs, expected, atol=close)
        assert sums(result)[0] == pytest.approx(sums(scored)[0], abs=1e-4)
    engine.close()


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        (
            GPTNeoForCausalLM,
            GPTNeoConfig(
                vocab_size=9, hidden_size=8, num_layers=1, num_heads=1,
                attention_types=[[["global"], 1]],
            ),
            "No conversion is registered for the model configuration GPTNeoConfig;",
        ),
        (
            BertLMHeadModel,
            BertConfig(
                vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                is_decoder=True,
            ),
            "it generates no text;",
        ),
    ],
    ids=["gpt-neo", "bert"],
)  # fmt: skip
def test_models_it_cannot_run_are_refused_in_a_line(kind, config, reason, tmp_path):
    folder = random_model(kind, config, tmp_path / "model")
    with pytest.raises(EngineError, match="CTranslate2 cannot convert it") as caught:
        opened(folder, tmp_path / "cache")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_pickled_weights_are_not_read(tiny_t5, tmp_path):
    folder = tmp_path / "pickled"
    model = original(tiny_t5)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(EngineError, match="safetensors"):
        opened(folder, tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"beam": 4}, "teacher.options: 'beam': engine ctranslate2 takes compute_type, "),
        ({"compute_type": "int3"}, "teacher.options.compute_type: 'int3': is not to be had"),
        ({"max_batch_tokens": 0}, "teacher.options.max_batch_tokens: 0: must be a whole number"),
        ({"inter_threads": True}, "teacher.options.inter_threads: True: must be a whole number"),
        ({"intra_threads": "2"}, "teacher.options.intra_threads: '2': must be a whole number, 0"),
    ],
)
def test_options_it_does_not_take(options, told, tiny_t5, cache):
    with pytest.raises(EngineError) as caught:
        opened(tiny_t5, cache, options)
    assert str(caught.value).startswith(told)


def test_a_first_token_must_be_a_token(tiny_t5, cache):
    with pytest.raises(ManifestError, match=r"generate.first_token: 'fra_Latn': is no token"):
        opened(tiny_t5, cache, first_token="fra_Latn")


def test_its_abilities_are_as_told():
    ability = ABILITIES["ctranslate2"]
    assert ability.decodings == ("greedy", "beam")
    assert "stop" in ability.lacks
    assert not ability.captures


def copies(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


def test_a_model_is_converted_once(tiny_t5, tmp_path, requests):
    opened(tiny_t5, tmp_path).close()
    [copy] = copies(tmp_path)
    record = json.loads((copy / RECORD).read_text())
    assert copy.name.split("-") == [
        record["fingerprint"], record["compute_type"], record["ctranslate2"],
    ]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    opened(tiny_t5, tmp_path).close()
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before
    opened(tiny_t5, tmp_path, {"compute_type": "int8"}).close()
    assert len(copies(tmp_path)) == 2


def test_the_models_own_folder_is_left_alone(tiny_t5, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tiny_t5.iterdir()}
    opened(tiny_t5, tmp_path).close()
    assert {path: path.stat().st_mtime_ns for path in tiny_t5.iterdir()} == before


def test_without_a_cache_nothing_is_left(tiny_t5, tmp_path, monkeypatch, requests):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    engine = opened(tiny_t5, None)
    assert len(list(tmp_path.iterdir())) == 1
    assert decoded(engine, requests[:1])[0].error is None
    engine.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_conversion_left_is_done_again(tiny_t5, tmp_path, requests):
    opened(tiny_t5, tmp_path).close()
    [copy] = copies(tmp_path)
    half = copy.rename(copy.with_name(f"{copy.name}.building"))
    (half / RECORD).unlink()
    (half / "model.bin").write_bytes(b"half")
    engine = opened(tiny_t5, tmp_path)
    assert copies(tmp_path) == [copy]
    assert decoded(engine, requests[:1])[0].error is None


def open_and_decode(model: Path, cache: Path, barrier: Any, answers: Any) -> None:
    barrier.wait()
    [result] = decoded(opened(model, cache), [Request("a", [5, 6, 7], LIMIT)])
    answers.put(ids_of(result))


def test_processes_that_convert_at_once_agree(tiny_t5, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    arguments = (tiny_t5, tmp_path, barrier, answers)
    processes = [context.Process(target=open_and_decode, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert found[0] == found[1]
    assert len(copies(tmp_path)) == 1


@pytest.mark.parametrize("compute_type", ["float32", "int8"])
def test_a_copy_that_is_another_model_is_refused(compute_type, tiny_t5, tmp_path):
    options = {"compute_type": compute_type}
    opened(tiny_t5, tmp_path, options).close()
    [copy] = copies(tmp_path)
    record = json.loads((copy / RECORD).read_text())
    record["probe"]["logprobs"] = [value - 2 for value in record["probe"]["logprobs"]]
    (copy / RECORD).write_text(json.dumps(record))
    with pytest.raises(EngineError, match="computes another model than transformers"):
        opened(tiny_t5, tmp_path, options)


@pytest.mark.skipif(not TEACHER.is_dir(), reason="the shared teachers are not here")
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_a_real_teacher(early_stopping, cache):
    """60 real sentences, beam 4: the same as transformers, but where the search may stop later."""
    with gzip.open(SENTENCES, "rt", encoding="utf-8") as lines:
        sentences = [line.rstrip("\n") for line, _ in zip(lines, range(60), strict=False)]
    prompter = Prompter(load_tokenizer(str(TEACHER)), Prompt(template="{source}</s>"))
    _, encoded = prompter.encode([{"source": sentence} for sentence in sentences])
    requests = [Request(str(i), ids, 2 * len(ids) + 10) for i, ids in enumerate(encoded)]
    reference = original(TEACHER)
    engine = opened(TEACHER, cache, decoding="beam", early_stopping=early_stopping)
    same = 0
    for request, result in zip(requests, decoded(engine, requests), strict=True):
        options = {"num_beams": 4, "early_stopping": early_stopping}
        same += ids_of(result) == generated(reference, request, **options)
        expected = logprobs(reference, request.prompt_ids, ids_of(result)[0]).sum()
        assert sums(result)[0] == pytest.approx(expected, abs=1e-4)
    assert same >= (60 if early_stopping is True else 58)
