"""Runs side by side: joined by id, significance as sacreBLEU has it, what cannot be paired said."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest
from typer.testing import CliRunner

from factory import metrics
from factory.cli import app
from factory.errors import RunError
from factory.looking import sheets
from factory.looking.comparing import compare
from factory.records import RunDirectory
from tests.runs import add_samples, add_shard, add_stage, finish_evaluate, finish_generate, make_run

WORDS = ("red", "blue", "green", "house", "tree", "river", "small", "old")
GOLD = [" ".join(WORDS[(i * j) % 8] for j in range(1, 8)) for i in range(30)]
IDS = [f"t{i:02d}" for i in range(30)]
GOOD = [text if i % 3 else text.replace("red", "blue") for i, text in enumerate(GOLD)]
POOR = [text if i % 2 else f"a {text[:20]}" for i, text in enumerate(GOLD)]
STUDENT = {
    "init": {"model": "some/student"},
    "stages": [{"name": "soft", "data": "pseudolabels"}, {"name": "gold", "data": "gold"}],
}
SIZES = {"student": {"parameters": 100, "tokens_per_second": 5.0}, "teacher": {"parameters": 900}}


def build(root: Path, said: dict[str, list[str]], order=range(30), **sections) -> RunDirectory:
    """A run whose systems said these texts of the test sources; `order` is that of its files."""
    run = make_run(root, student=STUDENT, **sections)
    test = [
        {"sample_id": IDS[i], "source": f"s {i}", "split": "test", "gold": GOLD[i]} for i in order
    ]
    add_samples(run, [{"sample_id": "a", "source": "train"}, *test])
    predicted = [
        {"system": s, "stage": stage(s), "split": "test", "sample_id": IDS[i], "text": texts[i]}
        for s, texts in said.items()
        for i in order
    ]
    finish_evaluate(run, [row for s, texts in said.items() for row in scored(s, texts)], predicted)
    run.amend("evaluate", systems={system: SIZES[system] for system in said})
    return run


def stage(system: str) -> str | None:
    return "gold" if system == "student" else None


def scored(system: str, texts: list[str]) -> list[dict]:
    rows = []
    for name, made in (("bleu", BLEU()), ("chrf", CHRF())):
        score = made.corpus_score(texts, [GOLD]).score
        row = {"system": system, "stage": stage(system), "split": "test", "metric": name}
        rows.append(row | {"score": score, "ci_low": score - 2, "ci_high": score + 1})
    return rows


@pytest.fixture
def good(tmp_path) -> RunDirectory:
    return build(tmp_path / "good", {"student": GOOD, "teacher": GOLD})


@pytest.fixture
def poor(tmp_path) -> RunDirectory:
    return build(tmp_path / "poor", {"student": POOR}, order=range(29, -1, -1))


def rows(facts, *names):
    return [tuple(row[name] for name in names) for row in facts["scores"]]


def oracle(name, first, second) -> float:
    """The p-value that sacreBLEU's own paired test gives, called as its command line does."""
    made = {"bleu": BLEU(), "chrf": CHRF()}[name]
    test = PairedTest([("1", first), ("2", second)], {name: made}, [GOLD], "bs", n_samples=1000)
    [results] = [found for key, found in test()[1].items() if key != "System"]
    return results[1].p_value


def test_runs_side_by_side(good, poor):
    facts = compare([good, poor])
    assert facts["baseline"] == "good"
    assert rows(facts, "run", "system", "stage", "split", "metric", "reference", "parameters") == [
        ("good", "teacher", None, "test", "bleu", None, 900),
        ("good", "teacher", None, "test", "chrf", None, 900),
        ("good", "student", "gold", "test", "bleu", None, 100),
        ("good", "student", "gold", "test", "chrf", None, 100),
        ("poor", "student", "gold", "test", "bleu", "good/student", 100),
        ("poor", "student", "gold", "test", "chrf", "good/student", 100),
    ]
    assert rows(facts, "difference", "p_value")[:4] == [(None, None)] * 4
    assert facts["notes"] == []


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_significance_is_sacrebleus_whatever_the_order_of_rows(good, poor, name):
    [row] = [
        r for r in compare([good, poor])["scores"] if r["run"] == "poor" and r["metric"] == name
    ]
    assert row["p_value"] == oracle(name, GOOD, POOR)
    assert 0 < row["p_value"] < 0.05
    made = {"bleu": BLEU(), "chrf": CHRF()}[name]
    apart = made.corpus_score(POOR, [GOLD]).score - made.corpus_score(GOOD, [GOLD]).score
    assert row["difference"] == pytest.approx(apart)
    assert row["difference"] < 0
    assert "bs:1000|seed:12345" in row["test_signature"]


