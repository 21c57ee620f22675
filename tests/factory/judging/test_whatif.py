"""What changed rules would do: the same as judging anew does, with nothing measured or written."""

from __future__ import annotations

import hashlib
import json
import sys

import pytest

from factory import cli
from factory.errors import ManifestError, RunError, StepFailed
from factory.judging.judge import judge
from factory.judging.verdicts import Ruling, rule_errors
from factory.judging.whatif import what_if
from factory.manifest import Manifest
from factory.query import catalog
from factory.records import RunDirectory
from factory.steps import rules_key
from tests.runs import add_samples, add_shard, make_run

SIGNALS = ["text", "confidence"]
ALIKE = ("candidates", "kept", "selected", "without_target", "reasons", "reasons_alone")

# what the section `judge` says instead of length_ratio alone
CHANGES = [
    {"rules": ["length_ratio"]},
    {"rules": []},
    {"rules": [{"length_ratio": {"max": 1.0}}, "copy"]},
    {"rules": [{"mean_logprob": {"drop_worst": 0.25}}]},
    {"rules": [{"short": {"sql": "n_words_target < 3"}}], "per_source": 2},
    {"rules": ["copy"], "select": {"order_by": "n_words_target DESC"}},
]


@pytest.fixture
def run(tmp_path):
    made = make_run(tmp_path / "run", judge={"rules": ["length_ratio"], "signals": SIGNALS})
    add_samples(made, [{"sample_id": i, "source": "one two"} for i in "abcd"])
    texts = {
        "a": ["x y", "x y z", "x y z w v"],
        "b": ["one two", "u v w"],
        "c": ["x"],
        "d": ["x y z w v"],
    }
    rows = [
        {"sample_id": i, "rank": rank, "text": text, "mean_logprob": -0.1 * (rank + ord(i) - 97)}
        for i, found in texts.items()
        for rank, text in enumerate(found)
    ]
    add_shard(made, 0, rows)
    judge(made, "key")
    return made


def changed(run: RunDirectory, **judge_section) -> Manifest:
    tree = run.manifest().model_dump(mode="json", exclude_unset=True)
    return Manifest.model_validate(tree | {"judge": {"signals": SIGNALS} | judge_section})


def tree(run):
    files = sorted(path for path in run.root.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def targets(run):
    with catalog.connect(run) as connection:
        query = "SELECT sample_id, rank FROM pseudolabels"
        return set(connection.execute(query).fetchall())


@pytest.mark.parametrize("section", CHANGES)
def test_it_tells_what_judging_anew_makes(run, section):
    manifest = changed(run, **section)
    before, now, files = targets(run), run.step("judge"), tree(run)
    facts = what_if(run, manifest)
    assert tree(run) == files
    assert facts["now"] == {name: now[name] for name in ALIKE}
    run.adopt(manifest)
    then = judge(run, rules_key(manifest))
    after = targets(run)
    assert facts["then"] == {name: then[name] for name in (*ALIKE, "by_rank", "thresholds")}
    assert facts["targets"] == {
        "same": len(before & after),
        "added": len(after - before),
        "dropped": len(before - after),
        "sources": len({sample for sample, _ in before ^ after}),
    }


def test_rules_that_keep_nothing_are_shown_not_refused(run):
    facts = what_if(run, changed(run, rules=[{"long": {"sql": "n_words_target > 99"}}]))
    assert facts["then"]["kept"] == 0
    assert facts["then"]["without_target"] == 4
    assert facts["targets"] == {"same": 0, "added": 0, "dropped": 3, "sources": 3}


def test_signals_that_are_not_measured_are_told_of(run):
    wanted = {"rules": ["repetition"], "signals": [*SIGNALS, "repetition"]}
    message = "'repetition': is not measured of these candidates: seqkd judge first"
    with pytest.raises(RunError, match=message):
        what_if(run, changed(run, **wanted))
    unread = {"rules": ["copy"], "signals": [*SIGNALS, "repetition"]}
    assert what_if(run, changed(run, **unread))["then"]["kept"] == 6


def test_new_candidates_are_not_measured(run):
    add_shard(run, 1, [{"sample_id": "d", "rank": 1, "text": "y"}])
    with pytest.raises(RunError, match="is not measured of these candidates"):
        what_if(run, run.manifest())


def test_a_run_that_is_not_judged_is_told_so(tmp_path):
    empty = make_run(tmp_path / "empty")
    with pytest.raises(RunError, match="is not judged yet: seqkd judge first"):
        what_if(empty, empty.manifest())


def test_a_cast_that_fails_names_its_rule(run):
    rules = ["copy", {"odd": {"sql": "CAST(sample_id AS INTEGER) > 3"}}]
    with pytest.raises(ManifestError, match=r"^judge\.rules\.odd: 'CAST.*Could not convert string"):
        what_if(run, changed(run, rules=rules))
    with pytest.raises(ManifestError, match=r"^judge\.select: 'CAST.*Could not convert string"):
        what_if(run, changed(run, rules=[], select={"order_by": "CAST(sample_id AS INTEGER)"}))


def test_what_does_not_fit_memory_is_no_rules_fault(run):
    ruling = Ruling.of(run.manifest())
    with catalog.connect(run) as connection:
        connection.execute("SET memory_limit = '2MB'; SET max_temp_directory_size = '0B'")
        failing = rule_errors(connection, "signals", ruling)
        with pytest.raises(StepFailed, match=r"^judge: .*emory"), failing:
            connection.execute("SELECT list(i::VARCHAR) FROM range(2000000) t(i)").fetchall()


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["seqkd", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_shows_both_funnels_and_writes_nothing(run, monkeypatch, capsys):
    files = tree(run)
    asked = [
        "judge",
        str(run.root),
        "--what-if",
        "--set",
        "judge.rules=[{length_ratio: {max: 0.7}}]",
    ]
    assert command(monkeypatch, *asked) == 0
    shown = capsys.readouterr().out
    assert "nothing was written" in shown
    assert "targets: 1 stay, 0 added, 2 dropped, of 2 sources" in shown
    assert command(monkeypatch, *asked, "--json") == 0
    assert json.loads(capsys.readouterr().out)["targets"]["dropped"] == 2
    assert tree(run) == files


def test_the_command_makes_no_run(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    manifest = str(run.path("manifest.yaml"))
    before = sorted(tmp_path.rglob("*"))
    assert command(monkeypatch, "judge", manifest, "--what-if") == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
