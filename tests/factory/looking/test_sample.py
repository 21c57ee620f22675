"""One sample of a run made by hand: what is told of it, and how it looks."""

from __future__ import annotations

import json
import math

import pytest
from rich.console import Console
from typer.testing import CliRunner

from factory.cli import app
from factory.errors import RunError
from factory.looking.sample import inspect_sample, show_sample, spell
from factory.records import RunDirectory
from tests.factory.looking.test_viewing import printed
from tests.runs import add_samples, add_shard, add_tokens, finish_judge, make_run


def test_a_sample_with_all_its_candidates(finished):
    facts = inspect_sample(finished, "05")
    verdicts = [(c["rank"], c["text"], c["kept"], c["reasons"]) for c in facts["candidates"]]
    assert verdicts == [(0, "un", False, ["length_ratio"]), (1, "un deux cinq", True, [])]
    assert facts["candidates"][0]["signals"]["length_ratio"] == pytest.approx(1 / 3)
    shown = printed(show_sample(facts))
    assert "length_ratio" in shown
    assert "un deux cinq" in shown
    json.dumps(facts)


@pytest.mark.parametrize(
    ("sample_id", "gold"), [("01", "seen"), ("02", None), ("03", None), ("t0", "trois")]
)
def test_training_gold_that_is_not_visible_is_not_shown(finished, sample_id, gold):
    facts = inspect_sample(finished, sample_id)
    assert facts["gold"] == gold
    assert "unseen" not in printed(show_sample(facts))


def test_a_test_sample_shows_what_the_systems_made_of_it(finished):
    facts = inspect_sample(finished, "t0")
    assert facts["candidates"] == []
    assert facts["predictions"] == [{"system": "student", "stage": "gold", "text": "x"}]
    assert "student gold │ x" in printed(show_sample(facts))


def test_an_error_and_odd_text_are_shown_as_they_are(finished):
    assert "does not fit" in printed(show_sample(inspect_sample(finished, "09")))
    assert "\\x1b[31m" in printed(show_sample(inspect_sample(finished, "00")))


def test_an_unknown_sample_names_the_nearest(finished, tmp_path):
    with pytest.raises(RunError, match=r"sample: '0': is not in this run: did you mean 00, 0"):
        inspect_sample(finished, "0")
    with pytest.raises(RunError, match="has no samples yet"):
        inspect_sample(make_run(tmp_path / "empty"), "0")


# --- tokens --------------------------------------------------------------------------------------