def test_a_small_difference_is_not_significant(tmp_path, good):
    almost = [GOOD[0], GOOD[1].replace("blue", "old"), *GOOD[2:]]
    facts = compare([good, build(tmp_path / "almost", {"student": almost})])
    found = [row["p_value"] for row in facts["scores"] if row["run"] == "almost"]
    assert found == [oracle("bleu", GOOD, almost), oracle("chrf", GOOD, almost)]
    assert min(found) > 0.05


def test_it_is_symmetric(good, poor):
    there, back = compare([good, poor]), compare([good, poor], baseline=poor)
    assert back["baseline"] == "poor"
    one = [row for row in there["scores"] if row["run"] == "poor"]
    other = [row for row in back["scores"] if row["run"] == "good" and row["system"] == "student"]
    assert [row["difference"] for row in one] == [-row["difference"] for row in other]
    assert [row["p_value"] for row in one] == [row["p_value"] for row in other]
    assert [row["ci_low"] for row in one] != [row["ci_low"] for row in other]


def test_a_run_with_itself_differs_by_nothing(good):
    facts = compare([good, good])
    again = [row for row in facts["scores"] if row["run"] == "good (2)"]
    assert [(row["difference"], row["p_value"]) for row in again] == [(0.0, 1.0)] * 4


def test_every_system_against_the_teacher(good, poor):
    facts = compare([good, poor], against="teacher")
    assert rows(facts, "run", "system", "reference")[2:] == [
        *[("good", "student", "good/teacher")] * 2,
        *[("poor", "student", "good/teacher")] * 2,
    ]
    assert all(row["difference"] < 0 for row in facts["scores"][2:])
    with pytest.raises(
        RunError, match="--against: 'teecher': is no system: did you mean 'teacher'"
    ):
        compare([good], against="teecher")


def test_other_test_sets_are_listed_and_not_paired(tmp_path, good):
    other = build(tmp_path / "other", {"student": POOR}, order=range(28))
    facts = compare([good, other])
    assert (
        rows(facts, "run", "reference", "difference", "p_value")[4:]
        == [("other", None, None, None)] * 2
    )
    assert facts["notes"] == [
        "other: student, test: not compared with good/student: "
        "2 of 30 sources or references are not the same"
    ]


def test_another_reference_of_the_same_source_is_seen(tmp_path, good, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "GOLD", [*GOLD[:3], "another one", *GOLD[4:]])
        other = build(tmp_path / "other", {"student": POOR})
    [note] = compare([good, other])["notes"]
    assert note.endswith("1 of 30 sources or references are not the same")


def test_missing_predictions_and_scores_are_said(tmp_path, good):
    silent = make_run(tmp_path / "silent")
    add_samples(silent, [{"sample_id": "a", "source": "x"}])
    unsaid = make_run(tmp_path / "unsaid")
    add_samples(unsaid, [{"sample_id": "a", "source": "x"}])
    finish_evaluate(unsaid, scored("student", GOOD))
    facts = compare([good, silent, unsaid])
    assert facts["notes"] == [
        "silent: has no scores: seqkd evaluate silent first",
        "unsaid: student, test: not compared with good/student: "
        "predictions are missing: seqkd evaluate makes them",
    ]
    assert [run["run"] for run in facts["runs"]] == ["good", "silent", "unsaid"]


def test_what_the_baseline_lacks_is_said(good, poor):
    facts = compare([good], baseline=poor)
    assert [run["run"] for run in facts["runs"]] == ["poor", "good"]
    assert facts["notes"] == [
        "good: teacher, test: not compared: poor has no such score of its teacher"
    ]


def test_scores_of_other_signatures_are_not_compared(tmp_path, good):
    changed = [row | {"signature": "other|sign"} for row in scored("student", POOR)]
    other = make_run(tmp_path / "other")
    finish_evaluate(other, changed)
    [note] = compare([good, other])["notes"]
    assert note.endswith("measured as other|sign and as by|hand")


