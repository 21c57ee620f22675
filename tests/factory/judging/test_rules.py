"""Rules of every kind: what a manifest asks for, what it may not, and what candidates fail."""

from __future__ import annotations

import json

import pytest

from factory.errors import ManifestError
from factory.judging.rules import presets, rules_of
from factory.reading import load_manifest
from factory.steps import rules_key
from tests.ruling import manifest_of, ruled
from tests.runs import MANIFEST


def conditions(judge: dict, **sections) -> dict[str, str]:
    rules = rules_of(manifest_of(judge, **sections))
    return {rule.name: rule.condition({rule.name: -0.5}) for rule in rules}


def rule_file(folder, text):
    path = folder / "rule.sql"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- where rules come from -----------------------------------------------------------------------


def test_a_rule_of_ones_own_is_its_sql():
    own = {"short": {"sql": "n_words_target <= 60"}}
    assert conditions({"rules": [own]}) == {
        "error": "NOT error",
        "short": "n_words_target <= 60",
    }


def test_a_file_declares_parameters_as_shipped_ones_do(tmp_path):
    head = "-- Short, and in $word.\n-- $max = 60\n-- $word = 'fr'\n"
    file = rule_file(tmp_path, head + "n_tokens <= $max AND language_target = $word\n")
    assert conditions({"rules": [{"short": {"file": file}}]})["short"] == (
        "n_tokens <= CAST('60' AS DOUBLE) AND language_target = CAST('fr' AS VARCHAR)"
    )
    given = {"short": {"file": file, "max": 7, "word": "it's"}}
    assert conditions({"rules": [given]})["short"] == (
        "n_tokens <= CAST('7' AS DOUBLE) AND language_target = CAST('it''s' AS VARCHAR)"
    )


def test_a_file_stands_by_the_manifest_or_where_it_is_set(tmp_path, monkeypatch):
    (tmp_path / "rules").mkdir()
    rule_file(tmp_path / "rules", "n_tokens < 9")
    given = MANIFEST | {"judge": {"rules": [{"own": {"file": "rules/rule.sql"}}]}}
    path = tmp_path / "manifest.yaml"
    path.write_text(json.dumps(given), encoding="utf-8")
    assert rules_of(load_manifest(path))[-1].keeps == "n_tokens < 9"
    monkeypatch.chdir(tmp_path / "rules")
    rule_file(tmp_path / "rules", "n_tokens < 8")
    for setting in ("rules=[{own: {file: rule.sql}}]", "rules.0.own.file=rule.sql"):
        manifest = load_manifest(path, [f"judge.{setting}"])
        assert rules_of(manifest)[-1].keeps == "n_tokens < 8"


def test_a_default_may_stand_for_what_the_manifest_says(tmp_path):
    file = rule_file(tmp_path, "-- $to = manifest.languages.1\nlanguage_target = $to")
    rules = {"rules": [{"own": {"file": file}}]}
    found = conditions(rules, languages=["en", "fr"])["own"]
    assert found == "language_target = CAST('fr' AS VARCHAR)"
    for languages in ([], ["en"]):
        with pytest.raises(ManifestError, match=r"goes by languages.1 of the manifest: add langu"):
            conditions(rules, languages=languages)


def test_a_quantile_rule_has_its_signals_name_or_its_own():
    rules = [
        {"mean_logprob": {"drop_worst": 0.05}},
        {"unsure": {"signal": "entropy", "drop_worst": 0.1}},
        {"longest": {"signal": "n_tokens", "drop_worst": 0.1, "worst": "high"}},
        {"length_ratio": {"drop_worst": 0.1, "worst": "low"}},
    ]
    assert conditions({"rules": rules}) == {
        "error": "NOT error",
        "mean_logprob": "mean_logprob >= CAST('-0.5' AS DOUBLE)",
        "unsure": "entropy <= CAST('-0.5' AS DOUBLE)",
        "longest": "n_tokens <= CAST('-0.5' AS DOUBLE)",
        "length_ratio": "length_ratio >= CAST('-0.5' AS DOUBLE)",
    }


# --- presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["translation", "summarisation", "instruction"])
def test_every_preset_is_rules_with_their_sources(preset):
    rules = rules_of(manifest_of({"preset": preset}, languages=["en", "fr"]))
    assert rules[0].name == "error"
    assert len(rules) == len(presets()[preset]) > 5


