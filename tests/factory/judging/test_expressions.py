"""SQL over signals, as users write it: what it reads, and all that it must not be."""

from __future__ import annotations

import pytest

from factory.errors import ManifestError
from factory.judging.expressions import check_condition, check_order

CONDITIONS = {
    "n_words_target <= 60": {"n_words_target"},
    "N_Words_Target BETWEEN 1 AND n_tokens": {"n_words_target", "n_tokens"},
    "signals.copy OR NOT empty": {"copy", "empty"},
    "language_target IN ('fr', 'de')": {"language_target"},
    "language_target = language_source": {"language_target", "language_source"},
    "regexp_matches(language_target, '^f')": {"language_target"},
    "language_target LIKE 'f%' AND rank = 0": {"language_target", "rank"},
    "coalesce(mean_logprob, 0) > -1.5e0": {"mean_logprob"},
    "nullif(n_words_source, 0) IS NOT NULL": {"n_words_source"},
    "if(duplicate, rank = 0, true)": {"duplicate", "rank"},
    "CASE WHEN n_tokens > 9 THEN repetition < 1 ELSE true END": {"n_tokens", "repetition"},
    "greatest(numbers_missing, numbers_added) = 0": {"numbers_missing", "numbers_added"},
    "length_ratio < 2 -- as the paper has it": {"length_ratio"},
    "length_ratio\n  < 2": {"length_ratio"},
    "try_cast(language_target AS INTEGER) IS NULL": {"language_target"},
    "true": set(),
}

# condition: what the one line says
REFUSED = {
    "n_words_targt <= 60": "'n_words_targt' is no signal: did you mean 'n_words_target'?",
    "s.copy": "'s.copy' is no signal: did you mean 'copy'?",
    'language_target = "fr"': "'fr' is no signal: known: agreement",
    "text = 'x'": "'text' is no signal",
    "current_date > '2020-01-01'": "'current_date' is no signal",
    "n_words_target": "gives BIGINT, not true or false: write one condition over signals",
    "length_ratio * 2": "gives DOUBLE, not true or false",
    "language_target": "gives VARCHAR, not true or false",
    "true, true": "not true or false",
    "": "not true or false",
    "-- nothing": "not true or false",
    "n_tokens <": "is no SQL (syntax error",
    "n_tokens < 5)": "is no SQL (syntax error",
    "n_tokens < 5 AS short": "is no SQL (syntax error",
    "true /*": "is no SQL (unterminated /* comment",
    "true) FROM signals WHERE (true": "is no SQL (syntax error",
    "copy; DROP TABLE signals": "holds 2 statements",
    "true); SELECT (true": "holds 2 statements",
    "true); DROP TABLE signals; SELECT (true": "is no SQL",
    "true) UNION ALL SELECT (true": "holds more than expressions",
    "(SELECT true)": "holds a subquery",
    "n_tokens IN (SELECT 1)": "holds a subquery",
    "EXISTS (FROM read_csv('/etc/passwd'))": "holds a subquery",
    "(SELECT count(*) FROM read_text('/etc/passwd')) > 0": "holds a subquery",
    "sum(n_tokens) > 3": "calls sum(), which gathers candidates",
    "count(*) > 3": "calls count_star(), which gathers candidates",
    "max(n_tokens) OVER () > 3": "holds a window",
    "row_number() OVER () = 1": "holds a window",
    "COLUMNS(*) IS NULL": "holds a star",
    "n_tokens < ?": "holds a parameter",
    "n_tokens < $most": "holds a parameter",
    "len(list_filter([1], lambda x: x > n_tokens)) = 0": "holds a lambda",
    "random() < 0.5": "calls random(), which tells of more than its arguments",
    "now() > '2020-01-01'": "calls now(), which tells of more than its arguments",
    "current_setting('memory_limit') = 'x'": "calls current_setting(), which",
    "nextval('x') > 1": "calls nextval(), which",
    "error('stop')": "calls error(), which",
    "pg_sleep(9) IS NULL": "calls pg_sleep(), which",
    "json_serialize_plan('FROM read_csv(''/etc/passwd'')') IS NULL": "calls json_serialize_plan()",
    "read_text('/etc/passwd') IS NULL": "calls read_text(), which",
    "unnest([true])": "calls unnest(), which",
    "nosuch(n_tokens)": "Scalar Function with name nosuch does not exist",
    "regexp_matches(language_target, '(')": "missing ): (",
    "language_target > 3": "Cannot compare values of type VARCHAR",
}

ORDERS = {
    "chrf_gold DESC, n_tokens": {"chrf_gold", "n_tokens"},
    "mean_logprob DESC NULLS FIRST": {"mean_logprob"},
    "abs(length_ratio - 1), rank -- the nearest length": {"length_ratio", "rank"},
}

REFUSED_ORDERS = {
    "chrf DESC": "'chrf' is no signal: did you mean 'chrf_gold'?",
    "1": "has a term that reads no signal: write an order over signals",
    "chrf_gold, 2": "has a term that reads no signal",
    "": "is no SQL",
    "ALL": "holds a star",
    "chrf_gold LIMIT 1": "holds more than expressions",
    "chrf_gold ROWS 3 PRECEDING": "is no SQL",
    "chrf_gold; SELECT 1": "holds 2 statements",
    "(SELECT 1)": "holds a subquery",
    "random()": "calls random(), which",
    "sum(chrf_gold)": "calls sum(), which gathers candidates",
    "chrf_gold + language_target": "No function matches",
}


@pytest.mark.parametrize("sql", CONDITIONS)
def test_a_condition_tells_the_signals_it_reads(sql):
    assert check_condition(sql, "here") == CONDITIONS[sql]


@pytest.mark.parametrize("sql", ORDERS)
def test_an_order_tells_the_signals_it_reads(sql):
    assert check_order(sql, "here") == ORDERS[sql]


@pytest.mark.parametrize("sql", REFUSED)
def test_what_is_no_condition_over_signals_is_refused(sql):
    refuse(check_condition, sql, REFUSED[sql])


@pytest.mark.parametrize("sql", REFUSED_ORDERS)
def test_what_is_no_order_over_signals_is_refused(sql):
    refuse(check_order, sql, REFUSED_ORDERS[sql])


def refuse(check, sql, message):
    with pytest.raises(ManifestError) as caught:
        check(sql, "here")
    assert str(caught.value).startswith("here: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
