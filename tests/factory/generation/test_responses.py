"""What a response says: reasoning cut off with all its values, stop strings, stray tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from factory.decoding import Generate
from factory.engines import Hypothesis, Result
from factory.engines.base import Drawn
from factory.generation.hypotheses import candidate_table, logits_table, ranked
from factory.generation.responses import Responses
from tests.models import THOUGHT

REMOVE = {"reasoning": "remove"}


def responses(tokenizer: Any, **generate: Any) -> Responses:
    return Responses(tokenizer, Generate.model_validate(generate))


def said(
    tokenizer: Any, text: str, finish: str = "stop", logprob: float = -0.5, k: int = 2
) -> Hypothesis:
    """A hypothesis of a text as the tokenizer reads it, special tokens too; values tell places."""
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    places = np.arange(len(ids), dtype=np.float32)
    tops = np.stack([places] * k, axis=1)
    logprobs = np.full(len(ids), logprob, np.float32)
    return Hypothesis(ids, logprobs, finish, tops.astype(np.int32), -1 - tops, seed=3)


def table(tokenizer: Any, hypotheses: list[Hypothesis], **generate: Any) -> list[dict[str, Any]]:
    reader = responses(tokenizer, **generate)
    rows = ranked(["x"], [1], [Result("0", hypotheses)], 1.0, reader)
    found: list[dict[str, Any]] = candidate_table(rows, reader).to_pylist()
    return found


def test_reasoning_is_cut_off_with_all_its_values(chat_tokenizer):
    whole = said(chat_tokenizer, THOUGHT + "le roi<|im_end|>")
    answer, cut = responses(chat_tokenizer, **REMOVE).answer(whole)
    n = len(cut)
    assert chat_tokenizer.decode(cut) == THOUGHT
    assert chat_tokenizer.decode(answer.token_ids) == "le roi<|im_end|>"
    for name in ("token_ids", "token_logprobs", "topk_ids", "topk_logprobs"):
        np.testing.assert_array_equal(getattr(answer, name), getattr(whole, name)[n:])
    assert (answer.finish_reason, answer.seed) == ("stop", 3)
    assert answer.sum_logprob == pytest.approx(-0.5 * (len(whole.token_ids) - n))


def test_reasoning_kept_is_not_looked_at(chat_tokenizer):
    whole = said(chat_tokenizer, THOUGHT + "le roi<|im_end|>")
    assert responses(chat_tokenizer).answer(whole) == (whole, None)
    [row] = table(chat_tokenizer, [whole])
    assert (row["text"], row["reasoning"], row["reasoning_ids"]) == (THOUGHT + "le roi", None, None)


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("<think>a</think>b</think>  c<|im_end|>", "  c", "<think>a</think>b</think> "),
        ("<think>a</think>\n\n \nc", "c", "<think>a</think>\n\n \n"),
        ("c<|im_end|>", "c", None),
        ("<think>a", "<think>a", None),
        ("<think>a</think>", "", "<think>a</think>"),
        ("<think>a</think>\n<|im_end|>", "", "<think>a</think>\n"),
        ("", "", None),
    ],
)
def test_where_the_cut_is(chat_tokenizer, text, answer, reasoning):
    [row] = table(chat_tokenizer, [said(chat_tokenizer, text)], **REMOVE)
    # Blanks in front of a word share its token: they are no blank tokens.
    assert (row["text"].strip(), row["reasoning"]) == (answer.strip(), reasoning)
    ids = chat_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (row["reasoning_ids"] or []) + row["token_ids"] == ids


@pytest.mark.parametrize("end", ["###", "== answer:", "</reasoning>", "é!", "end. "])
@pytest.mark.parametrize("gap", ["", " ", "\n\n"])
def test_an_end_of_several_tokens(chat_tokenizer, end, gap):
    text = f"voit{end}roi{end}{gap}le roi<|im_end|>"
    options = REMOVE | {"reasoning_end": end}
    [row] = table(chat_tokenizer, [said(chat_tokenizer, text)], **options)
    assert row["text"].strip() == "le roi"
    assert row["reasoning"].strip() == f"voit{end}roi{end}".strip()


def test_an_end_inside_a_token_that_says_more(tiny_tokenizer):
    """Cutting would take a part of the answer along: the thought stays in sight."""
    whole = said(tiny_tokenizer, "voit")
    first = tiny_tokenizer.decode(whole.token_ids[:1])
    assert len(first) > 1
    options = REMOVE | {"reasoning_end": first[:-1]}
    [row] = table(tiny_tokenizer, [whole], **options)
    assert (row["text"], row["reasoning"]) == ("voit", None)


def test_scores_and_ranks_count_what_is_left(chat_tokenizer):
    """A long thought neither helps nor harms; an answer that is all thought comes last."""
    thinking = said(chat_tokenizer, "<think>" + "a " * 20 + "</think>le<|im_end|>", logprob=-0.1)
    thinking.token_logprobs[-2:] = -3.0
    plain = said(chat_tokenizer, "le<|im_end|>", logprob=-2.0)
    nothing = said(chat_tokenizer, "<think>a</think>", "length", logprob=-0.01)
    rows = table(chat_tokenizer, [nothing, thinking, plain], **REMOVE)
    assert [row["ordinal"] for row in rows] == [2, 1, 0]
    assert [row["score"] for row in rows] == [-2.0, -3.0, None]
    assert [row["n_tokens"] for row in rows] == [2, 2, 0]
    assert [row["mean_logprob"] for row in rows] == [-2.0, -3.0, None]
    assert [row["sum_logprob"] for row in rows] == [-4.0, -6.0, 0.0]
    assert [row["duplicate_of"] for row in rows] == [None, 0, None]
    assert rows[2]["text"] == ""


def test_distributions_are_cut_alike(chat_tokenizer):
    whole = said(chat_tokenizer, THOUGHT + "le roi<|im_end|>")
    nothing = said(chat_tokenizer, "<think></think>", "length")
    reader = responses(chat_tokenizer, **REMOVE)
    rows = ranked(["x", "y"], [1, 2], [Result("0", [whole]), Result("1", [nothing])], 1.0, reader)
    kept, empty = logits_table(rows).to_pylist()
    [row, _] = candidate_table(rows, reader).to_pylist()
    first = len(row["reasoning_ids"])
    assert kept["token_ids"] == row["token_ids"]
    assert kept["topk_ids"] == np.repeat(np.arange(first, len(whole.token_ids)), 2).tolist()
    assert len(kept["tail_logprob"]) == kept["n_tokens"] == row["n_tokens"]
    assert (empty["n_tokens"], empty["topk_ids"], empty["tail_logprob"]) == (0, [], [])


def test_draws_are_cut_alike(chat_tokenizer):
    """Position i drew i + 1 tokens, each of them twice."""
    whole = said(chat_tokenizer, "<think>a</think>le<|im_end|>")
    n = len(whole.token_ids)
    widths = np.arange(1, n + 1, dtype=np.int32)
    ids = np.repeat(np.arange(n), widths).astype(np.int32)
    drawn = Drawn(widths, ids, np.full(len(ids), 2, np.int32), np.full(len(ids), -9, np.float32))
    answer, cut = responses(chat_tokenizer, **REMOVE).answer(replace(whole, drawn=drawn))
    first = len(cut)
    assert 0 < first < n
    assert answer.drawn.widths.tolist() == list(range(first + 1, n + 1))
    assert answer.drawn.ids.tolist() == ids[ids >= first].tolist()
    assert answer.drawn.counts.shape == answer.drawn.logprobs.shape == answer.drawn.ids.shape


def test_a_sum_told_in_one_piece_is_unknown_after_a_cut(chat_tokenizer):
    ids = said(chat_tokenizer, THOUGHT + "le").token_ids
    answer, _ = responses(chat_tokenizer, **REMOVE).answer(
        Hypothesis(ids, None, "stop", told_sum=-4.0)
    )
    assert answer.token_logprobs is None
    assert np.isnan(answer.sum_logprob)


PIECES = ["<think>", "</think>", "le ", "roi", "\n", " ", "é", "😀", "<", "</thin", "k>"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
def test_nothing_is_lost_and_no_end_stays(chat_tokenizer: PreTrainedTokenizerFast, text: str):
    whole = said(chat_tokenizer, text)
    answer, cut = responses(chat_tokenizer, **REMOVE).answer(whole)
    joined = [*(cut if cut is not None else []), *answer.token_ids]
    assert joined == whole.token_ids.tolist()
    assert "</think>" not in chat_tokenizer.decode(answer.token_ids)
    assert (cut is None) == ("</think>" not in text)
    if cut is not None:
        assert chat_tokenizer.decode(cut).rstrip().endswith("</think>")


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (["###"], "le "),
        (["q", "roi"], "le ### "),
        (["roi", "###"], "le "),
        (["zz"], "le ### roi"),
        (["le"], ""),
    ],
)
def test_text_ends_at_the_first_stop_string(chat_tokenizer, stop, text):
    [row] = table(chat_tokenizer, [said(chat_tokenizer, "le ### roi<|im_end|>")], stop=stop)
    assert row["text"] == text
    assert row["n_tokens"] == len(said(chat_tokenizer, "le ### roi<|im_end|>").token_ids)


@pytest.mark.parametrize(
    ("text", "finish", "count", "shown"),
    [
        ("le roi<|im_end|>", "stop", 0, "le roi"),
        ("le roi", "length", 0, "le roi"),
        ("le<|im_end|>roi<|im_end|>", "stop", 1, "leroi"),
        ("le<|im_end|>", "length", 1, "le"),
        ("le<|endoftext|><|im_start|> roi<|im_end|>", "stop", 2, "le roi"),
        ("<|im_start|>le<|im_end|>", "stop", 0, "le"),  # the start token, where it stands
        ("<|im_start|><|im_start|>le<|im_end|>", "stop", 1, "le"),
        ("<think>le<|im_end|>", "stop", 0, "<think>le"),  # in sight: the signal reads it there
        ("<|im_end|>", "stop", 0, ""),
    ],
)
def test_control_tokens_inside(chat_tokenizer, text, finish, count, shown):
    [row] = table(chat_tokenizer, [said(chat_tokenizer, text, finish)])
    assert (row["control_tokens"], row["text"]) == (count, shown)


def test_a_forced_first_token_is_meant(chat_tokenizer):
    [row] = table(
        chat_tokenizer,
        [said(chat_tokenizer, "<|endoftext|>le<|im_end|>")],
        first_token="<|endoftext|>",
    )
    assert row["control_tokens"] == 0


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        ({"reasoning_end": "</think>"}, "reasoning 'keep' ignores reasoning_end"),
        (REMOVE | {"reasoning_end": ""}, "at least 1 character"),
        ({"stop": ["a", ""]}, "at least 1 character"),
    ],
)
def test_keys_that_cannot_be(generate, message):
    with pytest.raises(ValidationError, match=message):
        Generate.model_validate(generate)
