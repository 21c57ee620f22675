"""Signals, rules and selection, as literal tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from factory.errors import ManifestError
from factory.judging.judge import judge
from factory.judging.rules import rules_of
from factory.judging.templates import shipped_rules
from factory.query import catalog
from factory.records import RunDirectory
from factory.schemas import SIGNALS, VERDICTS
from factory.shards import SIGNATURE, check_file
from tests.runs import add_samples, add_shard, make_run

GOOD = ("one two", "un deux", "stop")
DEFAULT = ["error", "truncated", "empty", "length_ratio", "copy", "duplicate"]


def judged(
    root: Path, pairs: list[tuple[str, str | None, str]], rules: list | None = None
) -> RunDirectory:
    """A judged run of one candidate for each (source, text, finish_reason); ids are 0, 1, …

    GOOD stands beside them, for rules that keep nothing are refused.
    """
    pairs = [*pairs, GOOD]
    run = make_run(root, judge={"rules": DEFAULT if rules is None else rules})
    add_samples(run, [{"sample_id": str(i), "source": s} for i, (s, _, _) in enumerate(pairs)])
    given = [
        {"sample_id": str(i), "finish_reason": finish, "error": "failed", "text": None}
        if text is None
        else {"sample_id": str(i), "finish_reason": finish, "text": text}
        for i, (_, text, finish) in enumerate(pairs)
    ]
    add_shard(run, 0, given)
    judge(run, "judge-key")
    return run


def query(run: RunDirectory, sql: str) -> list[tuple]:
    with catalog.connect(run) as connection:
        return connection.execute(sql).fetchall()


# source, text, finish → truncated, empty, copy, words, words, ratio, and the default rules failed
TABLE = [
    ("a b c", "x y z", "stop", (False, False, False, 3, 3, 1.0), []),
    ("a b c", "x y z", "length", (True, False, False, 3, 3, 1.0), ["truncated"]),
    ("a b", "x", "stop", (False, False, False, 2, 1, 0.5), []),
    ("a b c", "x", "stop", (False, False, False, 3, 1, 1 / 3), ["length_ratio"]),
    ("a", "x y", "stop", (False, False, False, 1, 2, 2.0), []),
    ("a", "x y z", "stop", (False, False, False, 1, 3, 3.0), ["length_ratio"]),
    ("a b", "", "stop", (False, True, False, 2, 0, 0.0), ["empty", "length_ratio"]),
    ("a b", " \t\n", "stop", (False, True, False, 2, 0, 0.0), ["empty", "length_ratio"]),
    ("a b", "\u00a0\u3000", "length", (True, True, False, 2, 0, 0.0), None),
    ("Élan vital", "  élan VITAL \n", "stop", (False, False, True, 2, 2, 1.0), ["copy"]),
    ("a b", "a  b", "stop", (False, False, False, 2, 2, 1.0), []),
    ("  a\u00a0b ", "x\ty", "stop", (False, False, False, 2, 2, 1.0), []),
    (" ", "x", "stop", (False, False, False, 0, 1, None), []),
    (" ", "", "stop", (False, True, True, 0, 0, None), ["empty", "copy"]),
    ("a b", None, "error", (False, None, None, 2, None, None), ["error"]),
]


@pytest.mark.parametrize(("source", "text", "finish", "signals", "reasons"), TABLE)
def test_signals_and_reasons(tmp_path, source, text, finish, signals, reasons):
    run = judged(tmp_path / "run", [(source, text, finish)])
    columns = "truncated, empty, copy, n_words_source, n_words_target, length_ratio"
    found = query(run, f"SELECT {columns} FROM signals ORDER BY sample_id")[0]
    assert found[:5] == signals[:5]
    assert found[5] == pytest.approx(signals[5])
    if reasons is None:
        reasons = ["truncated", "empty", "length_ratio"]
    told = query(run, "SELECT kept, reasons FROM verdicts ORDER BY sample_id")
    assert told == [(reasons == [], reasons), (True, [])]


def test_duplicates_are_counted_over_the_whole_run(tmp_path):
    run = make_run(tmp_path / "run", judge={"rules": ["duplicate"]})
    sources = {"a": "same", "b": "same", "c": "other", "d": "same", "e": "same", "f": "same"}
    add_samples(run, [{"sample_id": k, "source": v} for k, v in sources.items()])
    add_shard(run, 0, [{"sample_id": "d", "text": "x"}, {"sample_id": "c", "text": "x"}])
    add_shard(
        run,
        1,
        [
            {"sample_id": "b", "text": "x", "rank": 1},
            {"sample_id": "b", "text": "y", "rank": 0},
            {"sample_id": "a", "text": "X"},
            {"sample_id": "e", "error": "failed"},
            {"sample_id": "f", "error": "failed"},
        ],
    )
    judge(run, "key")
    assert query(run, "SELECT sample_id, rank, duplicate FROM signals ORDER BY ALL") == [
        ("a", 0, False),
        ("b", 0, False),
        ("b", 1, False),
        ("c", 0, False),
        ("d", 0, True),
        ("e", 0, None),
        ("f", 0, None),
    ]


@pytest.mark.parametrize(
    ("source", "text", "inside", "count"),
    [
        ("a b", "x y", 0, 0),
        ("a b", "x y", None, 0),
        ("a b", "x y", 2, 2),
        ("a b", "x<|im_end|>\n<|im_start|>user", 0, 2),
        ("a b", "x <|im_end|>", 1, 2),
        ("a b", "x</s>", 0, 1),
        ("a b", "[INST] x [/INST]", 0, 2),
        ("a b", "<<SYS>>x", 0, 1),
        ("a b", "<think>\n\n</think>x", 0, 2),
        ("a b", "<\uff5cAssistant\uff5c>x", 0, 1),
        ("a b", "<start_of_turn>model", 0, 1),
        ("what is <think>?", "<think> opens, </think> ends", 0, 1),
        ("a b", "x < y | z > w, <b>bold</b> [1] [INSTITUTE] a<|b", 0, 0),
    ],
)
def test_control_tokens_are_counted_inside_and_spelled(tmp_path, source, text, inside, count):
    run = make_run(tmp_path / "run", judge={"rules": ["control_tokens"]})
    add_samples(run, [{"sample_id": "0", "source": source}, {"sample_id": "1", "source": "a"}])
    given = {"sample_id": "0", "text": text, "control_tokens": inside}
    add_shard(run, 0, [given, {"sample_id": "1", "text": "x"}])
    judge(run, "judge-key")
    found = query(run, "SELECT control_tokens FROM signals ORDER BY sample_id")
    assert found == [(count,), (0,)]
    reasons = ["control_tokens"] if count else []
    assert query(run, "SELECT reasons FROM verdicts ORDER BY sample_id") == [(reasons,), ([],)]


def test_equal_last_words_of_different_conversations_are_no_duplicates(tmp_path):
    run = make_run(tmp_path / "run", judge={"rules": ["duplicate"]})
    prompts = {"a": "Tell a joke. Go on.", "b": "Count. Go on.", "c": "Count. Go on."}
    rows = [{"sample_id": i, "source": "Go on.", "prompt": prompt} for i, prompt in prompts.items()]
    add_samples(run, rows)
    add_shard(run, 0, [{"sample_id": i, "text": "Yes."} for i in prompts])
    judge(run, "judge-key")
    found = query(run, "SELECT duplicate FROM signals ORDER BY sample_id")
    assert found == [(False,), (False,), (True,)]


def test_signals_are_typed_as_declared_and_sorted(tmp_path):
    run = judged(tmp_path / "run", [(f"s {i}", f"t {i}", "stop") for i in range(50)])
    for table, schema in (("signals", SIGNALS), ("verdicts", VERDICTS)):
        [record] = run.files(table)
        stored = pq.read_table(run.path(record["path"]))
        assert dict(zip(stored.schema.names, stored.schema.types, strict=True)) == dict(
            zip(schema.names, schema.types, strict=True)
        )
        assert stored["sample_id"].to_pylist() == sorted(map(str, range(51)))
        assert SIGNATURE in stored.schema.metadata
        check_file(run, record)


# --- rules ---------------------------------------------------------------------------------------

THREE = [("a b c d", "x", "length"), ("a b", "a b", "stop"), ("a b", "x y", "stop")]
RULES = [
    ([], [[], [], []]),
    (["truncated"], [["truncated"], [], []]),
    (["length_ratio", "truncated"], [["length_ratio", "truncated"], [], []]),
    (["truncated", "length_ratio"], [["truncated", "length_ratio"], [], []]),
    ([{"length_ratio": {"min": 0.25}}], [[], [], []]),
    ([{"length_ratio": {"min": 0.9, "max": 1e9}}], [["length_ratio"], [], []]),
    ([{"length_ratio": None}, "copy"], [["length_ratio"], ["copy"], []]),
    ([{"length_ratio": {"min": 1e-4, "max": 1e9}}, "copy"], [[], ["copy"], []]),
]


@pytest.mark.parametrize(("rules", "reasons"), RULES)
def test_reasons_follow_the_manifest(tmp_path, rules, reasons):
    run = judged(tmp_path / "run", THREE, rules)
    told = query(run, "SELECT reasons FROM verdicts ORDER BY sample_id")
    assert told == [(r,) for r in [*reasons, []]]


def test_a_candidate_without_text_is_never_a_target(tmp_path):
    run = judged(tmp_path / "run", [("a", None, "error")], [])
    told = query(run, "SELECT kept, selected, reasons FROM verdicts ORDER BY sample_id")
    assert told == [(False, False, ["error"]), (True, True, [])]
    assert run.step("judge")["reasons"] == {"error": 1}


BAD_RULES = [
    (["lenght_ratio"], "judge.rules: 'lenght_ratio': is no rule: did you mean 'length_ratio'?"),
    ([{"lengthratio": {"min": 1}}], "did you mean 'length_ratio'?"),
    ([{"length_ratio": {"mim": 1}}], "judge.rules.length_ratio.mim: 1: is no parameter: did you"),
    (
        [{"length_ratio": {"min": "1"}}],
        "judge.rules.length_ratio.min: '1': must be a finite number",
    ),
    ([{"length_ratio": {"min": True}}], "must be a finite number"),
    ([{"length_ratio": {"min": [1]}}], "must be a finite number"),
    ([{"length_ratio": {"max": None}}], "must be a finite number"),
    ([{"length_ratio": {"max": float("inf")}}], "max: must be a finite number"),
    ([{"copy": {"min": 1}}], "judge.rules.copy.min: 1: is no parameter: the rule takes none"),
    (["copy", {"copy": None}], "judge.rules: 'copy': stands twice"),
    (["*"], "judge.rules: '*': is no rule"),
]


@pytest.mark.parametrize(("rules", "message"), BAD_RULES)
def test_mistaken_rules_are_told_without_data(tmp_path, rules, message):
    manifest = make_run(tmp_path / "run", judge={"rules": rules}).manifest()
    with pytest.raises(ManifestError) as caught:
        rules_of(manifest)
    assert message in str(caught.value)


def test_shipped_rules_are_predicates_over_signals(tmp_path):
    given = {"rules": list(shipped_rules()), "glossary": "/g.tsv", "reverse": {"model": "/m"}}
    run = make_run(tmp_path / "run", judge=given, languages=["en", "fr"])
    rules = rules_of(run.manifest())
    assert {rule.name for rule in rules} == shipped_rules().keys()
    with catalog.connect(run) as connection:
        for rule in rules:
            query = f"SELECT {rule.condition({})} FROM signals"
            assert connection.sql(query).types == ["BOOLEAN"], rule.name


# --- selection, and what is recorded -------------------------------------------------------------


@pytest.fixture
def several(tmp_path) -> RunDirectory:
    run = make_run(tmp_path / "several")
    ids = ["a", "b", "c", "d"]
    add_samples(run, [{"sample_id": i, "source": f"one two {i}"} for i in ids])
    add_shard(
        run,
        0,
        [
            {"sample_id": "a", "rank": 0, "text": "x y z"},
            {"sample_id": "a", "rank": 1, "text": "x y w"},
            {"sample_id": "b", "rank": 0, "text": "x y z", "finish_reason": "length"},
            {"sample_id": "b", "rank": 1, "text": "x"},
            {"sample_id": "b", "rank": 2, "text": "z y x"},
            {"sample_id": "c", "rank": 0, "text": "one two c"},
            {"sample_id": "d", "error": "too long"},
        ],
    )
    return run


def test_the_lowest_rank_kept_is_selected(several):
    judge(several, "key")
    found = query(several, "SELECT sample_id, rank, source, target FROM pseudolabels ORDER BY 1")
    assert found == [("a", 0, "one two a", "x y z"), ("b", 2, "one two b", "z y x")]


def test_rejects_and_kept_are_disjoint_and_complete(several):
    judge(several, "key")
    assert query(several, "SELECT sample_id, rank, text, reasons FROM rejects ORDER BY 1, 2") == [
        ("b", 0, "x y z", ["truncated"]),
        ("b", 1, "x", ["length_ratio"]),
        ("c", 0, "one two c", ["copy"]),
        ("d", 0, None, ["error"]),
    ]
    kept = query(several, "SELECT sample_id, rank FROM verdicts WHERE kept ORDER BY 1, 2")
    assert kept == [("a", 0), ("a", 1), ("b", 2)]


def test_figures_are_recorded(several):
    figures = judge(several, "key")
    record = several.step("judge")
    assert record["key"] == "key"
    assert {k: record[k] for k in figures} == figures
    digest = figures.pop("verdicts_digest")
    assert len(digest) == 32
    assert figures == {
        "candidates": 7,
        "kept": 3,
        "selected": 2,
        "without_target": 2,
        "reasons": {
            "error": 1,
            "truncated": 1,
            "empty": 0,
            "length_ratio": 1,
            "copy": 1,
            "duplicate": 0,
        },
        "reasons_alone": {
            "error": 1,
            "truncated": 1,
            "empty": 0,
            "length_ratio": 1,
            "copy": 1,
            "duplicate": 0,
        },
        "by_rank": 0,
        "thresholds": {},
    }


def rejudge(run: RunDirectory, key: str, rules: list) -> dict:
    changed = run.manifest().model_dump(mode="json", exclude_unset=True)
    make_run(run.root, **changed | {"judge": {"rules": rules}})
    return judge(run, key)


def test_judging_anew_writes_beside_and_keeps_the_signals(several):
    first = judge(several, "first")
    [signals] = several.files("signals")
    written = several.path(signals["path"]).stat().st_mtime_ns
    second = rejudge(several, "second", [{"length_ratio": {"min": 0.1}}, "copy"])
    assert several.files("signals") == [signals]
    assert several.path(signals["path"]).stat().st_mtime_ns == written
    assert several.path("verdicts", "first", "part-0.parquet").is_file()
    assert second["verdicts_digest"] != first["verdicts_digest"]
    assert query(several, "SELECT rank FROM pseudolabels ORDER BY sample_id") == [(0,), (0,)]
    third = rejudge(several, "third", DEFAULT)
    assert third["verdicts_digest"] == first["verdicts_digest"]


def test_new_candidates_are_measured(several):
    judge(several, "first")
    add_shard(several, 1, [{"sample_id": "c", "rank": 1, "text": "u v w"}])
    judge(several, "second")
    assert query(several, "SELECT count(*) FROM signals") == [(8,)]
    assert query(several, "SELECT target FROM pseudolabels WHERE sample_id = 'c'") == [("u v w",)]


def test_the_digest_does_not_depend_on_how_candidates_were_sharded(tmp_path):
    digests = set()
    for order in (["0", "1"], ["1", "0"]):
        run = make_run(tmp_path / "-".join(order))
        add_samples(run, [{"sample_id": i, "source": f"a {i}"} for i in "01"])
        for shard, i in enumerate(order):
            add_shard(run, shard, [{"sample_id": i, "text": f"x {i}"}])
        digests.add(judge(run, "key")["verdicts_digest"])
    assert len(digests) == 1


def test_a_run_without_candidates_is_judged(tmp_path):
    run = make_run(tmp_path / "run")
    add_samples(run, [{"sample_id": "a", "source": "a"}])
    assert judge(run, "key")["without_target"] == 1
    assert query(run, "SELECT count(*) FROM verdicts") == [(0,)]
