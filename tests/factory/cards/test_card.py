"""The data card: its front matter, its numbers against SQL, text from the data made harmless."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from typer.testing import CliRunner

from factory.cards import blocks, card, figures
from factory.cli import app
from factory.errors import RunError
from factory.judging.judge import judge
from factory.query import fence
from factory.reading import load_manifest
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


def tables(text: str) -> list[tuple[list[str], list[list[str]], str]]:
    """Every table with its query beneath: column names, rows of cells, SQL."""
    found = []
    pattern = r'((?:^\|.*\n)+)\n<details>.*\n\n```sh\nseqkd sql RUN "([^"]+)"\n```\n'
    for lines, sql in re.findall(pattern, text, re.MULTILINE):
        head, _, *body = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines.splitlines()]
        found.append(([c.strip() for c in head], [[c.strip() for c in r] for r in body], sql))
    return found


def test_every_table_is_what_the_query_beneath_it_gives(finished):
    _, body = parts(finished)
    shown = tables(body)
    assert len(shown) == body.count("<details>") >= 10
    for heads, rows, sql in shown:
        assert not set("`$\\!") & set(sql), "a shell would read it otherwise"
        answer = fence.select(finished, sql)
        values = answer.fetchall()
        kept = [i for i, _ in enumerate(answer.columns) if any(r[i] is not None for r in values)]
        assert heads == [str(card.cell(answer.columns[i].replace("_", " "))) for i in kept]
        assert rows == [[str(card.cell(figures.shown(r[i]))) for i in kept] for r in values]


def test_figures_of_a_small_run(finished):
    _, body = parts(finished)
    assert row(body, "21", "83", "1", "18", "18", "2")
    assert row(body, "train", "20", "2", "1")
    assert row(body, "empty source", "1")
    assert row(body, "truncated", "1", "4.762", "1")
    assert "Rules that no candidate fails: " in body


@pytest.mark.parametrize(
    ("value", "text"),
    [(5879, "5,879"), (3.0, "3"), (0.0449, "0.045"), (-12.345, "-12.35"), ("a", "a"), (None, None)],
)
def test_figures_for_people(value, text):
    assert figures.shown(value) == text


def test_scores_stages_and_provenance_are_told(finished):
    _, body = parts(finished)
    assert row(body, "test", "bleu", "student", "gold", "21.50", "22", "1.581", "5")
    assert row(body, "bleu", "by\\|hand")
    assert row(body, "pseudolabel", "3", "30", "4", "2")
    assert row(body, "pseudolabel", "17", "2", "epoch 1 by chrf")
    assert row(body, "teacher fingerprint", "teacher-print")
    assert "duckdb" in body
    assert "seqkd run manifest.yaml" in body


def test_text_from_the_data_stays_in_its_cell(finished):
    _, body = parts(finished)
    assert "<b>" not in body
    assert body.count("<!--") == 2 * body.count("<!-- /seqkd -->")
    assert "\x1b" not in body
    table = body[body.index("## Some selected") :].split("##")[1].split("<details>")[0].splitlines()
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
    assert card.stands(finished)
    card.write_card(finished, "card-key")
    assert finished.path("card.md").read_text("utf-8") == first
    assert card.check(finished) == []


def rewritten(run: RunDirectory, *changes: tuple[str, str]) -> list[str]:
    """What a check says of a card in which a person replaced this by that."""
    card.write_card(run, "card-key")
    path = run.path("card.md")
    text = path.read_text("utf-8")
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text, "utf-8")
    return [re.sub(r"^card\.md(:\d+)?: ", "", str(found)) for found in card.check(run)]


def test_a_figure_changed_by_hand_is_told_with_its_place(finished):
    assert rewritten(finished, ("| gold | 21.50 |", "| gold | 31.50 |")) == [
        "scores, test, bleu, student, gold, score: the card says 31.50, the run 21.50"
    ]
    assert not card.stands(finished)
    assert rewritten(finished, ("| seed | 17 |", "| seed | 18 |")) == [
        "provenance, seed: the card says 18, the run 17"
    ]


def test_every_kind_of_change_in_a_block_is_told(finished):
    said = rewritten(
        finished,
        ("| truncated | 1 | 4.762 | 1 |", "| truncation | 1 | 4.762 | 1 |"),
        ("A candidate may fail several rules.", "Fine."),
        ("- n<1K", "- 1K<n<10K"),
        ("count(error)", "count(*)"),
    )
    assert said == [
        "front matter, size_categories: the card says ['1K<n<10K'], the run ['n<1K']",
        "targets, truncation: the card says 1 | 4.762 | 1, the run nothing",
        "targets, truncated: the card says nothing, the run 1 | 4.762 | 1",
        "targets, text: the card says (SELECT count(*) FROM candidates) AS with_an_error,, "
        "the run (SELECT count(error) FROM candidates) AS with_an_error,",
        "targets, text: the card says Fine., the run A candidate may fail several rules.",
    ]


def test_a_run_judged_anew_is_told(finished):
    card.write_card(finished, "card-key")
    finished.adopt(load_manifest(finished.path("manifest.yaml"), ["judge.rules=[error]"]))
    judge(finished, "another-key")
    said = "\n".join(map(str, card.check(finished)))
    assert "targets, kept: the card says 18, the run 20" in said
    assert "targets, truncated: the card says 1 | 4.762 | 1, the run nothing" in said
    card.write_card(finished, "card-key")
    assert card.check(finished) == []


def test_own_text_is_kept_and_not_checked(finished):
    note = "| kept | 99 |\n\n## A word of mine, and 1,234"
    assert (
        rewritten(
            finished,
            ("<!-- seqkd:title -->", "Above all.\n<!-- seqkd:title -->"),
            ("<!-- seqkd:student -->", f"{note}\n<!-- seqkd:student -->"),
            ("---\nlicense:", "---\nhomepage: https://example.org\nauthors:\n- me\nlicense:"),
        )
        == []
    )
    assert card.stands(finished)
    for _ in range(2):
        card.write_card(finished, "another-key")
        text = finished.path("card.md").read_text("utf-8")
        matter, body = parts(finished)
        assert (matter["homepage"], matter["authors"]) == ("https://example.org", ["me"])
        assert body.startswith("Above all.\n<!-- seqkd:title -->")
        assert f"{note}\n<!-- seqkd:student -->" in text
        assert card.check(finished) == []


def test_own_text_goes_along_with_an_export(finished):
    rewritten(finished, ("<!-- seqkd:student -->", "Mine.\n<!-- seqkd:student -->"))
    exported = card.render(finished, "export.md.j2", {"configs": ["here"]})
    page = blocks.take_apart(exported)
    assert page.values()["configs"] == ["here"]
    assert "Mine." in page.after["measured"]
    assert "| token_ids |" in "\n".join(page.blocks["columns"])
    assert page.open is None


def test_text_after_a_block_that_is_gone_stays(finished):
    rewritten(finished, ("<!-- seqkd:selected -->", "Beware.\n<!-- seqkd:selected -->"))
    finished.forget(("evaluate",))
    [found] = [found for found in card.check(finished) if "section" in found.place]
    assert str(found).endswith("section scores: the card says has it, the run nothing")
    card.write_card(finished, "card-key")
    text = finished.path("card.md").read_text("utf-8")
    assert "seqkd:scores" not in text
    assert text.index("seqkd:student") < text.index("Beware.") < text.index("seqkd:selected")


def test_times_and_versions_are_not_checked(finished):
    card.write_card(finished, "card-key")
    finished.amend("judge", seconds=99.0, finished="tomorrow")
    assert card.check(finished) == []


def test_a_card_that_cannot_be_checked_is_one_line(finished):
    with pytest.raises(RunError, match=r"card\.md: is not there: seqkd card writes it"):
        card.check(finished)
    finished.path("card.md").write_text("# Mine\n", "utf-8")
    with pytest.raises(RunError, match="holds no block of figures"):
        card.check(finished)
    card.write_card(finished, "card-key")
    assert "# Mine" not in finished.path("card.md").read_text("utf-8")


def test_broken_front_matter_is_told(finished):
    assert rewritten(finished, ("pretty_name: hand", "pretty_name: [hand")) == [
        "front matter: the card says what is no YAML, the run keys and values"
    ]


def test_the_command_checks(finished):
    asked = ["card", str(finished.root), "--check"]
    card.write_card(finished, "card-key")
    done = CliRunner().invoke(app, asked)
    assert (done.exit_code, done.stdout) == (0, "the card says what the run does\n")
    rewritten(finished, ("| gold | 21.50 |", "| gold | 31.50 |"))
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 1
    assert re.fullmatch(r"card\.md:\d+: scores, .* 31\.50, the run 21\.50\n", done.stdout)
    [found] = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)["mismatches"]
    assert (found["card"], found["run"]) == ("31.50", "21.50")
    said = CliRunner().invoke(app, [*asked, "--set", "seed=3"])
    assert "is nothing for --check" in str(said.exception)


def test_a_block_that_never_ends_is_not_written_over(finished):
    rewritten(finished, ("| seed | 17 |\n<!-- /seqkd -->", "| seed | 17 |\nMine."))
    with pytest.raises(RunError, match="'provenance': is a block that never ends: put <!-- /seqkd"):
        card.write_card(finished, "card-key")
    assert "Mine." in finished.path("card.md").read_text("utf-8")


OWN = st.lists(st.text("ab|-: ", max_size=4), max_size=3)
NAMES = st.lists(st.sampled_from("xyz"), max_size=5)


@given(st.lists(st.tuples(st.sampled_from("xyz"), OWN), max_size=5), OWN, NAMES)
def test_own_text_survives_whatever_blocks_come_and_go(old, head, names):
    lines = [*head]
    for name, own in old:
        lines += [f"<!-- seqkd:{name} -->", "ours", blocks.END, *own]
    page = blocks.take_apart("\n".join(["---", "a: 1", "---", *lines]) + "\n")
    new = blocks.Page(blocks={name: ["new"] for name in names}, after={n: [] for n in names})
    assert str(page).splitlines()[3:] == lines
    kept = str(blocks.put_together(page, new, ())).splitlines()
    mine = [line for line in lines if line not in ("ours", blocks.END) and "seqkd" not in line]
    assert not Counter(mine) - Counter(kept)
    assert "a: 1" in kept


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
