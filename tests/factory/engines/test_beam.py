"""The beam search by itself: against every sequence there is, a plain reference, transformers."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from factory.beam import Row, Rules, Search
from factory.decoding import Generate
from factory.manifest import Prompt
from factory.prompting.prompts import Prompter
from tests.models import TEMPLATE, pairs


@dataclass(frozen=True)
class Toy:
    """A distribution after every prefix, drawn from the prefix itself; some tokens are favoured."""

    seed: int
    vocabulary: int
    sharpness: float = 2.0
    favoured: tuple[int, ...] = ()
    favour: float = 0.0

    def logprobs(self, prefix) -> np.ndarray:
        drawn = np.random.default_rng([self.seed, *prefix]).normal(size=self.vocabulary)
        logits = self.sharpness * drawn
        logits[list(self.favoured)] += self.favour
        return logits - np.logaddexp.reduce(logits)

    def row(self, prefix, width: int) -> Row:
        logprobs = self.logprobs(prefix)
        best = np.argsort(-logprobs, kind="stable")[:width]
        return Row(best.tolist(), logprobs[best].tolist())


def searched(toy: Toy, rules: Rules, limit: int, order: random.Random | None = None):
    """A search run to its end; `order` gives rows one at a time, in any order."""
    search = Search(rules, limit)
    while not search.done:
        while wanted := search.wanted():
            for beam in wanted if order is None else [order.choice(wanted)]:
                beam.row = toy.row(beam.prefix(), rules.row_width)
        search.advance()
    return search


def told(search: Search):
    return [(h.beam.prefix(), pytest.approx(h.score), h.finish_reason) for h in search.hypotheses]


def ended(search: Search):
    """All it knows at its end, more than it returns: a rule that is off shows here first."""
    finished = [(h.beam.prefix(), pytest.approx(h.score), h.finish_reason) for h in search.finished]
    return search.length, finished


def reference(toy: Toy, rules: Rules, limit: int):
    """Hugging Face's rules, written down plainly over whole distributions."""
    width, ends = rules.width, rules.ends
    live, finished = [((), 0.0)], []
    for length in range(1, limit + 1):
        children = [
            ((*prefix, token), total + logprob)
            for prefix, total in live
            for token, logprob in enumerate(toy.logprobs(prefix))
            if not (token in ends and length - 1 < rules.min_new_tokens)
        ]
        children.sort(key=lambda child: -child[1])
        children = children[: max(2, 1 + len(ends)) * width]
        hits = [child[0][-1] in ends or length == limit for child in children]
        live = [child for child, hit in zip(children, hits, strict=True) if not hit][:width]
        for (prefix, total), hit in list(zip(children, hits, strict=True))[:width]:
            if hit:
                finished.append((prefix, total / length**rules.length_penalty))
        finished = sorted(finished, key=lambda f: -f[1])[:width]
        if not live:
            break
        if len(finished) == width:
            never = rules.early_stopping == "never" and rules.length_penalty > 0
            hoped = live[0][1] / (limit if never else length) ** rules.length_penalty
            if rules.early_stopping is True or hoped <= finished[-1][1]:
                break
    return length, [
        (list(prefix), score, "stop" if prefix[-1] in ends else "length")
        for prefix, score in finished
    ]


@st.composite
def settings_of_a_search(draw):
    width, vocabulary = draw(st.integers(1, 5)), draw(st.integers(2, 12))
    ends = draw(st.sets(st.integers(0, vocabulary - 1), min_size=1, max_size=3))
    rules = Rules(
        width=width,
        ends=frozenset(ends),
        num_return=draw(st.integers(1, width)),
        length_penalty=draw(st.sampled_from([1.0, 0.0, 0.6, 2.0, -1.0])),
        early_stopping=draw(st.sampled_from([True, False, "never"])),
        min_new_tokens=draw(st.sampled_from([0, 0, 1, 4])),
    )
    sharpness, favour = draw(st.floats(0.2, 4.0)), draw(st.floats(-2.0, 3.0))
    toy = Toy(draw(st.integers(0, 2**32)), vocabulary, sharpness, tuple(ends), favour)
    return toy, rules, draw(st.integers(1, 12))


@settings(deadline=None, max_examples=400)
@given(settings_of_a_search())
def test_it_is_the_plain_reference(case):
    search = searched(*case)
    assert ended(search) == reference(*case)
    assert search.hypotheses == search.finished[: case[1].num_return]


@settings(deadline=None, max_examples=200)
@given(settings_of_a_search(), st.randoms(use_true_random=False))
def test_the_order_in_which_rows_come_changes_nothing(case, order):
    """Nor which rows are never asked for: lazy expansion is exact."""
    plain, search = searched(*case), searched(*case, order=order)
    assert ended(search) == ended(plain)
    assert [h.score for h in search.hypotheses] == [h.score for h in plain.hypotheses]


def test_a_beam_below_the_children_known_is_not_expanded():
    search = Search(Rules(width=2, ends=frozenset({9})), 5)
    [root] = search.wanted()
    root.row = Row([1, 2, 9], [-0.1, -3.0, -4.0])
    search.advance()
    first, second = search.wanted()
    assert (first.prefix(), second.prefix()) == ([1], [2])
    first.row = Row([3, 9, 4], [-0.7, -0.8, -2.9])  # a bound of -3.0, for the end does not live on
    assert search.wanted() == [second]
    first.row = Row([3, 4, 9], [-0.7, -0.8, -2.9])
    assert search.wanted() == []
    search.advance()
    assert [beam.prefix() for beam in search.live] == [[1, 3], [1, 4]]


