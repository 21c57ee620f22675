"""From results to stored rows: ranks, scores, text, flat lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from factory.decoding import Generate
from factory.distributions.logits import tail_logprob
from factory.distributions.precision import stored
from factory.engines import Hypothesis, Result
from factory.generation.hypotheses import candidate_table, logits_table, ranked
from factory.generation.responses import Responses
from factory.prompting.tokenizing import encode_targets
from factory.schemas import CANDIDATES, LOGITS, STORED_LOGITS


def hypothesis(
    ids: list[int], logprobs: list[float], finish: str = "stop", k: int | None = None
) -> Hypothesis:
    """A hypothesis whose top k at position i are i·10, i·10+1, … at −1, −2, …"""
    places = np.arange(len(ids))[:, None]
    return Hypothesis(
        np.array(ids, np.int32),
        np.array(logprobs, np.float32),
        finish,
        None if k is None else (places * 10 + np.arange(k)).astype(np.int32),
        None if k is None else (-1.0 - np.arange(k) - places / 3).astype(np.float32),
    )


def test_candidates(tiny_tokenizer: Any) -> None:
    dog, cat = encode_targets(tiny_tokenizer, ["a dog", "a cat"])
    results = [
        Result("0", [hypothesis(dog, [-0.5, -0.25, -0.125])]),
        Result("1", [], "prompt of 99 tokens does not fit the context of 64"),
        Result("2", [hypothesis(cat[:-1], [-1.0, -3.0], "length")]),
    ]
    table = candidate_table(
        ranked(["x", "y", "z"], [7, 8, 9], results), Responses(tiny_tokenizer, Generate())
    )
    assert table.schema.equals(CANDIDATES)
    nothing = dict.fromkeys(CANDIDATES.names)
    assert table.to_pylist() == [
        nothing
        | {
            "sample_id": "x",
            "prompt_hash": 7,
            "rank": 0,
            "score": pytest.approx(-0.875 / 3),
            "text": "a dog",
            "token_ids": dog,
            "n_tokens": 3,
            "sum_logprob": -0.875,
            "mean_logprob": pytest.approx(-0.875 / 3),
            "finish_reason": "stop",
            "control_tokens": 0,
            "ordinal": 0,
        },
        nothing
        | {
            "sample_id": "y",
            "prompt_hash": 8,
            "rank": 0,
            "finish_reason": "error",
            "error": "prompt of 99 tokens does not fit the context of 64",
            "ordinal": 0,
        },
        nothing
        | {
            "sample_id": "z",
            "prompt_hash": 9,
            "rank": 0,
            "score": -2.0,
            "text": "a cat",
            "token_ids": cat[:-1],
            "n_tokens": 2,
            "sum_logprob": -4.0,
            "mean_logprob": -2.0,
            "finish_reason": "length",
            "control_tokens": 0,
            "ordinal": 0,
        },
    ]


def test_ranks_follow_scores_and_ties_the_order_drawn(tiny_tokenizer: Any) -> None:
    means = [-2.0, -1.0, -3.0, -1.0, -2.0]
    drawn = [hypothesis([68, 2], [mean, mean]) for mean in means]
    table = candidate_table(
        ranked(["x"], [1], [Result("0", drawn)]), Responses(tiny_tokenizer, Generate())
    )
    rows = table.select(["rank", "ordinal", "score"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (0, 1, -1.0),
        (1, 3, -1.0),
        (2, 0, -2.0),
        (3, 4, -2.0),
        (4, 2, -3.0),
    ]
    with_k = [hypothesis([68, 2], [mean, mean], k=1) for mean in means]
    logits = logits_table(ranked(["x"], [1], [Result("0", with_k)]))
    assert logits["rank"].to_pylist() == [0, 1, 2, 3, 4]
    assert [row[0] for row in logits["token_logprobs"].to_pylist()] == [-1, -1, -2, -2, -3]


def test_sums_are_taken_in_float64(tiny_tokenizer: Any) -> None:
    logprobs = [-(2.0**24)] + [-1.0] * 8
    rows = ranked(["x"], [1], [Result("0", [hypothesis([68] * 9, logprobs)])])
    table = candidate_table(rows, Responses(tiny_tokenizer, Generate()))
    assert table["sum_logprob"].to_pylist() == [-(2.0**24) - 8]


@pytest.mark.parametrize("precision", ["exact", "half"])
def test_logits_are_flat_lists_of_k_a_position(precision: str) -> None:
    first = hypothesis([5, 6, 2], [-0.1, -0.2, -0.3], k=2)
    second = hypothesis([9], [-0.4], k=2)
    results = [Result("0", [first]), Result("1", [], "failed"), Result("2", [second])]
    table = stored(logits_table(ranked(["x", "y", "z"], [7, 8, 9], results)), precision)
    assert table.schema.equals(STORED_LOGITS)
    rows = table.to_pylist()
    assert [(r["sample_id"], r["prompt_hash"], r["rank"], r["n_tokens"], r["k"]) for r in rows] == [
        ("x", 7, 0, 3, 2),
        ("z", 9, 0, 1, 2),
    ]
    assert {row["origin"] for row in rows} == {"candidate"}
    assert all(row[name] is None for row in rows for name in ("widths", "counts", "draws"))
    assert [row["token_ids"] for row in rows] == [[5, 6, 2], [9]]
    assert [row["topk_ids"] for row in rows] == [[0, 1, 10, 11, 20, 21], [0, 1]]
    kind = np.float32 if precision == "exact" else np.float16
    for row, made in zip(rows, [first, second], strict=True):
        assert row["token_logprobs"] == made.token_logprobs.astype(kind).tolist()
        assert row["topk_logprobs"] == made.topk_logprobs.ravel().astype(kind).tolist()
        # The tail is that of the distribution itself, not of its rounded top.
        assert row["tail_logprob"] == tail_logprob(made.topk_logprobs).tolist()


def test_nothing_but_errors(tiny_tokenizer: Any) -> None:
    results = [Result("0", [], "failed")] * 2
    logits = logits_table(ranked(["x", "y"], [1, 2], results))
    assert (logits.num_rows, logits.schema) == (0, LOGITS)
    candidates = candidate_table(
        ranked(["x", "y"], [1, 2], results), Responses(tiny_tokenizer, Generate())
    )
    assert candidates["text"].to_pylist() == [None, None]
    assert candidate_table(ranked([], [], []), Responses(tiny_tokenizer, Generate())).num_rows == 0


def test_k_of_the_whole_vocabulary() -> None:
    uniform = np.full((1, 400), -np.log(400), np.float32)
    ids = np.arange(400, dtype=np.int32)[None]
    made = Hypothesis(np.array([2], np.int32), uniform[0, :1], "stop", ids, uniform)
    [row] = logits_table(ranked(["x"], [1], [Result("0", [made])])).to_pylist()
    assert (row["k"], len(row["topk_ids"])) == (400, 400)
    assert np.isfinite(row["tail_logprob"][0])


def test_rows_and_results_must_match(tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="zip"):
        candidate_table(
            ranked(["x", "y"], [1, 2], [Result("0", [], "failed")]),
            Responses(tiny_tokenizer, Generate()),
        )


def test_offsets_beyond_a_batch() -> None:
    made = [
        Result(str(i), [hypothesis([1] * (i % 7 + 1), [-0.5] * (i % 7 + 1), k=3)])
        for i in range(5000)
    ]
    names = [str(i) for i in range(5000)]
    table = logits_table(ranked(names, list(range(5000)), made))
    lengths = pc.list_value_length(table["topk_ids"]).to_pylist()
    assert lengths == [3 * (i % 7 + 1) for i in range(5000)]
