"""The data card: its front matter, its numbers against SQL, text from the data made harmless."""

from __future__ import annotations

import re

import pytest
from ruamel.yaml import YAML

from factory import card, catalog
from factory.records import RunDirectory
from tests.runs import add_samples, make_run


def parts(run: RunDirectory) -> tuple[dict, str]:
    _, matter, body = card.render(run).split("---\n", 2)
    return YAML(typ="safe", pure=True).load(matter), body


def row(body: str, *start: str) -> list[str]:
    """The cells of the one table row that begins with these cells."""
    head = "| " + " | ".join(start) + " |"
    [line] = [line for line in body.splitlines() if line.startswith(head)]
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_front_matter_is_what_hubs_read(finished):
    matter, _ = parts(finished)
    assert matter["license"] == "cc-by-4.0"
    assert matter["language"] == ["en", "fr"]
    assert matter["task_categories"] == ["translation"]
    assert matter["size_categories"] == ["n<1K"]
    assert matter["pretty_name"] == "hand"


@pytest.mark.parametrize(
    ("rows", "name"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (29_000, "10K<n<100K"), (10**7, "10M<n<100M")],
)
def test_size_categories(rows, name):
    assert card._size(rows) == name


def test_numbers_equal_sql(finished):
    _, body = parts(finished)
    with catalog.connect(finished) as connection:
        [(candidates, tokens, errors)] = connection.execute(
            "SELECT count(*), sum(n_tokens), count(error) FROM candidates"
        ).fetchall()
        [(kept, selected)] = connection.execute(
            "SELECT count(*) FILTER (kept), count(*) FILTER (selected) FROM verdicts"
        ).fetchall()
        reasons = connection.execute(
            "SELECT r, count(*) FROM (SELECT unnest(reasons) AS r FROM rejects) GROUP BY r"
        ).fetchall()
        [(mean,)] = connection.execute(
            "SELECT avg(length_ratio) FROM signals JOIN verdicts USING (sample_id, rank)"
            " WHERE selected"
        ).fetchall()
    counts = [candidates, tokens, errors, kept, selected]
    assert [int(cell) for cell in row(body, str(candidates), str(tokens))] == counts
    for rule, n in reasons:
        assert row(body, rule.replace("_", "\\_"), str(n))[2].strip() == f"{100 * n / 21:.2f} %"
    assert row(body, "selected", "length\\_ratio")[2].strip() == f"{mean:.2f}"
    assert row(body, "train", "20", "2", "1")
    assert row(body, "empty source", "1")


def test_scores_stages_and_provenance_are_told(finished):
    _, body = parts(finished)
    assert row(body, "test", "bleu", "student", "gold", "21.50", "22.00 ± 1.58 (5)")
    assert "- `by|hand`" in body
    assert row(body, "pseudolabel", "17", "2", "3", "30", "4.000", "2.000", "epoch 1 by chrf")
    assert row(body, "teacher fingerprint", "teacher-print")
    assert "duckdb" in body
    assert "seqkd run manifest.yaml" in body


def test_text_from_the_data_stays_in_its_cell(finished):
    _, body = parts(finished)
    assert "<b>" not in body
    assert "\x1b" not in body
    table = body[body.index("## Some selected") :].split("##")[1].strip().splitlines()
    assert all(len(re.split(r"(?<!\\)\|", line)) == 5 for line in table if line.startswith("|"))


def test_long_text_is_cut_and_markup_is_escaped():
    assert len(card.cell("x" * 500)) == 200
    assert card.cell("l'île & «l'œuf»") == "l'île &amp; «l'œuf»"
    assert card.cell("a|b <i> *c*\n_d_") == r"a\|b &lt;i&gt; \*c\*\\n\_d\_"


def test_the_card_names_no_folder_of_this_machine(tmp_path):
    run = make_run(tmp_path / "run", teacher={"model": str(tmp_path / "models" / "big")})
    add_samples(run, [{"sample_id": "a", "source": "x"}])
    text = card.render(run)
    assert str(tmp_path) not in text
    assert "| teacher | big |" in text


def test_a_run_without_a_teacher_has_a_card(tmp_path):
    run = make_run(
        tmp_path / "run",
        teacher=None,
        student={"init": {"model": "m"}, "stages": [{"name": "gold", "data": "gold"}]},
    )
    add_samples(run, [{"sample_id": "a", "source": "x", "gold": "y", "gold_visible": True}])
    matter, body = parts(run)
    assert matter["license"] == "unknown"
    assert "language" not in matter
    assert "no teacher" in body
    assert "## Targets" not in body
    assert "Undefined" not in body
    assert "None" not in body


def test_the_card_is_the_same_twice_and_is_recorded(finished):
    card.write_card(finished, "card-key")
    first = finished.path("card.md").read_text("utf-8")
    assert finished.step("card")["key"] == "card-key"
    card.write_card(finished, "card-key")
    assert finished.path("card.md").read_text("utf-8") == first


CHECK = {
    "candidates": 32,
    "positions": 1234,
    "largest": 5.7220e-06,
    "mean": 3.699e-07,
    "total": 4.5e-4,
    "top1_agreed": 1233,
    "top1_positions": 1234,
    "top1_agreement": 1233 / 1234,
    "skipped": 0,
}


def told(run: RunDirectory) -> str:
    """The card's text in one line."""
    return " ".join(parts(run)[1].split())


def test_the_card_says_how_well_capture_agrees_with_itself(finished):
    finished.finish("generate", "generate-key", 2.0, check=CHECK)
    assert (
        "32 were scored anew, teacher-forced, at 1,234 positions: log-probabilities differ by "
        "3.7e-07 nats on average and 5.7e-06 at most; the most probable token is the same, "
        "or tied, at 99.92 % of 1,234 positions."
    ) in told(finished)


def test_what_scoring_alone_could_check_is_told_too(finished):
    finished.finish("score", "score-key", 2.0, check=CHECK | {"candidates": 5})
    assert "5 were scored anew" in told(finished)
    finished.finish("generate", "generate-key", 2.0, check=CHECK)
    assert "32 were scored anew" in told(finished)


def test_the_card_is_silent_on_what_was_not_checked(finished):
    assert "scored anew" not in told(finished)
    finished.finish("generate", "generate-key", 2.0, check=CHECK | {"candidates": 0})
    assert "scored anew" not in told(finished)
    finished.finish("generate", "generate-key", 2.0, check=CHECK | {"top1_agreement": None})
    assert "and 5.7e-06 at most." in told(finished)
    finished.finish("generate", "generate-key", 2.0, check=None)
    assert "scored anew" not in told(finished)


def test_decoding_is_told_whole_and_the_rest_as_far_as_it_is_not_the_default(tmp_path):
    settings = {
        "decoding": "beam",
        "beam_width": 8,
        "num_return": 2,
        "stop": ["."],
        "max_new_tokens": {"ratio": 2.0, "plus": 10, "cap": 256},
        "window": 3,
    }
    run = make_run(tmp_path / "run", generate=settings)
    add_samples(run, [{"sample_id": "a", "source": "x"}])
    _, body = parts(run)
    limit = "at most min(256, 2.0 · prompt + 10) new tokens"
    shown = (
        f"beam, {limit}, beam\\_width 8, num\\_return 2, length\\_penalty 1.0, "
        'early\\_stopping false, stop \\["."\\]'
    )
    assert row(body, "decoding", shown)
