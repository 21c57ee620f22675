"""What users get wrong in `judge`, and what the one line must say of it."""

from __future__ import annotations

from typing import Any

Edits = dict[str, Any]


def _rules(*rules: Any) -> Edits:
    return {"judge": {"rules": list(rules)}}


def _own(sql: str) -> Edits:
    return _rules({"mine": {"sql": sql}})


# name: (edits to the manifest, what the line begins with, words it holds)
JUDGINGS: dict[str, tuple[Edits, str, list[str]]] = {
    "a rule that is no predicate": (
        _own("n_words_target"),
        "judge.rules.mine: 'n_words_target':",
        ["gives BIGINT, not true or false: write one condition over signals"],
    ),
    "a rule of text": (_own("language_target"), "judge.rules.mine:", ["gives VARCHAR, not true"]),
    "an unknown signal": (
        _own("lenght_ratio < 2"),
        "judge.rules.mine: 'lenght_ratio < 2':",
        ["'lenght_ratio' is no signal: did you mean 'length_ratio'?"],
    ),
    "a rule of several statements": (
        _own("copy; DELETE FROM candidates"),
        "judge.rules.mine:",
        ["holds 2 statements: write one condition over signals"],
    ),
    "a rule that reads a file": (
        _own("n_tokens IN (SELECT 1 FROM read_csv('/etc/passwd'))"),
        "judge.rules.mine:",
        ["holds a subquery: write one condition over signals"],
    ),
    "a rule that draws lots": (_own("random() < 0.5"), "judge.rules.mine:", ["calls random()"]),
    "a rule that counts": (_own("count(*) < 5"), "judge.rules.mine:", ["gathers candidates"]),
    "a rule's file missing": (
        _rules({"mine": {"file": "rules/mine.sql"}}),
        "judge.rules.mine.file: '{cwd}/rules/mine.sql':",
        ["cannot be read: No such file"],
    ),
    "a rule's words for parameters": (
        _rules({"length_ratio": "0.5"}),
        "manifest.yaml judge.rules.0",
        ["valid dictionary"],
    ),
    "rules that are no list": (
        {"judge": {"rules": {"length_ratio": {"max": 2}}}},
        "manifest.yaml judge.rules:",
        ["valid list"],
    ),
    "a quantile of percents": (
        _rules({"mean_logprob": {"drop_worst": 5}}),
        "judge.rules.mean_logprob.drop_worst: 5:",
        ["must be a share from 0 to below 1"],
    ),
    "a family of signals left out": (
        {"judge": {"rules": ["repetition"], "signals": ["text"]}},
        "judge.rules.repetition: 'repetition':",
        ["judge.signals leaves its family out: add repetition"],
    ),
    "an unknown preset": (
        {"judge": {"preset": "translations"}},
        "manifest.yaml judge.preset: 'translations':",
        ["'translation', 'summarisation' or 'instruction'"],
    ),
    "a preset's rule misspelt": (
        {"judge": {"preset": "instruction", "rules": [{"repetitoin": "off"}]}},
        "judge.rules: 'repetitoin: off':",
        ["is not in the preset: remove this line"],
    ),
    "a preset without languages": (
        {"judge": {"preset": "translation"}},
        "judge.rules.language:",
        ["goes by languages.0 of the manifest: add languages to it"],
    ),
    "an unknown selection": (
        {"judge": {"select": "gold_chfr"}},
        "manifest.yaml judge.select",
        ["'best', 'gold_chrf', 'gold_bleu' or 'mbr'"],
    ),
    "an order over no signal": (
        {"judge": {"select": {"order_by": "chrf DESC"}}},
        "judge.select.order_by: 'chrf DESC':",
        ["'chrf' is no signal: did you mean 'chrf_gold'?"],
    ),
    "no target of a source": (
        {"judge": {"per_source": 0}},
        "manifest.yaml judge.per_source: 0:",
        ["greater than or equal to 1"],
    ),
}