def test_the_manifest_changes_a_preset_and_adds_to_it():
    languages = ["en", "fr"]
    plain = conditions({"preset": "translation"}, languages=languages)
    rules = [{"length_ratio": {"max": 3}}, {"copy": "off"}, {"own": {"sql": "rank = 0"}}]
    changed = conditions({"preset": "translation", "rules": rules}, languages=languages)
    low, high = "CAST('0.5' AS DOUBLE)", "CAST('3' AS DOUBLE)"
    expected = plain | {"length_ratio": f"length_ratio BETWEEN {low} AND {high}", "own": "rank = 0"}
    del expected["copy"]
    assert list(changed.items()) == list(expected.items())


def test_a_rule_of_a_preset_may_become_one_of_another_kind(tmp_path):
    file = rule_file(tmp_path, "language_target = 'fr'")
    rules = [
        {"same_language": {"file": file}},
        {"repetition": {"drop_worst": 0.01}},
        {"copy": {"signal": "copy_overlap", "drop_worst": 0.1}},
        {"letters": {"words": 0.1}},
    ]
    found = conditions({"preset": "summarisation", "rules": rules})
    assert found["same_language"] == "language_target = 'fr'"
    assert found["repetition"] == "repetition <= CAST('-0.5' AS DOUBLE)"
    assert found["copy"] == "copy_overlap <= CAST('-0.5' AS DOUBLE)"
    assert "CAST('0.1' AS DOUBLE) AND letter_share >= CAST('0.5'" in found["letters"]


def test_without_rules_of_its_own_a_preset_stands_for_the_default_list():
    names = set(conditions({"preset": "instruction"}))
    assert "length_ratio" not in names
    assert {"error", "repetition", "control_tokens"} <= names


# --- what is refused, without data ---------------------------------------------------------------

