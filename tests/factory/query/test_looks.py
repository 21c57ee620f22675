"""The queries that ship, asked by name: what they answer of every kind of row, what they refuse."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import numpy as np
import pytest
from typer.testing import CliRunner

from factory.cli import app
from factory.errors import QueryError
from factory.query import catalog, fence
from factory.query.looks import ask, parameters
from factory.records import RunDirectory
from tests.runs import add_samples, add_shard, add_tokens, make_run

ROOT = Path(__file__).parents[3]
TOKENS = ["</s>", "▁a", "b", "▁c", "d", "▁e", "f", "▁g"]
WORDS = [" one", " two", "three", " four"]
TARGETS = {"fixed": [1, 2, 3, 0], "ragged": [1, 4, 0], "drawn": [5, 2, 2, 0]}
KEEP = {"fixed": lambda at: 3, "ragged": lambda at: 1 + at, "drawn": lambda at: 4 - at % 2}


def distributions(name: str, seed: int) -> np.ndarray:
    """float64 [n, 8]: the teacher's whole distribution at each position of a target."""
    flat = np.random.default_rng([seed, len(name)]).dirichlet(np.full(8, 0.5), len(TARGETS[name]))
    return (flat + 0.01) / (flat + 0.01).sum(1, keepdims=True)


def row(name: str, seed: int, target: list[int] | None = None) -> dict:
    """What is stored of them: the top ids, as many as `KEEP` says; draws have missed the top."""
    whole, ids = distributions(name, seed), target or TARGETS[name]
    first = int(name == "drawn")
    order = [np.argsort(-p)[first : first + KEEP[name](at)] for at, p in enumerate(whole)]
    held = [p[top] for p, top in zip(whole, order, strict=True)]
    made = {
        "sample_id": name,
        "n_tokens": len(ids),
        "k": 3 if name == "fixed" else None,
        "widths": None if name == "fixed" else [len(top) for top in order],
        "token_ids": ids,
        "token_logprobs": np.log(whole[np.arange(len(ids)), ids]).tolist(),
        "topk_ids": np.concatenate(order).tolist(),
        "topk_logprobs": np.log(np.concatenate(held)).tolist(),
        "tail_logprob": [float(np.log(1 - p.sum())) for p in held],
    }
    if name == "drawn":
        made |= {"counts": [1] * len(made["topk_ids"]), "draws": 50}
    return made


def build(root: Path, seed: int, tokens: list[str] = TOKENS, **targets: list[int]) -> RunDirectory:
    run = make_run(root)
    names = list(TARGETS)
    add_samples(run, [{"sample_id": name, "source": name} for name in names])
    rows = [row(name, seed, targets.get(name)) for name in names]
    add_shard(run, 0, [{"sample_id": name, "text": "x"} for name in names], rows)
    add_tokens(run, tokens)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[RunDirectory, RunDirectory]:
    """Two runs of the same sources; their targets part in the second token of `ragged`."""
    folder = tmp_path_factory.mktemp("looks")
    return build(folder / "here", 1), build(folder / "there", 2, ragged=[1, 5, 0])


def positions(seed: int) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
    """Sample, position, whole distribution, ids held."""
    found = []
    for name in TARGETS:
        stored, whole = row(name, seed), distributions(name, seed)
        widths = stored["widths"] or [3] * len(whole)
        cuts = np.split(np.array(stored["topk_ids"]), np.cumsum(widths)[:-1])
        found += [(name, at, whole[at], cut) for at, cut in enumerate(cuts)]
    return found


def entropy(whole: np.ndarray, held: np.ndarray) -> float:
    parts = np.append(whole[held], 1 - whole[held].sum())
    return float(-(parts * np.log(parts)).sum())


def answer(run: RunDirectory, query: str, *values: str, other: RunDirectory | None = None):
    relation = ask(run, query, values, other)
    return [dict(zip(relation.columns, found, strict=True)) for found in relation.fetchall()]


def test_entropy_is_of_what_is_stored_and_a_lower_bound(runs):
    expected: dict[int, list[float]] = {}
    for _, at, whole, held in positions(1):
        expected.setdefault(at, []).append(entropy(whole, held))
        assert expected[at][-1] <= -(whole * np.log(whole)).sum()
    found = answer(runs[0], "@entropy_by_position")
    assert [(r["origin"], r["position"], r["n"]) for r in found] == [
        ("candidate", at, len(values)) for at, values in sorted(expected.items())
    ]
    for r in found:
        values = expected[r["position"]]
        assert r["mean"] == pytest.approx(np.mean(values), abs=1e-5)
        assert r["median"] == pytest.approx(np.median(values), abs=1e-5)
        assert r["p95"] == pytest.approx(np.quantile(values, 0.95), abs=1e-5)


def test_entropy_where_nothing_is_left_or_nothing_held(runs):
    sql = (
        "SELECT held_entropy([0.0], 0.0), held_entropy([]::FLOAT[], 1.0), "
        "held_entropy([ln(0.5)], 0.5), held_entropy([ln(0.5), '-inf'::FLOAT], 0.5)"
    )
    assert ask(runs[0], sql).fetchall()[0] == pytest.approx((0, 0, np.log(2), np.log(2)))


