"""What is captured of distributions, out of real models: draws, nuclei, any vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from factory.capture import Logits
from factory.decoding import Generate
from factory.distributions.precision import restored
from factory.engines import (
    Engine,
    EngineOptions,
    Hypothesis,
    Request,
    Result,
    decode,
    drawing,
    open_engine,
    scoring,
)
from factory.engines.base import Drawn
from factory.generation.hypotheses import logits_table, ranked
from factory.generation.score import _tables as scored_tables
from factory.pipeline import run_steps
from factory.reading import load_manifest
from factory.schemas import LOGITS
from tests.engines import opened_vllm, results
from tests.factory.engines.test_transformers_engine import load, plain_logprobs
from tests.factory.generation.test_generate import rows
from tests.models import manifest_tree, write_corpus, write_manifest_file

DRAWS = 30
HUGE = 270_000
PROMPTS = [[5, 6], [7, 8, 9, 10, 11], [30], [12, 40, 9], [9, 9, 9, 9], [50, 60, 70]]


def opened(folder: Path, *, k: int = 0, draws: int = DRAWS, batch: int = 4, **told: Any) -> Engine:
    options = {"batch_size": batch}
    asked = EngineOptions(str(folder), k=k, draws=draws, generate=Generate(**told), options=options)
    return open_engine("transformers", asked)


def asked(*seeds: int) -> list[Request]:
    return [
        Request(str(i), prompt, 3 + i, seeds, capture_seed=1000 + i)
        for i, prompt in enumerate(PROMPTS)
    ]


def found(engine: Engine, requests: list[Request]) -> dict[str, list[Hypothesis]]:
    told = {result.key: result.hypotheses for result in decode(engine, requests, 16)}
    assert all(told.values())
    return told


def as_lists(hypothesis: Hypothesis) -> list[list[int]]:
    drawn = hypothesis.drawn
    assert drawn is not None
    return [drawn.widths.tolist(), drawn.ids.tolist(), drawn.counts.tolist()]


def positions(hypothesis: Hypothesis) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ids, counts and log-probabilities of each position."""
    drawn = hypothesis.drawn
    assert drawn is not None
    assert len(drawn.widths) == len(hypothesis.token_ids)
    ends = np.cumsum(drawn.widths)[:-1]
    split = (np.split(column, ends) for column in (drawn.ids, drawn.counts, drawn.logprobs))
    return list(zip(*split, strict=True))


@pytest.mark.parametrize(
    "told",
    [{}, {"decoding": "beam", "beam_width": 3, "num_return": 3}, {"decoding": "sample"}],
    ids=["greedy", "beam", "sample"],
)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_draws_are_true_and_hang_on_their_own_row_alone(name, told, request):
    folder = request.getfixturevalue(f"tiny_{name}")
    model, requests = load(folder), asked(11, 12)
    together = found(opened(folder, **told), requests)
    alone = found(opened(folder, batch=1, **told), requests[::-1])
    seen = set()
    for request in requests:
        for hypothesis, other in zip(together[request.key], alone[request.key], strict=True):
            assert as_lists(hypothesis) == as_lists(other)
            assert hypothesis.topk_ids is None
            whole = plain_logprobs(model, request.prompt_ids, hypothesis.token_ids.tolist())
            for row, (ids, counts, logprobs) in zip(whole, positions(hypothesis), strict=True):
                assert counts.sum() == DRAWS
                assert counts.min() >= 1
                np.testing.assert_allclose(logprobs, row[torch.from_numpy(ids).long()], atol=1e-4)
                assert (np.diff(logprobs) <= 0).all()
                assert len(set(ids)) == len(ids)
            seen.add(str(as_lists(hypothesis)))
    assert len(seen) == sum(map(len, together.values()))