BAD = {
    "unknown rule": ([{"lengthratio": {"min": 1}}], "'lengthratio': is no rule: did you mean"),
    "unknown signal": (
        [{"own": {"sql": "n_word_target < 9"}}],
        "judge.rules.own: 'n_word_target < 9': 'n_word_target' is no signal: did you mean 'n_",
    ),
    "no predicate": ([{"own": {"sql": "n_words_target"}}], "gives BIGINT, not true or false"),
    "sql that is a number": ([{"own": {"sql": 3}}], "judge.rules.own.sql: 3: must be SQL: quote"),
    "a parameter of sql": ([{"own": {"sql": "copy", "max": 3}}], "own.max: 3: sql takes no param"),
    "a shipped name": ([{"copy": {"sql": "rank = 0"}}], "'copy': is a shipped rule's name: choose"),
    "a file that is missing": (
        [{"own": {"file": "/no/x.sql"}}],
        "own.file: '/no/x.sql': cannot be",
    ),
    "no file": ([{"own": {"file": 3}}], "judge.rules.own.file: 3: must be the path"),
    "a quantile over words": (
        [{"language_target": {"drop_worst": 0.1}}],
        "'language_target': is no signal that is a number",
    ),
    "a quantile over no signal": (
        [{"mean_logprb": {"drop_worst": 0.1}}],
        "judge.rules.mean_logprb: 'mean_logprb': is no signal that is a number: did you mean 'm",
    ),
    "a share over one": ([{"agreement": {"drop_worst": 5}}], "drop_worst: 5: must be a share from"),
    "a share of words": ([{"agreement": {"drop_worst": "5%"}}], "drop_worst: '5%': must be a sh"),
    "neither end": (
        [{"n_tokens": {"drop_worst": 0.1}}],
        "judge.rules.n_tokens.worst: neither end of n_tokens is the worse one by itself: set it to",
    ),
    "another end": (
        [{"agreement": {"drop_worst": 0.1, "worst": "least"}}],
        "judge.rules.agreement.worst: 'least': must be low or high",
    ),
    "a parameter of a quantile": (
        [{"agreement": {"drop_worst": 0.1, "wrost": "low"}}],
        "agreement.wrost: 'low': is no parameter: did you mean 'worst'?",
    ),
    "off without a preset": ([{"copy": "off"}], "'copy: off': is not in the preset: remove this"),
    "error off": ([{"error": "off"}], "judge.rules: 'error: off': always holds: remove this line"),
    "glossary without one": (["glossary"], "'glossary_missing': goes by judge.glossary: add it"),
    "a reverse score without a model": (
        [{"reverse_logprob": {"drop_worst": 0.05}}],
        "judge.rules.reverse_logprob: 'reverse_logprob': goes by judge.reverse: add it",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_told_without_data(name):
    rules, message = BAD[name]
    with pytest.raises(ManifestError) as caught:
        conditions({"rules": rules})
    assert message in str(caught.value)
    assert str(caught.value).startswith("judge.rules")


FILES = {
    "no default": ("n_tokens < $most", "'$most': add a line to its head: -- $most = value"),
    "a list for a default": ("-- $most = [1]\nn_tokens < $most", "'[1]': must be a number, a word"),
    "no YAML": ("-- $most = [1\nn_tokens < $most", "'[1': must be a number, a word"),
    "no SQL": ("-- Nothing.\n", "not true or false"),
    "two statements": ("copy; SELECT 1", "holds 2 statements"),
    "a subquery": ("(SELECT true FROM read_csv('/etc/passwd'))", "holds a subquery"),
}


@pytest.mark.parametrize("name", FILES)
def test_mistakes_in_a_file_are_told_at_its_rule(tmp_path, name):
    text, message = FILES[name]
    with pytest.raises(ManifestError) as caught:
        conditions({"rules": [{"own": {"file": rule_file(tmp_path, text)}}]})
    assert message in str(caught.value)
    assert str(caught.value).startswith("judge.rules.own")


def test_a_file_is_text(tmp_path):
    path = tmp_path / "rule.sql"
    path.write_bytes(b"\xff")
    with pytest.raises(ManifestError, match="is not UTF-8 text: save it as UTF-8"):
        conditions({"rules": [{"own": {"file": str(path)}}]})


LEFT_OUT = [
    ({"rules": ["repetition"]}, "judge.rules.repetition: 'repetition': judge.signals leaves its"),
    ({"rules": [{"mean_logprob": {"drop_worst": 0.1}}]}, "leaves its family out: add confidence"),
    ({"rules": [{"own": {"sql": "near_test"}}]}, "'near_test': judge.signals leaves its family"),
]


@pytest.mark.parametrize(("judge", "message"), LEFT_OUT)
def test_a_rule_over_a_family_that_is_left_out_is_refused(judge, message):
    with pytest.raises(ManifestError) as caught:
        conditions(judge | {"signals": ["text"]})
    assert message in str(caught.value)


def test_candidates_without_text_cannot_be_told_without_the_signals_of_text():
    with pytest.raises(ManifestError, match=r"judge.rules.error: 'error': judge.signals leaves"):
        conditions({"rules": [], "signals": ["confidence"]})


# --- the key -------------------------------------------------------------------------------------


def test_the_key_is_of_what_the_rules_say_not_of_how(tmp_path):
    file = rule_file(tmp_path, "-- $max = 60\nn_tokens <= $max")

    def key(*rules, **judge):
        return rules_key(manifest_of({"rules": list(rules)} | judge))

    own = {"own": {"file": file}}
    first = key(own)
    assert key({"own": {"file": file, "max": 60}}) == first
    assert key({"own": {"sql": "n_tokens <= CAST('60' AS DOUBLE)"}}) == first
    changed = {
        key({"own": {"file": file, "max": 61}}),
        key({"other": {"file": file}}),
        key(own, "copy"),
        key(own, select="mbr"),
        key(own, per_source=2),
        key(own, {"agreement": {"drop_worst": 0.1}}),
        key(own, {"agreement": {"drop_worst": 0.2}}),
    }
    rule_file(tmp_path, "-- $max = 50\nn_tokens <= $max")
    assert len(changed | {first, key(own)}) == 9


# --- what candidates fail ------------------------------------------------------------------------


def test_every_reason_is_told_in_the_order_of_the_rules():
    rules = [{"b": {"sql": "n_tokens < 5"}}, {"a": {"sql": "n_tokens < 3"}}, "copy"]
    rows = [
        {"sample_id": "0", "n_tokens": 2, "copy": False},
        {"sample_id": "1", "n_tokens": 3, "copy": False},
        {"sample_id": "2", "n_tokens": 5, "copy": True},
        {"sample_id": "3", "n_tokens": None, "copy": None},
        {"sample_id": "4", "error": True, "n_tokens": 9},
    ]
    verdicts, counted, _ = ruled(rows, {"rules": rules})
    assert [row["reasons"] for row in verdicts] == [
        [],
        ["a"],
        ["b", "a", "copy"],
        [],
        ["error", "b", "a"],
    ]
    assert counted == {
        "candidates": 5,
        "kept": 2,
        "with_text": 4,
        "by_rank": 0,
        "reasons": {"error": 1, "b": 2, "a": 3, "copy": 1},
        "reasons_alone": {"error": 0, "b": 0, "a": 1, "copy": 0},
        "reasons_with_text": {"error": 0, "b": 1, "a": 2, "copy": 1},
    }


def test_a_comment_at_the_end_of_a_rule_ends_with_it():
    rules = [{"own": {"sql": "n_tokens < 5 -- short"}}, "copy"]
    [verdict], _, _ = ruled([{"sample_id": "0", "n_tokens": 7, "copy": True}], {"rules": rules})
    assert verdict["reasons"] == ["own", "copy"]