TOKENS = ["</s>", "▁the", "▁cat", "▁sat", "[b]"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Two candidates with their tokens, and one whose distributions were not kept."""
    run = make_run(tmp_path_factory.mktemp("sample") / "run")
    add_samples(
        run, [{"sample_id": "abc1", "source": "die Katze"}, {"sample_id": "abd", "source": "x"}]
    )
    add_tokens(run, TOKENS)
    probabilities = [[0.95, 0.6, 0.2, 0.99], [0.9, 0.05, 0.999, 0.89]]
    ids = [[1, 2, 3, 0], [1, 4, 9, 0]]
    logits = [
        {"sample_id": "abc1", "rank": rank, "n_tokens": 4, "k": 0, "token_ids": ids[rank],
         "token_logprobs": [math.log(p) for p in probabilities[rank]], "topk_ids": [],
         "topk_logprobs": [], "tail_logprob": [0.0] * 4}
        for rank in range(2)
    ]  # fmt: skip
    texts = ["the cat sat", "the[b]", "no tokens"]
    candidates = [{"sample_id": "abc1", "rank": r, "text": text} for r, text in enumerate(texts)]
    add_shard(run, 0, candidates, logits)
    judged = [
        {"repetition": 0.0, "copy": False, "n_words_target": 3, "chrf_gold": 41.5},
        {"rank": 1, "copy": True, "reasons": ["copy", "repetition"], "language_target": "de"},
        {"rank": 2, "numbers_missing": 0, "selected": False},
    ]
    finish_judge(run, [{"sample_id": "abc1"} | row for row in judged])
    return run


def coloured(run: RunDirectory) -> str:
    console = Console(width=100, force_terminal=True, color_system="truecolor", record=True)
    with console.capture() as captured:
        console.print(show_sample(inspect_sample(run, "abc1")))
    return captured.get()


def test_tokens_are_pieces_of_text_with_their_log_probabilities(told):
    first, second, third = inspect_sample(told, "abc1")["candidates"]
    assert [token["text"] for token in first["tokens"]] == [" the", " cat", " sat", "</s>"]
    assert [token["text"] for token in second["tokens"]] == [" the", "[b]", "<9>", "</s>"]
    logprobs = [token["logprob"] for token in first["tokens"]]
    assert logprobs == pytest.approx([math.log(p) for p in (0.95, 0.6, 0.2, 0.99)])
    assert third["tokens"] == []


def test_tokens_within_a_character_are_one_piece_of_their_sum():
    pieces = [b"a", "é".encode()[:1], "é".encode()[1:], "日".encode()[:2], b"b", b"\xe6"]
    assert spell(pieces, [-1.0, -2.0, -4.0, -8.0, -16.0, -32.0]) == [
        {"text": "a", "logprob": -1.0},
        {"text": "é", "logprob": -6.0},
        {"text": "\ufffdb", "logprob": -24.0},
        {"text": "\ufffd", "logprob": -32.0},
    ]
    assert spell([], []) == []


def test_confidence_is_in_colour_and_told_without(told):
    colours = coloured(told)
    assert "\x1b[30;48;5;" in colours or "\x1b[30;48;2;" in colours
    plain = printed(show_sample(inspect_sample(told, "abc1")))
    assert "\x1b" not in plain
    assert "sat 0.2, cat 0.6" in plain  # the least sure, those surer than 0.9 left out
    assert "[b] 0.05, </s> 0.89" in plain
    assert "the[b]<9></s>" in plain
    assert "a token's probability: at least" in plain


def test_texts_stand_under_each_other(told):
    lines = printed(show_sample(inspect_sample(told, "abc1"))).splitlines()
    lines = lines[lines.index(_heading(lines, "texts")) :]
    texts = ("die Katze", "the cat sat", "the[b]", "no tokens")
    found = [next(line for line in lines if text in line) for text in texts]
    assert len({line.index(text) for line, text in zip(found, texts, strict=True)}) == 1


def test_every_reason_and_the_signals_that_tell_something(told):
    lines = printed(show_sample(inspect_sample(told, "abc1"))).splitlines()
    assert any("copy, repetition" in line for line in lines)
    shown = [
        line.split()[1] for line in lines[lines.index(_heading(lines, "signals")) :] if "│" in line
    ]
    assert shown == ["copy", "repetition", "language_target", "chrf_gold"]


def _heading(lines: list[str], word: str) -> str:
    return next(line for line in lines if line.strip() == word)


def test_an_id_may_be_cut_short_where_one_begins_so(told):
    assert inspect_sample(told, "abc")["sample_id"] == "abc1"
    with pytest.raises(RunError, match=r"sample: 'ab': is not in this run: did you mean abd, abc1"):
        inspect_sample(told, "ab")
    with pytest.raises(RunError, match=r"'Katze': is not in this run: did you mean abc1"):
        inspect_sample(told, "Katze")


def test_the_command_prints_one_object(told):
    answer = CliRunner().invoke(app, ["inspect", str(told.root), "abc1", "--json"])
    facts = json.loads(answer.stdout)
    assert facts["candidates"][1]["reasons"] == ["copy", "repetition"]
    assert facts["candidates"][0]["signals"]["chrf_gold"] == 41.5
    assert facts["candidates"][0]["tokens"][1]["text"] == " cat"
