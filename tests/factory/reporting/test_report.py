"""The report: its numbers, what it leaves out, and what a browser makes of it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import cli, schemas
from factory.pipeline import run_steps
from factory.query.catalog import shipped_sql
from factory.reading import load_manifest
from factory.records import RunDirectory
from factory.reporting import charts
from factory.reporting.charts import PALETTE
from factory.reporting.figures import MEASURES, SAMPLES, Tables, collect
from factory.reporting.page import in_bytes, render, shown, write_page
from factory.reporting.sections import sections
from tests.browser import CHROMIUM, Page, browser
from tests.models import write_corpus, write_manifest_file
from tests.runs import (
    add_samples,
    add_shard,
    add_stage,
    finish_evaluate,
    finish_generate,
    make_run,
    part,
)

Row = dict[str, Any]
SOURCES, RANKS = 12, 3
HOSTILE = "</script><script>window.stolen = 1</script><img src=x onerror='window.stolen = 2'>"
TEXTS = {
    "s00": HOSTILE,
    "s01": "{{ 7 * 7 }} \u2028 ]]> <!-- <script>",
    "s02": "شكرا & <b>bold</b>\x07\x00",
}
STUDENT = {
    "init": {"config": {"model_type": "llama"}, "tokenizer": {"train": {"vocab_size": 300}}},
    "stages": [{"name": "first", "data": "pseudolabels"}, {"name": "gold", "data": "gold"}],
}


def samples() -> list[Row]:
    rows = [{"sample_id": f"s{i:02}", "source": f"source {i}"} for i in range(SOURCES)]
    for row in rows:
        row["source"] = TEXTS.get(row["sample_id"], row["source"])
        row |= {"gold": f"gold of {row['sample_id']}", "gold_visible": row["sample_id"] < "s06"}
    return [*rows, {"sample_id": "t", "source": "a test source", "split": "test", "gold": "g"}]


def candidates() -> list[Row]:
    """Three a source, the last one like the first of every other source; one source failed."""
    rows: list[Row] = []
    for i in range(SOURCES - 1):
        for rank in range(RANKS):
            same = rank == 2 and i % 2 == 0
            text = TEXTS.get(f"s{i:02}", f"target {i}") if same or rank == 0 else f"{rank} of {i}"
            rows.append({"sample_id": f"s{i:02}", "rank": rank, "ordinal": rank, "text": text})
            rows[-1] |= {"duplicate_of": 0 if same else None, "mean_logprob": -0.1 * (i + 1) - rank}
    return [*rows, {"sample_id": f"s{SOURCES - 1:02}", "error": "does not fit"}]


def logits() -> list[Row]:
    distribution = {"n_tokens": 2, "k": 2, "token_ids": [1, 2], "topk_ids": [1, 3, 2, 4]}
    distribution |= {"token_logprobs": [-0.1, -0.2], "topk_logprobs": [-0.1, -3.0, -0.2, -3.0]}
    distribution |= {"tail_logprob": [math.log(0.01), math.log(0.03)]}
    return [{"sample_id": f"s{i:02}"} | distribution for i in range(SOURCES - 1)]


def judge(run: RunDirectory) -> None:
    """What the judge would have left: the even sources' first is cut, s03 has nothing left."""
    signals, verdicts = [], []
    for row in candidates()[:-1]:
        i, rank = int(row["sample_id"][1:]), row["rank"]
        reasons = ["length_ratio"] if i % 2 == 0 and rank == 0 else []
        reasons = ["length_ratio", "copy"] if i == 3 else reasons
        key = {"sample_id": row["sample_id"], "rank": rank}
        measured = {"length_ratio": 0.5 + i / 10, "mean_logprob": row["mean_logprob"]}
        measured |= {"n_tokens": 3 + i, "n_words_source": 2, "agreement": 50.0 + i + rank}
        measured |= {"language_target": "fr" if i else "en", "repetition": i / 8}
        measured |= {"chrf_gold": 90.0 - 5 * i + rank if i < 6 else None}
        measured |= {"min_logprob": -math.inf if i == 0 else -float(i)}
        signals.append(key | measured)
        chosen = not reasons and rank == (1 if i % 2 == 0 else 0)
        verdicts.append(key | {"kept": not reasons, "selected": chosen, "reasons": reasons})
    files = [
        part(run, "signals", signals, schemas.SIGNALS),
        part(run, "verdicts", verdicts, schemas.VERDICTS),
    ]
    reasons = {"error": 0, "length_ratio": 8, "copy": 3}
    run.finish("judge", "judge-key", 0.1, files=files, reasons=reasons)