def test_every_beam_counts_while_there_are_fewer_children_than_the_beam_is_wide():
    search = Search(Rules(width=3, ends=frozenset({0})), 5)
    search.wanted()[0].row = Row([1, 2, 0], [-0.1, -9.0, -12.0])
    search.advance()
    first, second = search.wanted()
    first.row = Row([1, 2, 0], [-0.1, -0.2, -9.0])
    assert search.wanted() == [second]


def test_a_width_of_one_ends_where_greedy_decoding_does():
    generate = Generate(decoding="beam", beam_width=1, early_stopping="never")
    search = Search(Rules.of(generate, frozenset({9})), 5)
    for row in (Row([1, 9], [-0.1, -3.0]), Row([9, 1], [-0.5, -0.9])):
        search.wanted()[0].row = row
        search.advance()
    assert told(search) == [([1, 9], -0.3, "stop")]


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.0, 1.0, 1.5, -0.5]),
    st.sampled_from([True, False, "never"]),
    st.integers(1, 5),
)
def test_a_beam_wide_enough_finds_every_sequence(seed, penalty, early_stopping, limit):
    """Two tokens and an end: the hypotheses are all there are, in the order of their scores."""
    toy, end, width = Toy(seed, 3), 2, 200
    rules = Rules(width, frozenset({end}), width, penalty, early_stopping)
    search = searched(toy, rules, limit)
    expected = {}
    for length in range(1, limit + 1):
        for body in itertools.product((0, 1), repeat=length - 1):
            for last in (0, 1, end) if length == limit else (end,):
                ids = (*body, last)
                total = sum(toy.logprobs(ids[:i])[token] for i, token in enumerate(ids))
                expected[ids] = total / length**penalty
    found = {tuple(h.beam.prefix()): h.score for h in search.hypotheses}
    assert found == pytest.approx(expected)
    scores = [h.score for h in search.hypotheses]
    assert scores == sorted(scores, reverse=True)


def test_equal_scores_do_not_depend_on_what_came_first():
    """Every distribution is uniform: all ties, and each must fall the same way."""
    rules = Rules(width=3, ends=frozenset({0}), num_return=3)
    plain = searched(Toy(1, 9, 0.0), rules, 4)
    for seed in range(20):
        search = searched(Toy(1, 9, 0.0), rules, 4, random.Random(seed))
        assert told(search) == told(plain)


def test_a_certain_token_is_not_lost_to_the_bound():
    """A child of log-probability 0 scores as its parent, which stands at the bound itself."""
    rules = Rules(width=1, ends=frozenset({9}))
    search = Search(rules, 3)
    while not search.done:
        for beam in search.wanted():
            beam.row = Row([4, 9], [0.0, -math.inf])
        search.advance()
    assert told(search) == [([4, 4, 4], 0.0, "length")]


def test_advancing_without_what_is_wanted_is_a_mistake():
    with pytest.raises(AssertionError, match="rows are wanting"):
        Search(Rules(2, frozenset({0})), 4).advance()


def test_the_rules_are_the_manifests():
    generate = Generate(
        decoding="beam",
        beam_width=5,
        num_return=3,
        length_penalty=0.5,
        early_stopping="never",
        min_new_tokens=2,
    )
    expected = Rules(5, frozenset({2, 7}), 3, 0.5, "never", 2)
    assert Rules.of(generate, frozenset({2, 7})) == expected
    assert expected.row_width == 7


@pytest.fixture(scope="module")
def model(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer):
    prompter = Prompter(tiny_tokenizer, Prompt(template=TEMPLATE))
    return prompter.encode([{"source": source} for source, _ in pairs(3, 300)])[1]


@pytest.mark.parametrize("more", [(), (77, 120)], ids=["one-end", "three-ends"])
@pytest.mark.parametrize("width", [2, 4, 7])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_it_is_what_transformers_generates(model, prompts, early_stopping, penalty, width, more):
    ends = frozenset({model.config.eos_token_id, *more})
    rules = Rules(width, ends, width, penalty, early_stopping, 3 if more else 0)
    for limit, prompt in zip((3, 7, 14), prompts, strict=True):
        expected = generated(model, prompt, rules, limit)
        search = with_model(model, prompt, rules, limit)
        found = [(h.beam.prefix(), pytest.approx(h.score, abs=1e-4)) for h in search.hypotheses]
        assert found == expected


def with_model(model, prompt, rules, limit):
    search = Search(rules, limit)
    while not search.done:
        while wanted := search.wanted():
            ids = torch.tensor([prompt + beam.prefix() for beam in wanted])
            with torch.inference_mode():
                rows = model(ids).logits[:, -1].log_softmax(-1).topk(rules.row_width)
            for beam, logprobs, best in zip(wanted, *map(torch.Tensor.tolist, rows), strict=True):
                beam.row = Row(best, logprobs)
        search.advance()
    return search


def generated(model, prompt, rules, limit):
    """Hypotheses of `generate`, padding cut off, with the scores it tells."""
    out = model.generate(
        torch.tensor([prompt]),
        do_sample=False,
        num_beams=rules.width,
        num_return_sequences=rules.width,
        length_penalty=rules.length_penalty,
        early_stopping=rules.early_stopping,
        max_new_tokens=limit,
        min_new_tokens=rules.min_new_tokens or None,
        eos_token_id=sorted(rules.ends),
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    texts = [ids[len(prompt) :] for ids in out.sequences.tolist()]
    cut = [
        ids[: next((i + 1 for i, token in enumerate(ids) if token in rules.ends), limit)]
        for ids in texts
    ]
    return list(zip(cut, out.sequences_scores.tolist(), strict=True))