def test_tail_mass_by_position_and_of_all(runs):
    tails = [(at, 1 - whole[held].sum(), len(held)) for _, at, whole, held in positions(1)]
    found = answer(runs[0], "@tail_by_position")
    assert [r["position"] for r in found] == [0, 1, 2, 3, None]
    for r in found:
        values = [(tail, n) for at, tail, n in tails if r["position"] in (at, None)]
        masses = [tail for tail, _ in values]
        assert (r["n"], r["held"]) == (len(values), pytest.approx(np.mean([n for _, n in values])))
        assert (r["mean"], r["median"]) == pytest.approx((np.mean(masses), np.median(masses)))
        assert (r["p95"], r["max"]) == pytest.approx((np.quantile(masses, 0.95), max(masses)))


@pytest.mark.parametrize("bins", [1, 4, 10])
def test_confidence_bins_every_position_once(runs, bins):
    rows = []
    for name, at, whole, held in positions(1):
        chosen = TARGETS[name][at]
        top = whole[held[0]]
        rows.append((min(int(top * bins), bins - 1) / bins, top, whole[chosen]))
    found = answer(runs[0], "@confidence", f"bins={bins}")
    assert [r["top_from"] for r in found] == sorted({r[0] for r in rows})
    for r in found:
        inside = [one for one in rows if one[0] == r["top_from"]]
        assert r["n"] == len(inside)
        assert r["top_mean"] == pytest.approx(np.mean([top for _, top, _ in inside]))
        assert r["chosen_mean"] == pytest.approx(np.mean([p for _, _, p in inside]))
        assert r["not_top"] == pytest.approx(np.mean([p < top for _, top, p in inside]))


def test_a_tie_is_not_beaten(tmp_path):
    run = make_run(tmp_path / "run")
    add_samples(run, [{"sample_id": "a", "source": "x"}])
    tied = row("fixed", 1) | {"sample_id": "a", "n_tokens": 1, "token_ids": [2]}
    tied |= {"topk_ids": [1, 2, 3], "topk_logprobs": [-1.0, -1.0, -3.0], "token_logprobs": [-1.0]}
    add_shard(run, 0, [{"sample_id": "a", "text": "y"}], [tied | {"tail_logprob": [-1.5]}])
    [found] = answer(run, "@confidence")
    assert (found["n"], found["not_top"]) == (1, 0.0)


def test_uncertain_positions_in_words(runs):
    ranked = sorted(positions(1), key=lambda p: -entropy(p[2], p[3]))
    found = answer(runs[0], "@uncertain", "n=5", "before=2", "others=2")
    assert [(r["sample_id"], r["position"]) for r in found] == [p[:2] for p in ranked[:5]]
    for r, (name, at, whole, held) in zip(found, ranked, strict=False):
        ids = TARGETS[name]
        spelled = "".join(TOKENS[i] for i in ids[max(0, at - 2) : at]).replace("▁", " ")
        others = [i for i in held if i != ids[at]][:2]
        assert r["entropy"] == round(entropy(whole, held), 3)
        assert (r["before"], r["chosen"]) == (spelled, TOKENS[ids[at]])
        assert r["p"] == pytest.approx(whole[ids[at]], abs=6e-4)
        assert r["others"] == "  ".join(f"{TOKENS[i]} {whole[i]:.3f}" for i in others)
    assert all(r["position"] >= 2 for r in answer(runs[0], "@uncertain", "least=2"))


def divergence(p: np.ndarray, q: np.ndarray, both: np.ndarray) -> float:
    p, q = (np.append(d[both], 1 - d[both].sum()) for d in (p, q))
    return float((p * np.log(p / q)).sum())


def test_agreement_compares_what_follows_equal_tokens(runs):
    here, there = runs
    expected: dict[int | None, list[tuple[float, ...]]] = {}
    for (name, at, p, held), (_, _, q, held_there) in zip(positions(1), positions(2), strict=True):
        if name == "ragged" and at > 1:  # after the tokens that differ
            continue
        both = np.intersect1d(held, held_there)
        kl, back = divergence(p, q, both), divergence(q, p, both)
        assert -1e-9 < kl <= (p * np.log(p / q)).sum() + 1e-9
        for place in (at, None):
            one = (held[0] == held_there[0], len(both), kl, back)
            expected.setdefault(place, []).append(one)
    found = answer(here, "@agreement", other=there)
    assert [r["position"] for r in found] == [None, 0, 1, 2, 3]
    for r in found:
        values = expected[r["position"]]
        assert r["n"] == len(values)
        told = (r["same_top"], r["common"], r["kl"], r["kl_back"])
        assert told == pytest.approx(tuple(np.mean(values, axis=0)), abs=1e-5)


def test_a_run_agrees_with_itself(runs):
    [first, *_] = answer(runs[0], "@agreement", other=runs[0])
    assert (first["n"], first["same_top"]) == (11, 1.0)
    assert (first["kl"], first["kl_back"]) == pytest.approx((0, 0), abs=1e-6)


