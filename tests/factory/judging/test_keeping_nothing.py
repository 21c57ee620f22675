"""Rules that keep no candidate at all: refused by name, and the old verdicts stay."""

from __future__ import annotations

import pytest

from factory.errors import ManifestError
from factory.judging.judge import judge
from factory.manifest import Manifest
from factory.query import catalog
from tests.runs import add_samples, add_shard, make_run

SIGNALS = ["text", "confidence"]
SHORT = {"short": {"sql": "n_words_target < 2"}}
LONG = {"long": {"sql": "n_words_target > 2"}}

# rules, and what is said of them; None: something is kept, or nothing has a text
REFUSED = [
    ([{"none": {"sql": "n_words_target > 99"}}], "judge.rules: 'none': keeps none of 3 candidates"),
    (["copy", {"none": {"sql": "false"}}, SHORT], "judge.rules: 'none': keeps none of 3"),
    ([SHORT, LONG], "judge.rules: ['short', 'long']: together keep none of 3 candidates"),
]
FINE = [[], [SHORT], [LONG], [{"unknown": {"sql": "mean_logprob > 99 AND entropy > 99"}}]]


@pytest.fixture
def run(tmp_path):
    made = make_run(tmp_path / "run", judge={"rules": [], "signals": SIGNALS})
    add_samples(made, [{"sample_id": i, "source": "one two"} for i in "abcd"])
    texts = {"a": "x", "b": "x y z", "c": "x y z w"}
    rows = [{"sample_id": i, "text": text, "mean_logprob": None} for i, text in texts.items()]
    add_shard(made, 0, [*rows, {"sample_id": "d", "error": "too long"}])
    judge(made, "first")
    return made


def rejudge(run, key, rules):
    tree = run.manifest().model_dump(mode="json", exclude_unset=True)
    run.adopt(Manifest.model_validate(tree | {"judge": {"rules": rules, "signals": SIGNALS}}))
    return judge(run, key)


@pytest.mark.parametrize(("rules", "message"), REFUSED)
def test_rules_that_keep_nothing_are_refused_by_name(run, rules, message):
    record = run.record()
    with pytest.raises(ManifestError) as caught:
        rejudge(run, "second", rules)
    assert message in str(caught.value)
    assert str(caught.value).endswith("loosen a threshold, try it with --what-if")
    assert run.record() == record
    assert not run.path("verdicts", "second").exists()
    with catalog.connect(run) as connection:
        [(kept,)] = connection.execute("SELECT count(*) FROM pseudolabels").fetchall()
    assert kept == 3


@pytest.mark.parametrize("rules", FINE)
def test_rules_that_keep_something_are_fine(run, rules):
    assert rejudge(run, "second", rules)["kept"] > 0


def test_where_nothing_has_a_text_no_rule_is_to_blame(tmp_path):
    run = make_run(tmp_path / "run", judge={"rules": [SHORT], "signals": SIGNALS})
    add_samples(run, [{"sample_id": "a", "source": "one"}])
    add_shard(run, 0, [{"sample_id": "a", "error": "too long"}])
    assert judge(run, "key")["kept"] == 0


def test_what_was_measured_before_a_refusal_is_not_measured_again(run, monkeypatch):
    add_shard(run, 1, [{"sample_id": "d", "rank": 1, "text": "y"}])
    with pytest.raises(ManifestError):
        rejudge(run, "second", [{"none": {"sql": "false"}}])
    monkeypatch.setattr("factory.judging.signals._write", lambda *_: pytest.fail("measured again"))
    assert rejudge(run, "third", [])["candidates"] == 5


def test_thresholds_are_recorded_and_signed(run):
    quantile = {"longest": {"signal": "n_words_target", "drop_worst": 0.34, "worst": "high"}}
    figures = rejudge(run, "second", [quantile])
    assert figures["thresholds"] == run.step("judge")["thresholds"] == {"longest": 3.0}
    assert figures["reasons"] == {"error": 1, "longest": 1}
    [file] = run.files("verdicts")
    with catalog.connect(run) as connection:
        query = f"SELECT decode(value) FROM parquet_kv_metadata('{run.path(file['path'])}')"
        [(signed,)] = connection.execute(query).fetchall()
    assert "n_words_target <= CAST('3.0' AS DOUBLE)" in signed


def test_a_quantile_over_nothing_known_keeps_all(run):
    figures = rejudge(run, "second", [{"mean_logprob": {"drop_worst": 0.5}}])
    assert (figures["kept"], figures["thresholds"]) == (3, {"mean_logprob": None})