def test_sizes_data_tokens_and_cost(good):
    add_shard(good, 0, [{"sample_id": "a", "text": "x y"}])
    finish_generate(good)
    good.amend("generate", tokens=3, wall_seconds=1799.0)
    log = [{"step": 1, "stage_step": 1, "loss": 1.0, "tokens": 10}]
    add_stage(good, "soft", log, rows=17, epochs=2, target_tokens=300, parameters=100)
    add_stage(good, "gold", log, rows=4, epochs=3, target_tokens=12, parameters=101)
    [run] = compare([good], price_per_hour=4.0)["runs"]
    told = ("teacher_tokens", "trained_tokens", "pseudolabels", "gold")
    assert [run[name] for name in told] == [3, 312, 17, 4]
    assert (run["student_parameters"], run["teacher_parameters"]) == (101, 900)
    assert [tuple(s.values())[:4] for s in run["stages"]] == [
        ("soft", "pseudolabels", 17, 2),
        ("gold", "gold", 4, 3),
    ]
    assert run["seconds"] == {"samples": 0.1, "generate": 1799.0, "evaluate": 1.0}
    assert (run["total_seconds"], run["cost"]) == (1800.1, pytest.approx(2.0001))
    assert compare([good])["runs"][0]["cost"] is None


def measured(root: Path, texts: list[str], own: float) -> RunDirectory:
    """A run measured with TER and exact match, and with a command that said `own`."""
    run = build(root, {"student": texts})
    made = {name: metrics.METRICS[name]().corpus_score(texts, [GOLD]).score for name in LOWEST}
    row = {"system": "student", "stage": "gold", "split": "test"}
    evals = [row | {"metric": name, "score": score} for name, score in {**made, "own": own}.items()]
    said = [{"sample_id": i, "text": text} for i, text in zip(IDS, texts, strict=True)]
    finish_evaluate(run, evals, [{k: row[k] for k in row} | one for one in said])
    run.amend("evaluate", systems={"student": SIZES["student"]})
    return run


LOWEST = {"exact_match": False, "ter": True}


def test_edits_are_better_the_fewer_they_are(tmp_path):
    runs = [measured(tmp_path / "good", GOOD, 0.9), measured(tmp_path / "poor", POOR, 0.8125)]
    facts = compare(runs)
    better = {r["metric"]: r["lower_is_better"] for r in facts["scores"]}
    assert better == {**LOWEST, "own": None}
    apart = {r["metric"]: r for r in facts["scores"] if r["run"] == "poor"}
    assert apart["exact_match"]["difference"] < 0 < apart["ter"]["difference"]
    made = metrics.METRICS["ter"]()
    test = PairedTest([("1", GOOD), ("2", POOR)], {"ter": made}, [GOLD], "bs", n_samples=1000)
    assert apart["ter"]["p_value"] == test()[1]["TER"][1].p_value < 0.05
    own = apart["own"]
    assert own["difference"] == pytest.approx(-0.0875)
    assert (own["p_value"], own["test_signature"]) == (None, None)
    text = sheets.markdown(facts)
    assert "| test ter ↓ |" in text
    assert "- ↓: lower is better" in text
    assert "| poor | student gold | test own | 0.8125 | -0.0875 | – |" in text


def test_names_tell_runs_apart(tmp_path):
    runs = [make_run(tmp_path / a / "run") for a in ("one", "two")]
    assert [run["run"] for run in compare([*runs, runs[0]])["runs"]] == [
        "one/run",
        "two/run",
        "one/run (2)",
    ]


def test_same_texts_are_no_difference_and_silence_is_one():
    assert metrics.paired("bleu", GOOD, GOOD, GOLD)[0] == 1.0
    assert oracle("bleu", GOOD, GOOD) < 0.001
    silent = ["" for _ in GOLD]
    p_value, _ = metrics.paired("bleu", silent, GOOD, GOLD)
    assert p_value == oracle("bleu", silent, GOOD)


def test_tables(good, poor):
    console = Console(width=120, record=True, file=io.StringIO())
    facts = compare([good, poor], price_per_hour=1.0)
    console.print(sheets.show(facts))
    shown = console.export_text()
    text = sheets.markdown(facts)
    for row in facts["scores"]:
        spread = f"{row['score']:.2f} ± 1.50"
        assert spread in shown
        assert spread in text
    assert "| poor | student gold | test bleu |" in text
    assert "| step | good | poor |\n| --- | ---: | ---: |\n| samples | 0.1 | 0.1 |" in text
    assert "| cost | 0.0003 | 0.0003 |" in text
    assert "differences: to the same system of good" in text
    assert "by|hand" in shown


def test_the_command(good, poor):
    said = CliRunner().invoke(app, ["compare", str(good.root), str(poor.root), "--json"])
    facts = json.loads(said.stdout)
    assert facts["scores"][-1]["p_value"] == oracle("chrf", GOOD, POOR)
    shown = CliRunner().invoke(
        app, ["compare", str(good.root), "--against", "teacher", "--markdown"]
    )
    assert shown.exit_code == 0
    assert shown.stdout.startswith("### Scores\n\n| run | system |")
    missing = CliRunner().invoke(app, ["compare", str(good.root / "nowhere")])
    assert isinstance(missing.exception, RunError)