def train(run: RunDirectory) -> None:
    log = [
        {"step": step, "stage_step": step, "loss": 9 / step, "tokens": 100, "tokens_per_second": 50}
        for step in range(1, 301)
    ]
    terms = {"terms": {"ce": 1.0, "forward_kl": 2.0}}
    add_stage(run, "first", [row | terms for row in log], metric="chrf", scores=[10.0, 30.0, 20.0])
    more = [{**log[0], "step": 300 + i, "stage_step": i} for i in range(1, 6)]
    add_stage(run, "gold", more, metric="chrf", scores=[40.0], best_epoch=1)


def evaluate(run: RunDirectory, score: float = 30.0) -> None:
    rows = []
    for system, stage, by in (("teacher", None, 4.0), ("student", "gold", 0.0)):
        whole = {"system": system, "stage": stage, "split": "test", "metric": "bleu"}
        rows.append(whole | {"score": score + by, "ci_low": score - 2, "ci_high": score + 6})
        rows += [whole | {"fold": fold, "score": score + by + fold} for fold in range(3)]
    finish_evaluate(run, rows)


def whole(root: Path) -> RunDirectory:
    teacher = {"model": "some/<b>teacher"}
    run = make_run(root, teacher=teacher, languages=["en", "fr"], student=STUDENT)
    add_samples(run, samples(), [{"file": "x", "line": 3, "reason": "empty"}])
    add_shard(run, 0, candidates(), logits())
    finish_generate(run)
    judge(run)
    train(run)
    evaluate(run)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    return whole(tmp_path_factory.mktemp("report") / "whole")


@pytest.fixture(scope="module")
def tables(run) -> Tables:
    return collect(run)


@pytest.fixture(scope="module")
def html(run, tmp_path_factory) -> Path:
    other = make_run(tmp_path_factory.mktemp("beside") / "other", student=STUDENT)
    add_samples(other, samples())
    evaluate(other, 20.0)
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_page(run, file, [other])
    return file