def test_a_given_target_is_drawn_from_as_a_decoded_one(tiny_llama):
    """And with another seed otherwise."""
    engine, requests = opened(tiny_llama), asked()
    first = found(engine, requests)
    given = [first[r.key][0].token_ids.tolist() for r in requests]
    for seed in (1000, 5000):
        again = [
            Request(r.key, r.prompt_ids, 1, target_ids=ids, capture_seed=seed + i)
            for i, (r, ids) in enumerate(zip(requests, given, strict=True))
        ]
        second = found(engine, again)
        same = [as_lists(first[r.key][0]) == as_lists(second[r.key][0]) for r in requests]
        assert set(same) == {seed == 1000}


def test_portions_of_whatever_size_draw_the_same(tiny_llama, monkeypatch):
    whole = found(opened(tiny_llama), asked())
    monkeypatch.setattr(scoring, "SCORED_VALUES", 400 * 5)
    monkeypatch.setattr(drawing, "DRAWN_VALUES", 400 * 2)
    engine, sizes, inverse = opened(tiny_llama), [], drawing._inverse

    def watched(logprobs: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        sizes.append(logprobs.numel())
        return inverse(logprobs, points)

    monkeypatch.setattr(drawing, "_inverse", watched)
    assert {key: as_lists(h) for key, [h] in found(engine, asked()).items()} == {
        key: as_lists(h) for key, [h] in whole.items()
    }
    assert max(sizes) == 400 * 2


def test_draws_follow_the_full_distribution(tiny_llama):
    """χ² of 20,000 draws after one prompt; a right engine fails one seed set in 10,000."""
    count = 20_000
    engine = opened(tiny_llama, draws=count)
    [hypothesis] = found(engine, [Request("a", [5, 6], 1, capture_seed=3)])["a"]
    [(ids, counts, _)] = positions(hypothesis)
    p = plain_logprobs(load(tiny_llama), [5, 6], hypothesis.token_ids.tolist())[0].exp().numpy()
    seen = np.zeros(len(p))
    seen[ids] = counts
    common = p * count >= 5
    observed = np.append(seen[common], seen[~common].sum())
    wanted = np.append(p[common], p[~common].sum()) * count
    distance = torch.tensor(((observed - wanted) ** 2 / wanted).sum())
    freedom = torch.tensor(len(wanted) - 1.0, dtype=torch.float64)
    assert len(wanted) > 10
    assert torch.special.gammaincc(freedom / 2, distance / 2) > 1e-4


# Rows


def nuclear(length: int) -> Hypothesis:
    """Four tokens a position, of 1/2, 1/4, 1/8 and 1/16; the last position of 1/4 each."""
    logprobs = np.tile(-np.log(2) * np.arange(1, 5), (length, 1)).astype(np.float32)
    logprobs[length - 1 :] = -np.log(4)
    ids = np.arange(4 * length, dtype=np.int32).reshape(length, 4)
    tokens = np.arange(length, dtype=np.int32)
    return Hypothesis(tokens, logprobs[:, 0].copy(), "stop", ids, logprobs)


def drawing_of(counts: list[list[int]]) -> Hypothesis:
    """At each position tokens 0, 1, 2 … of 1/2, 1/4, 1/8 …, with these counts."""
    widths = np.array([len(row) for row in counts], np.int32)
    ids = np.array([i for row in counts for i in range(len(row))], np.int32)
    logprobs = (-np.log(2) * (ids + 1)).astype(np.float32)
    flat = np.array([count for row in counts for count in row], np.int32)
    tokens = np.arange(len(counts), dtype=np.int32)
    drawn = Drawn(widths, ids, flat, logprobs)
    return Hypothesis(tokens, np.zeros(len(counts), np.float32), "stop", drawn=drawn)


def table_of(*hypotheses: Hypothesis, p: float | None = None) -> list[dict[str, Any]]:
    names = [str(i) for i in range(len(hypotheses))]
    told = [Result(name, [h]) for name, h in zip(names, hypotheses, strict=True)]
    table = logits_table(ranked(names, [0] * len(names), told), p)
    assert table.schema.equals(LOGITS)
    return table.to_pylist()


def test_rows_of_nuclei_are_ragged():
    first, second, none = table_of(nuclear(3), nuclear(1), nuclear(0), p=0.7)
    assert [row["k"] for row in (first, second, none)] == [None] * 3
    assert [row["widths"] for row in (first, second, none)] == [[2, 2, 3], [3], []]
    assert first["topk_ids"] == [0, 1, 4, 5, 8, 9, 10]
    assert second["topk_ids"] == [0, 1, 2]
    halves, quarter = [-np.log(2), -np.log(4)], -np.log(4)
    assert first["topk_logprobs"] == pytest.approx([*halves * 2, *[quarter] * 3])
    assert first["tail_logprob"] == pytest.approx([-np.log(4)] * 3)
    assert (none["topk_ids"], none["topk_logprobs"], none["tail_logprob"]) == ([], [], [])
    assert all(row[name] is None for row in (first, none) for name in ("counts", "draws"))


def test_rows_of_draws_are_ragged_and_counted():
    first, none, second = table_of(
        drawing_of([[6, 1], [7], [1, 1, 5]]), drawing_of([]), drawing_of([[3, 4]])
    )
    assert [row["widths"] for row in (first, none, second)] == [[2, 1, 3], [], [2]]
    assert [row["counts"] for row in (first, none, second)] == [[6, 1, 7, 1, 1, 5], [], [3, 4]]
    assert [row["k"] for row in (first, none, second)] == [None] * 3
    assert [row["draws"] for row in (first, none, second)] == [7] * 3
    assert first["topk_ids"] == [0, 1, 0, 0, 1, 2]
    assert first["tail_logprob"] == pytest.approx([-np.log(4), -np.log(2), -np.log(8)])
    assert second["tail_logprob"] == pytest.approx([-np.log(4)])


def test_scored_targets_are_kept_as_decoded_ones():
    place = {"sample_id": "0", "prompt_hash": 0, "rank": 0}
    asked = Logits(capture="top_p", p=0.7, k=4, precision="exact")
    [table] = scored_tables([place], [Result("0", [nuclear(3)])], "gold", asked)
    [row], [expected] = restored(table).to_pylist(), table_of(nuclear(3), p=0.7)
    assert row == expected | {"origin": "gold"}


# A vocabulary past 2^18


@pytest.fixture(scope="module")
def huge(tiny_tokenizer, tmp_path_factory) -> Path:
    """A folder: a Llama of 270,000 ids, whose head is padded far beyond its tokenizer."""
    config = LlamaConfig(
        vocab_size=HUGE, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=32, max_position_embeddings=64,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("huge")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(17)
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.lm_head.weight, std=0.4)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_vocabulary_past_two_to_the_eighteenth(engine, huge):
    """The top k, the realised token and the tail, against one whole forward pass."""
    k, prompts = 64, [[5, 6, 7], [8], [9, 10]]
    requests = [Request(str(i), prompt, 6) for i, prompt in enumerate(prompts)]
    made = opened_vllm(huge, k) if engine == "vllm" else opened(huge, k=k, draws=0)
    told = results(made, requests)
    table = logits_table(ranked("012", [0, 1, 2], [told[r.key] for r in requests])).to_pylist()
    model = AutoModelForCausalLM.from_pretrained(huge).eval()
    largest = 0
    for request, row in zip(requests, table, strict=True):
        whole = plain_logprobs(model, request.prompt_ids, row["token_ids"])
        best = whole.topk(k, dim=-1)
        places = torch.arange(len(row["token_ids"]))
        realised = whole[places, torch.tensor(row["token_ids"])]
        np.testing.assert_allclose(row["token_logprobs"], realised, atol=1e-4)
        tops = np.reshape(row["topk_logprobs"], (-1, k))
        np.testing.assert_allclose(tops, best.values, atol=1e-4)
        at_ids = whole.gather(-1, torch.tensor(row["topk_ids"]).reshape(-1, k))
        np.testing.assert_allclose(tops, at_ids, atol=1e-4)
        rest = whole.scatter(-1, best.indices, -torch.inf).logsumexp(-1)
        np.testing.assert_allclose(row["tail_logprob"], rest, atol=1e-4)
        largest = max(largest, *row["topk_ids"])
    assert largest > 262_144


def test_draws_from_a_vocabulary_past_two_to_the_eighteenth(huge):
    requests = [Request(str(i), [5 + i], 4, capture_seed=i) for i in range(3)]
    told = found(opened(huge, draws=200), requests)
    model = AutoModelForCausalLM.from_pretrained(huge).eval()
    largest = 0
    for request in requests:
        [hypothesis] = told[request.key]
        whole = plain_logprobs(model, request.prompt_ids, hypothesis.token_ids.tolist())
        for row, (ids, counts, logprobs) in zip(whole, positions(hypothesis), strict=True):
            assert counts.sum() == 200
            np.testing.assert_allclose(logprobs, row[torch.from_numpy(ids).long()], atol=1e-4)
            largest = max(largest, *ids)
    assert largest > 262_144


# Through a whole run


def run_of(folder: Path, teacher: Path, **logits: Any) -> list[tuple[Any, ...]]:
    """The rows of the view, each with its prompt."""
    data = write_corpus(folder, train=12, validation=0, test=0)
    tree = manifest_tree(folder, teacher, data=data, logits=logits | {"precision": "exact"})
    del tree["student"]
    manifest = load_manifest(write_manifest_file(folder / "manifest.yaml", tree))
    columns = (
        "prompt, token_ids, k, widths, topk_ids, topk_logprobs, tail_logprob, counts, draws "
        "FROM logits JOIN samples USING (sample_id)"
    )
    return rows(run_steps(folder / "run", manifest, ("generate",)).root, f"SELECT {columns}")


def wholes(teacher: Path, tokenizer: Any, found: list[tuple[Any, ...]]) -> Iterator[Any]:
    """Probabilities of every position of every row: float64 [n, vocabulary]."""
    model = load(teacher)
    for prompt, token_ids, *_ in found:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        yield plain_logprobs(model, ids, token_ids).exp().numpy()


def test_a_run_keeps_draws(tiny_llama, tiny_tokenizer, tmp_path):
    found = run_of(tmp_path, tiny_llama, capture="sampled", draws=7)
    assert len(found) == 12
    for whole, row in zip(wholes(tiny_llama, tiny_tokenizer, found), found, strict=True):
        _, _, k, widths, ids, logprobs, tail, counts, draws = row
        assert (k, draws, len(widths), len(tail)) == (None, 7, len(whole), len(whole))
        assert sum(widths) == len(ids) == len(logprobs) == len(counts)
        starts = np.cumsum(widths) - widths
        assert np.add.reduceat(counts, starts).tolist() == [7] * len(whole)
        places = np.repeat(np.arange(len(whole)), widths)
        np.testing.assert_allclose(np.exp(logprobs), whole[places, ids], atol=1e-5)
        held = np.add.reduceat(whole[places, ids], starts)
        np.testing.assert_allclose(np.exp(tail), 1 - held, atol=1e-5)


def test_a_run_keeps_the_nucleus_of_the_top_k(tiny_llama, tiny_tokenizer, tmp_path):
    found = run_of(tmp_path, tiny_llama, capture="top_p", p=0.9, k=3)
    seen: set[int] = set()
    for whole, row in zip(wholes(tiny_llama, tiny_tokenizer, found), found, strict=True):
        _, _, k, widths, ids, logprobs, tail, counts, draws = row
        assert (k, counts, draws) == (None, None, None)
        order = np.argsort(-whole, axis=1)[:, :3]
        mass = np.cumsum(np.take_along_axis(whole, order, axis=1), axis=1)
        assert widths == np.minimum(3, 1 + (mass < 0.9).sum(axis=1)).tolist()
        kept = np.arange(3) < np.array(widths)[:, None]
        assert ids == order[kept].tolist()
        places = np.repeat(np.arange(len(whole)), widths)
        np.testing.assert_allclose(np.exp(logprobs), whole[places, ids], atol=1e-5)
        held = mass[np.arange(len(whole)), np.array(widths) - 1]
        np.testing.assert_allclose(np.exp(tail), 1 - held, atol=1e-5)
        seen |= set(widths)
    assert seen == {1, 2, 3}
