"""Protected spans and glossaries, as literal tables."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import ManifestError
from factory.judging.judge import judge
from factory.judging.protected import check_protected
from factory.judging.signals import signal_keys
from factory.manifest import Manifest
from factory.query.catalog import connect, shipped_sql
from factory.records import RunDirectory
from tests.runs import MANIFEST, add_samples, add_shard, make_run

Pairs = list[tuple[str, str | None]]


def judged(root: Path, pairs: Pairs, **section: object) -> RunDirectory:
    """A judged run of one candidate for each (source, text)."""
    run = make_run(root, judge={"rules": ["placeholders"], **section})
    add_samples(run, [{"sample_id": f"{i:03d}", "source": s} for i, (s, _) in enumerate(pairs)])
    failed = {"error": "failed", "text": None}
    rows = [
        {"sample_id": f"{i:03d}", **({"text": text} if text is not None else failed)}
        for i, (_, text) in enumerate(pairs)
    ]
    add_shard(run, 0, rows)
    judge(run, "judge-key")
    return run


def measured(run: RunDirectory, column: str) -> list[int | None]:
    with connect(run) as connection:
        rows = connection.execute(f"SELECT {column} FROM signals ORDER BY sample_id").fetchall()
    return [value for (value,) in rows]


def glossary(folder: Path, *rows: str) -> dict[str, str]:
    path = folder / "terms.tsv"
    path.write_text("".join(f"{row}\n" for row in rows), "utf-8")
    return {"glossary": str(path)}


# source, target, how many spans the target leaves out
SPANS = [
    ("no span", "", 0),
    ("a {name} b", "{name}", 0),
    ("a {name} b", "{nom}", 1),
    ("{0} and {1} of {}", "{1} {0}", 1),
    ("{0} and {0}", "{0}", 1),
    ("{0}", "{0} {0}", 0),
    ("{x:.2f} {y!r} {a.b[0]}", "x", 3),
    ("{a word} {, }", "x", 0),
    ("{{ user }}", "{ user }", 1),
    ("{{x}}", "{x}", 1),
    ("{% if x %}", "si x", 1),
    ("<%= x %>", "", 1),
    ("${VAR} #{x} %{y}", "${VAR} #{z} %{y}", 1),
    ("%s of %d", "%d %s", 0),
    ("%s of %d", "%s", 1),
    ("%1$d %2$s", "%2$s %1$s", 1),
    ("%(name)s %(n)05.2f", "%(name)s", 1),
    ("%5.1f %-3d %lld %@", "", 4),
    ("%dpx", "%d px", 0),
    ("%1 of %2", "%2 %1", 0),
    ("%1% %PATH%", "%2% %PATH%", 1),
    ("20%off and 100%", "20 % et 100 %", 0),
    ("100%% sure", "sûr", 0),
    ("50% de", "x", 0),
    ("%%s", "x", 0),
    ("<b>x</b>", "<b>y</b>", 0),
    ("<b>x</b>", "<b>y", 1),
    ("x<br/>y", "x<br>y", 0),
    ("x<br />y", "x<br/>y", 0),
    ('<g id="1">x</g>', '<g id="2">x</g>', 1),
    ('<img src="a" alt="cat" title="b">', '<img src="a" alt="chat"/>', 0),
    ('<a href="a">x</a>', "<a href='b'>x</a>", 1),
    ("a < b and b > c", "x", 0),
    ("1 <2> 3", "x", 0),
    ("&brandName; &amp; x", "& x", 1),
    ("&nbsp;&quot;x&rsquo;&mdash;&eacute;", "« x »", 0),
    ("AT&T; x", "AT x", 0),
    ("[[PH_1]] [[cat]]", "x", 1),
    ("共{n}个", "{n}", 0),
]


def test_spans_that_are_left_out(tmp_path):
    run = judged(tmp_path / "run", [(source, text) for source, text, _ in SPANS])
    found = zip(SPANS, measured(run, "placeholders_missing"), strict=True)
    assert [(*row[:2], missing) for row, missing in found] == SPANS
    assert set(measured(run, "glossary_missing")) == {None}


@pytest.fixture(scope="module")
def macros() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET VARIABLE protect = ''")
        connection.execute(shipped_sql("protected", "macros"))
        yield connection


SPAN = st.sampled_from(["{a}", "{b}", "%s", "<b>", "</b>"])


@settings(max_examples=50, deadline=None)
@given(st.lists(SPAN), st.lists(SPAN))
def test_what_is_left_out_is_a_difference_of_multisets(macros, wanted, found):
    sql = "SELECT missing(protected_spans($wanted), protected_spans($found))"
    texts = {"wanted": " ".join(wanted), "found": ", ".join(found)}
    [(missing,)] = macros.execute(sql, texts).fetchall()
    assert missing == (Counter(wanted) - Counter(found)).total()


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_a_text_leaves_nothing_of_itself_out(macros, text):
    [(missing,)] = macros.execute(
        "SELECT missing(protected_spans(t), protected_spans(t)) FROM (SELECT $1 AS t)",
        [text.replace("\0", "")],
    ).fetchall()
    assert missing == 0


def test_a_users_patterns_come_first(tmp_path):
    pairs = [("ID-12 {a-b}", "{a-b}"), ("ID-12 x", "id-12"), ("<ph 1>", "<ph 2>"), ("a|b", "b")]
    run = judged(tmp_path / "run", pairs, protect=[r"ID-\d+", "<ph", "a|b", "it's"])
    assert measured(run, "placeholders_missing") == [1, 1, 0, 1]


# source, target, how many entries the target leaves out
GLOSSARY = (
    "cat\tchat", "cat\tminou", "US\tÉtats-Unis", "hot dog\thot-dog", "dog\tchien",
    "猫\tcat", "\n", "e-mail\tcourriel", "don't\tne pas", "big red bus\tbus", "Bus\tautocar",
)  # fmt: skip
TERMS = [
    ("nothing asked", "rien", 0),
    ("A cat.", "Un chat.", 0),
    ("a Cat", "un Minou", 0),
    ("a cat", "un chien", 1),
    ("a cat", "des chats", 1),
    ("cats and concat", "rien", 0),
    ("cat cat cat", "rien", 1),
    ("tell us", "rien", 0),
    ("in the US", "aux États-Unis", 0),
    ("in the US", "aux états-unis", 1),
    ("in the US", "aux E\u0301tats-Unis", 0),
    ("a hot dog", "un hot-dog", 0),
    ("a hot dog", "un chien", 1),
    ("a hot dog and a dog", "un hot-dog", 1),
    ("a Hot  Dog", "un HOT-DOG", 0),
    ("我的猫很", "my cat", 0),
    ("我的猫很", "mine", 1),
    ("(e-mail)", "courriel", 0),
    ("I don’t", "je ne pas", 0),
    ("a big red bus", "un bus", 0),
    ("a big red Bus", "un autobus", 1),
    ("a big", "x", 0),
    ("cat, dog", "", 2),
]


def test_terms_that_are_left_out(tmp_path):
    pairs: Pairs = [(source, text) for source, text, _ in TERMS]
    run = judged(tmp_path / "run", [*pairs, ("cat", None)], **glossary(tmp_path, *GLOSSARY))
    *found, failed = measured(run, "glossary_missing")
    rows = [(*row[:2], missing) for row, missing in zip(TERMS, found, strict=True)]
    assert rows == TERMS
    assert failed is None
    assert measured(run, "placeholders_missing")[-1] is None


def left_out(source: str, text: str, entries: dict[str, list[str]]) -> int:
    """The same, word by word: terms are in small letters, words apart by one blank."""
    words = source.split()
    places = {
        (i, i + len(term.split())): term
        for term in entries
        for i in range(len(words))
        if words[i : i + len(term.split())] == term.split()
    }
    asked = {
        term
        for (i, j), term in places.items()
        if not any(a <= i and j <= b and b - a > j - i for a, b in places)
    }
    return sum(not any(f" {kept} " in f" {text} " for kept in entries[term]) for term in asked)


def test_terms_are_those_of_a_search_word_by_word(tmp_path):
    draw = random.Random(17)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choices("abcd", k=draw.randint(least, most)))

    rows = [(text(1, 4), text(1, 2)) for _ in range(30)]
    entries: dict[str, list[str]] = {}
    for term, kept in rows:
        entries.setdefault(term, []).append(kept)
    pairs: Pairs = [(text(1, 8), text(0, 6)) for _ in range(300)]
    terms = glossary(tmp_path, *("\t".join(row) for row in rows))
    run = judged(tmp_path / "run", pairs, **terms)
    wanted = [left_out(source, text or "", entries) for source, text in pairs]
    assert max(wanted) > 2
    assert measured(run, "glossary_missing") == wanted


def test_every_candidate_of_a_source_is_asked_for_its_terms(tmp_path):
    run = make_run(tmp_path / "run", judge={"rules": ["glossary"]} | glossary(tmp_path, "a\tb"))
    add_samples(run, [{"sample_id": "x", "source": "a {y}"}, {"sample_id": "y", "source": "z"}])
    texts = {("x", 0): "b", ("x", 1): "{y}", ("y", 0): "c"}
    add_shard(run, 0, [{"sample_id": i, "rank": r, "text": t} for (i, r), t in texts.items()])
    judge(run, "judge-key")
    with connect(run) as connection:
        columns = "rank, placeholders_missing, glossary_missing, kept"
        rows = connection.execute(
            f"SELECT sample_id, {columns} FROM signals JOIN verdicts USING (sample_id, rank)"
            " ORDER BY ALL"
        ).fetchall()
    assert rows == [("x", 0, 1, 0, True), ("x", 1, 0, 1, False), ("y", 0, 0, 0, True)]


def test_the_content_of_the_glossary_is_in_the_key(tmp_path):
    run = judged(tmp_path / "run", [("a", "b")], **glossary(tmp_path, "a\tb"))
    before = signal_keys(run, run.manifest())
    glossary(tmp_path, "a\tc")
    after = signal_keys(run, run.manifest())
    assert {name for name in before if before[name] != after[name]} == {"protected"}


MISTAKES = {
    "no file": (None, "judge.glossary: '", "cannot be read: No such file"),
    "no tab": ("a\tb\n\na b\n", "terms.tsv:3: 'a b': ", "a source term, a tab, a target term"),
    "three fields": ("a\tb\tc\n", "terms.tsv:1: ", "write it as"),
    "an empty term": ("a\t \n", "terms.tsv:1: ", "write it as"),
    "no terms": ("\n", "judge.glossary: ", "holds no terms"),
    "Latin-1": (b"\xe9\tb\n", "judge.glossary: ", "is not UTF-8"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_glossary_that_is_wrong(tmp_path, name):
    content, place, remedy = MISTAKES[name]
    path = tmp_path / "terms.tsv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ManifestError) as caught:
        check_protected(Manifest.model_validate(MANIFEST | {"judge": {"glossary": str(path)}}))
    assert place in str(caught.value)
    assert remedy in str(caught.value)


PATTERNS = {"a(": "missing )", "(?=x)": "(?=", r"(a)\1": r"\1", "x*": "where there is nothing",
            "a)(b": "unexpected )", r"\Qa": "missing )"}  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_that_is_wrong(pattern):
    with pytest.raises(ManifestError, match=r"^judge\.protect\.1: ") as caught:
        check_protected(Manifest.model_validate(MANIFEST | {"judge": {"protect": ["a", pattern]}}))
    assert PATTERNS[pattern] in str(caught.value)