def test_runs_of_different_tokenizers_are_not_compared(tmp_path, runs):
    foreign = build(tmp_path / "foreign", 2, tokens=TOKENS[::-1])
    with pytest.raises(QueryError, match="different tokenizers"), fence.query_errors():
        ask(runs[0], "@agreement", other=foreign).fetchall()


def test_the_other_run_stands_beside_this_one_within_the_fence(runs, tmp_path):
    here, there = runs
    joined = "SELECT count(*) FROM logits a JOIN other.logits b USING (sample_id, origin, rank)"
    assert ask(here, joined, other=there).fetchall() == [(3,)]
    sql = "SELECT (SELECT count(*) FROM samples), token_ids FROM other.logits WHERE k IS NULL"
    assert ask(here, sql, other=there).fetchall()[0] == (3, [1, 5, 0])
    outside = tmp_path / "outside.csv"
    outside.write_text("a\n1\n")
    for hostile in (f"FROM '{outside}'", f"FROM '{there.path('manifest.yaml')}'"):
        with pytest.raises(QueryError), fence.query_errors():
            ask(here, hostile, other=there).fetchall()


WRONG = [
    ("@agreemnt", (), "'@agreemnt': is no query: did you mean 'agreement'"),
    ("@", ("n=3",), "'n=3': is for a query with a name"),
    ("@agreement", (), "name the other one by --with RUN"),
    ("@uncertain", ("m=3",), "'m': is no parameter of @uncertain"),
    ("@uncertain", ("n",), "'n': has no value: write n=VALUE"),
    ("@tail_by_position", ("n=3",), "it has none"),
    ("@uncertain", ("n=many",), "Could not convert string 'many'"),
    ("@uncertain", ("n=3) UNION SELECT (1",), "Could not convert string"),
    ("SELECT 1", ("n=3",), "is for a query by name"),
    ("FROM uncertian()", (), "'uncertian': cannot be read: did you mean 'uncertain'?"),
    ("FROM agreement()", (), 'schema "other" does not exist'),
]


def test_a_list_of_the_names_with_what_they_answer(runs):
    found = {row[0]: row[1:] for row in ask(runs[0], "@").fetchall()}
    assert set(found) == {f"@{name}" for name in catalog.looks()}
    assert found["@uncertain"] == (
        "Where was the teacher least sure, and between what?",
        "n=20, before=8, others=3, least=0",
    )
    assert found["@agreement"][1] == ""


@pytest.mark.parametrize(("query", "values", "told"), WRONG)
def test_what_cannot_be_asked_is_told_in_a_line(runs, query, values, told):
    with pytest.raises(QueryError) as caught, fence.query_errors():
        ask(runs[0], query, values).fetchall()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", catalog.looks())
def test_every_look_answers_a_run_without_distributions(tmp_path, name):
    run = make_run(tmp_path / "empty")
    rows = answer(run, f"@{name}", other=run)
    assert all(value is None or value == 0 for row in rows for value in row.values())


@pytest.mark.parametrize("name", catalog.looks())
def test_every_look_says_what_it_answers_and_is_documented(name):
    text = catalog.shipped_sql("look", name)
    question, blank, *rest = text.splitlines()
    assert (question[:3], question[-1:], blank) == ("-- ", "?", "--")
    comment = "\n".join(line for line in rest if line.startswith("--"))
    assert all(re.search(rf"\b{parameter}, ", comment) for parameter in parameters(name))
    page = (ROOT / "docs" / "look.md").read_text("utf-8")
    assert re.search(rf"^\$ seqkd sql \S+ (@{name}\b|\".*\b{name}\()", page, re.MULTILINE)
    for parameter, default in parameters(name).items():
        assert f"`{parameter}` ({default})" in page


def test_looks_and_tokens_in_the_plain_shell(runs, monkeypatch):
    here, there = runs
    for run in runs:
        catalog.refresh(run)
    monkeypatch.chdir(here.root.parent)
    with duckdb.connect("here/catalog.duckdb", read_only=True) as shell:
        assert shell.sql("SELECT tokens_text([1, 2, 3])").fetchall() == [(" ab c",)]
        for name in ("confidence", "entropy_by_position", "tail_by_position", "uncertain"):
            asked = shell.sql(f"FROM {name}()").fetchall()
            assert asked == ask(here, f"@{name}").fetchall() != []
        shell.execute("ATTACH 'there/catalog.duckdb' AS other (READ_ONLY)")
        asked = [row[:3] for row in shell.sql("FROM agreement()").fetchall()]
        assert asked == [row[:3] for row in ask(here, "@agreement", other=there).fetchall()] != []


def test_the_command_asks_by_name(runs):
    here, there = (str(run.root) for run in runs)
    asked = ["sql", here, "@uncertain", "--param", "n=2", "--format", "csv"]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0
    assert len(told.stdout.splitlines()) == 3
    told = CliRunner().invoke(app, ["sql", here, "@agreement", "--with", there, "--format", "csv"])
    assert told.stdout.splitlines()[0] == "origin,position,n,same_top,common,kl,kl_back"