@pytest.fixture(scope="module")
def page(html, tmp_path_factory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def values(rows: list[Row], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


def test_the_funnel_and_its_reasons(tables):
    assert values(tables["funnel"], "step", "sources") == [
        ("sources", 12),
        ("with a candidate", 11),
        ("with a candidate kept", 10),
        ("with a pseudolabel", 10),
    ]
    assert values(tables["reasons"], "rule", "candidates", "alone", "with_others") == [
        ("length_ratio", 9, 6, 3),
        ("copy", 3, 0, 3),
        ("error", 0, 0, 0),
    ]
    assert values(tables["languages"], "language", "selected", "kept", "rejected") == [
        ("fr", 9, 13, 8),
        ("en", 1, 1, 1),
    ]


def test_similarity_by_rank_and_what_choosing_could_give(tables):
    assert values(tables["ranks"], "rank", "candidates", "selected", "mean", "best_so_far") == [
        (0, 6, 2, 77.5, 77.5),
        (1, 6, 3, 78.5, 78.5),
        (2, 6, 0, 79.5, 79.5),
    ]


def test_diversity_counts_different_texts(tables):
    assert values(tables["diversity"], "different", "sources") == [(2, 6), (3, 5)]


def test_caches_and_positions(tables, run):
    [cache] = tables["caches"]
    assert (cache["targets"], cache["tokens"], cache["entries"]) == (11, 22, 44)
    assert cache["mean_tail"] == pytest.approx(0.02)
    means = [row["mean_tail"] for row in tables["positions"]]
    assert means == pytest.approx([0.01, 0.03])
    stored = {row["stored"]: row["bytes"] for row in tables["bytes"]}
    assert stored["distributions"] == run.path("logits", "00000.parquet").stat().st_size


def test_curves_are_thinned_by_stage_and_keep_their_means(tables):
    counts = Counter(row["stage"] for row in tables["training"])
    assert counts == {"first": 100, "gold": 5}
    assert tables["training"][0]["loss"] == pytest.approx((9 + 4.5 + 3) / 3)
    assert {row["tokens_per_second"] for row in tables["training"]} == {50.0}
    terms = Counter((row["stage"], row["term"]) for row in tables["terms"])
    assert terms == {
        ("first", "loss"): 100,
        ("first", "ce"): 100,
        ("first", "forward_kl"): 100,
        ("gold", "loss"): 5,
    }


def test_the_worst_samples_come_first_and_hidden_gold_stays_hidden(tables):
    groups: dict[str, list[Row]] = {}
    for row in tables["samples"]:
        groups.setdefault(row["group"], []).append(row)
    assert list(groups) == [
        "worst by chrF",
        "median by chrF",
        "worst by log-probability",
        "median by log-probability",
        "without a target",
    ]
    worst = values(groups["worst by chrF"], "sample_id", "rank", "chrf_gold")
    assert worst[:3] == [("s05", 0, 65.0), ("s04", 1, 71.0), ("s03", 0, 75.0)]
    assert values(groups["without a target"], "sample_id", "reasons") == [
        ("s03", ["length_ratio", "copy"])
    ]
    assert {row["gold"] is None for row in tables["samples"] if row["sample_id"] >= "s06"} == {True}


def test_numbers_that_are_not_finite_are_no_numbers(tables):
    [least] = [row for row in tables["measures"] if row["measure"] == "min_logprob"]
    assert (least["candidates"], least["least"]) == (30, -10.0)
    json.dumps(tables, allow_nan=False)


AMOUNTS = st.lists(
    st.one_of(
        st.floats(-1e6, 1e6),
        st.integers(-1000, 1000).map(float),
        st.sampled_from([0.0, 1.0, 100.0, math.nan, math.inf]),
    ),
    min_size=1,
    max_size=60,
)


@settings(deadline=None, max_examples=25)
@given(AMOUNTS)
def test_every_candidate_is_in_one_bin(amounts):
    with duckdb.connect() as database:
        database.execute(
            "CREATE TABLE signals AS SELECT unnest(range(len($1))) AS sample_id, 0 AS rank, "
            "unnest($1::DOUBLE[]) AS length_ratio",
            [amounts],
        )
        database.execute(
            "CREATE TABLE verdicts AS SELECT sample_id, rank, sample_id % 3 > 0 AS kept, "
            "sample_id % 3 = 1 AS selected FROM signals"
        )
        asked = {"measures": list(MEASURES)}
        bins = database.execute(shipped_sql("report", "histograms"), asked).fetchall()
    finite = [i for i, amount in enumerate(amounts) if math.isfinite(amount)]
    parts = Counter(i % 3 for i in finite)
    for place, remainder in ((3, 1), (4, 2), (5, 0)):
        assert sum(row[place] for row in bins) == parts[remainder]
    assert len(bins) <= 34
    edges = [(row[1], row[2]) for row in bins]
    assert all(low < high for low, high in edges)
    assert all(a[1] <= b[0] + 1e-6 * max(1, abs(b[0])) for a, b in pairwise(edges))


def names(tables: Tables) -> list[str]:
    return [figure.name for part in sections(tables) for figure in part.figures]


def test_a_run_shows_what_it_has(tmp_path, tables):
    assert {"steps", "reasons", "length_ratio", "chrf_by_rank", "agreement"} <= set(names(tables))
    bare = make_run(tmp_path / "bare")
    assert names(collect(bare)) == []
    add_samples(bare, samples())
    assert "12 train, 1 test sources" in render(bare)
    add_shard(bare, 0, candidates())
    finish_generate(bare)
    unjudged = collect(bare)
    assert names(unjudged) == ["steps", "different", "bytes"]
    assert [row["step"] for row in unjudged["funnel"]] == ["sources", "with a candidate"]
    assert {row["group"] for row in unjudged["samples"]} == {
        "worst by log-probability",
        "median by log-probability",
    }


def test_a_run_without_a_teacher_shows_training_and_scores(tmp_path):
    stages = [{"name": name, "data": "gold"} for name in ("first", "gold")]
    gold = make_run(tmp_path / "gold", teacher=None, student=STUDENT | {"stages": stages})
    add_samples(gold, samples())
    train(gold)
    evaluate(gold)
    assert names(collect(gold)) == [
        "score_0", "loss_0", "loss_1", "validation", "lr", "tokens_per_second"
    ]  # fmt: skip
    assert 'id="samples"' not in render(gold)


def test_a_signal_that_was_not_measured_has_no_chart(tables):
    drawn = {figure.name for section in sections(tables) for figure in section.figures}
    assert "reverse_logprob" not in drawn
    assert "entropy" not in drawn
    without = tables | {"languages": [], "ranks": [], "histograms": []}
    drawn = {figure.name for section in sections(without) for figure in section.figures}
    assert drawn.isdisjoint({"languages", "chrf_by_rank", "chrf_gold", "length_ratio"})


def test_every_chart_has_its_numbers(tables):
    for section in sections(tables):
        for figure in section.figures:
            assert figure.rows
            assert all(list(row) == figure.columns for row in figure.rows)
            if figure.spec:
                assert figure.spec["data"] == {"name": "rows"}
                assert figure.spec["width"] == "container"
                assert set(fields(figure.spec)) <= {*figure.columns, *made(figure.spec)}
    assert len(tables["samples"]) <= 5 * SAMPLES


def fields(spec: Any) -> Iterator[str]:
    """The fields that a chart's encodings read."""
    if isinstance(spec, dict):
        if isinstance(spec.get("field"), str):
            yield spec["field"]
        spec = list(spec.values())
    if isinstance(spec, list):
        for inner in spec:
            yield from fields(inner)


def made(spec: Any) -> Iterator[str]:
    """The fields that its transforms make."""
    for transform in spec.get("transform", ()):
        as_ = transform.get("as", ())
        yield from [as_] if isinstance(as_, str) else as_


class Reader(HTMLParser):
    """What a page would fetch, the elements it has, and its policy."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: Counter[str] = Counter()
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        given = dict(attrs)
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "action", "srcset")]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""


def test_nothing_is_fetched_and_text_is_text(html):
    text = html.read_text("utf-8")
    reader = Reader()
    reader.feed(text)
    assert all(link.startswith("#") or link == "data:," for link in reader.fetched)
    assert (reader.tags["script"], reader.tags["img"], reader.tags["b"]) == (3, 0, 0)
    assert reader.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in reader.policy
    assert "\x00" not in text
    assert "\x07" not in text
    data = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert len(data) == 1
    assert "<" not in data[0]
    assert "shared" not in json.loads(data[0])


DRAWN = "document.documentElement.dataset.drawn"
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"


def test_every_chart_is_drawn_without_a_word_or_a_request(page, html):
    page.look()
    page.events.clear()
    page.open(html, until=DRAWN)
    marks = page.run(
        "Object.fromEntries([...document.querySelectorAll('.chart')].map((c) => [c.dataset.figure, "
        "c.querySelectorAll('svg [class*=mark-] path[d], svg .mark-text text').length]))"
    )
    assert len(marks) > 15
    assert [name for name, count in marks.items() if not count] == []
    assert page.complaints() == []
    assert set(page.requests()) <= {html.resolve().as_uri(), "data:,"}
    assert page.run("window.stolen === undefined && document.images.length === 0")
    assert "teacher <b>teacher" in page.run("document.querySelector('header .muted').textContent")


def test_a_page_with_nothing_to_show_is_no_error(page, tmp_path):
    bare = make_run(tmp_path / "bare")
    write_page(bare, tmp_path / "bare.html")
    page.look()
    page.events.clear()
    page.open(tmp_path / "bare.html", until=DRAWN)
    assert page.complaints() == []
    assert page.run("document.querySelectorAll('main > *').length") == 0


def test_the_policy_lets_nothing_else_run(page, html):
    page.look()
    page.open(html, until=DRAWN)
    page.run(
        "{ const s = document.createElement('script'); s.textContent = 'window.stolen = 3'; "
        "document.body.append(s); }"
    )
    assert page.run("window.stolen === undefined")
    assert page.run("fetch('data:,x').then(() => 'fetched', () => 'refused')") == "refused"


def test_samples_are_searched_and_the_address_keeps_it(page, html):
    visible = "[...document.querySelectorAll('#rows > li')].filter((r) => !r.hidden)"
    page.look()
    page.open(html, until=f"{DRAWN} && document.getElementById('found').textContent")
    first = page.run(f"{visible}.map((r) => r.dataset.group)")
    assert set(first) == {"worst by chrF"}
    page.run("location.hash = '#search=target%207'")
    page.wait("document.getElementById('found').textContent.startsWith('2 of')")
    assert page.run(f"{visible}.every((r) => r.textContent.includes('target 7'))")
    page.run(
        "{ const s = document.getElementById('search'); s.value = 'STOLEN'; "
        "s.dispatchEvent(new Event('input')); }"
    )
    found = page.run(f"{visible}.map((r) => r.querySelector('dd').textContent)")
    assert set(found) == {HOSTILE}
    assert page.run("location.hash") == "#search=STOLEN"
    page.open(html, "#search=nowhere-at-all", until=DRAWN)
    page.wait("document.getElementById('found').textContent.startsWith('0 of')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(page, html, tmp_path, scheme):
    page.look(390, 844, scheme)
    page.open(html, until=f"{DRAWN} === '{scheme}'")
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.run(OVERFLOW) == 0
    wide = "[...document.querySelectorAll('.chart svg')].filter((s) => s.clientWidth > 390).length"
    assert page.run(wide) == 0
    assert page.picture(tmp_path / "phone.png").stat().st_size > 10_000


def test_light_and_dark_by_the_system_and_by_the_button(page, html):
    bright = (
        "(() => { const rgb = getComputedStyle(document.body).backgroundColor.match(/\\d+/g); "
        "return rgb.slice(0, 3).map(Number).reduce((a, b) => a + b) / 3; })()"
    )
    label = "getComputedStyle(document.querySelector('.chart svg .role-axis-label text')).fill"
    told = {}
    for scheme in ("light", "dark"):
        page.look(scheme=scheme)
        page.open(html, until=f"{DRAWN} === '{scheme}'")
        told[scheme] = (page.run(bright), page.run(label))
    assert told["light"][0] > 200 > 60 > told["dark"][0]
    assert told["light"][1] != told["dark"][1]
    page.run("document.getElementById('theme').click()")
    page.wait(f"{DRAWN} === 'light'")
    assert (page.run(bright), page.run(label)) == told["light"]


def test_a_charts_numbers_can_be_taken_away(page, html):
    page.look()
    page.open(html, until=DRAWN)
    page.run("URL.createObjectURL = (blob) => { window.blob = blob; return 'blob:none'; }")
    page.run("document.querySelector('.csv[data-figure=reasons]').click()")
    assert page.run("window.blob.text()") == (
        "rule,candidates,alone,with_others\nlength_ratio,9,6,3\ncopy,3,0,3\nerror,0,0,0\n"
    )
    page.run("document.querySelector('.json[data-figure=reasons]').click()")
    assert json.loads(page.run("window.blob.text()"))[1]["with_others"] == 3


def test_values_read_well():
    assert [shown(value) for value in (None, True, 1234567, 0.00123456, 123456.7, "a\tb\nc")] == [
        "–", "yes", "1,234,567", "0.001235", "123,457", "a\tb\nc"
    ]  # fmt: skip
    assert [in_bytes(n) for n in (999, 1000, 4_394_220, 2.5e13)] == [
        "999 bytes", "1.0 kB", "4.4 MB", "25.0 TB"
    ]  # fmt: skip
    assert len(set(PALETTE)) == len(PALETTE)


@pytest.fixture
def plain(tmp_path) -> Path:
    """A manifest that has a student still to be trained."""
    tree = {"name": "plain", "data": write_corpus(tmp_path / "data", train=6), "student": STUDENT}
    tree["student"] = STUDENT | {"stages": STUDENT["stages"][1:]}
    return write_manifest_file(tmp_path / "manifest.yaml", tree)


TELLING = ("samples", "card", "report")


def told(root: Path, manifest: Path, wanted: tuple[str, ...] = TELLING, **options: Any) -> Row:
    outcomes: Row = {}
    run_steps(root, load_manifest(manifest), wanted, tell=outcomes.__setitem__, **options)
    return outcomes


def test_the_last_step_of_a_run_stands_until_what_it_shows_has_changed(plain, run, tmp_path):
    root = tmp_path / "run"
    assert told(root, plain) == {"samples": "done", "card": "done", "report": "done"}
    assert told(root, plain) == {"samples": "stands", "card": "stands", "report": "stands"}
    (root / "report.html").unlink()
    assert told(root, plain, beside=[run])["report"] == "done"
    assert "Beside other runs" in (root / "report.html").read_text("utf-8")
    assert told(root, plain)["report"] == "done"
    assert "Beside other runs" not in (root / "report.html").read_text("utf-8")
    with (tmp_path / "data" / "train.en").open("a") as source:
        source.write("one more\n")
    with (tmp_path / "data" / "train.fr").open("a") as target:
        target.write("un de plus\n")
    assert told(root, plain)["report"] == "done"


def command(monkeypatch, capsys, *arguments: Any) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["seqkd", "report", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    code = stopped.value.code
    return (code if isinstance(code, int) else 0), said.out, said.err


def test_a_report_elsewhere_leaves_the_run_alone(run, tmp_path, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    file = tmp_path / "new" / "shown.html"
    status, out, _ = command(monkeypatch, capsys, run.root, "--output", file, "--json")
    assert (status, json.loads(out)["output"]) == (0, str(file))
    assert file.read_text("utf-8").startswith("<!doctype html>")
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "."), "is a folder: name a file"),
        (("--beside", "nowhere"), "is not a run directory"),
        (("--output", "x.html", "--set", "seed=1"), "--output leaves it alone"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, error = command(monkeypatch, capsys, run.root, *arguments)
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("score", "told"), [(81.25, ".1f"), (0.8125, ".3~g"), (-40.0, ".1f")])
def test_a_score_of_any_scale_is_told_to_the_digits_that_count(score, told):
    spec = charts.scores([{"label": "student", "score": score}], "own")
    [text] = [layer for layer in spec["layer"] if layer["mark"]["type"] == "text"]
    assert text["encoding"]["text"]["format"] == told
