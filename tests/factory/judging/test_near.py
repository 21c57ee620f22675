"""Near duplicates and contamination, beside the Jaccard similarity of all pairs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.judging import texts
from factory.judging.families import Measuring
from factory.judging.minhash import bands, shingles
from factory.judging.near import measure_near
from factory.query.catalog import connect
from factory.records import RunDirectory
from tests.runs import add_samples, add_shard, make_run


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (" .!\n", []),
        ("\U0001f600", []),
        ("One", ["one"]),
        ("One, two!", ["one two"]),
        ("a b c d e", ["a b c d e"]),
        ("A b  c\td (e) f", ["a b c d e", "b c d e f"]),
        ("a a a a a a a", ["a a a a a"]),
        ("\u00c9t\u00e9 2024", ["\u00e9t\u00e9 2024"]),
    ],
)
def test_shingles(text, found):
    assert shingles(text) == {f"\n{words}" for words in found}
    assert not shingles(text, "source") & shingles(text, "target")


def words(count: int, draw: random.Random) -> list[str]:
    return [f"w{draw.randrange(10**6)}" for _ in range(count)]


def jaccard(one: frozenset[str] | set[str], other: frozenset[str] | set[str]) -> float:
    return len(one & other) / len(one | other)


def test_a_band_is_shared_as_often_as_banding_says():
    """1 - (1 - s^8)^14 of the pairs of similarity s, in 2,000 pairs for each of five s."""
    draw = random.Random(5)
    for same, different in ((20, 20), (30, 10), (30, 6), (36, 4), (40, 1)):
        sets = list[set[str]]()
        for _ in range(2000):
            shared = words(same, draw)
            sets += [set(shared + words(different, draw)) for _ in range(2)]
        similar = np.mean([jaccard(a, b) for a, b in zip(sets[::2], sets[1::2], strict=True)])
        hashes = bands(sets)
        met = (hashes[::2] == hashes[1::2]).any(1).mean()
        wanted = 1 - (1 - similar**8) ** 14
        assert met == pytest.approx(wanted, abs=0.04), similar


def test_bands_are_the_same_everywhere():
    one, other = bands([{"a", "b"}, {"c"}]), bands([{"c"}, {"b", "a"}, {"d"}])
    assert one[0].tolist() == other[1].tolist()
    assert one[1].tolist() == other[0].tolist()
    assert not np.isin(other[2], other[:2]).any()


def found(run: RunDirectory) -> dict[tuple[str, int], tuple[bool | None, bool]]:
    with connect(run) as connection:
        batches = measure_near(Measuring(run, run.manifest(), connection, None))
        rows = [row for batch in batches for row in batch.to_pylist()]
    assert list(run.path("signals").iterdir()) == []  # what was written aside is gone
    return {
        (row["sample_id"], row["rank"]): (row["near_duplicate"], row["near_test"]) for row in rows
    }


LONG = [f"word{i}" for i in range(40)]
ALMOST = " ".join([*LONG[:39], "other"])
WHOLE = " ".join(LONG)


def small_run(root: Path, test_gold: str = "x") -> RunDirectory:
    run = make_run(root)
    sources = {"a": WHOLE, "b": ALMOST, "c": "short one", "d": "Short, one!", "e": "\U0001f600"}
    sources |= {"f": "\U0001f600", "g": "near the test", "h": "quite " + WHOLE}
    given: list[dict[str, Any]] = [{"sample_id": k, "source": v} for k, v in sources.items()]
    held = {"sample_id": "t", "source": "Near the TEST.", "gold": test_gold, "split": "test"}
    seen = {"sample_id": "v", "source": "short one", "gold": "y", "split": "validation"}
    add_samples(run, [*given, held, seen])
    add_shard(
        run,
        0,
        [
            {"sample_id": "b", "rank": 0, "text": WHOLE},
            {"sample_id": "b", "rank": 1, "text": "something quite different of one's own"},
            {"sample_id": "d", "text": "court"},
            {"sample_id": "e", "text": "\U0001f600"},
            {"sample_id": "h", "error": "failed"},
        ],
    )
    add_shard(
        run,
        1,
        [
            {"sample_id": "a", "rank": 0, "text": ALMOST},
            {"sample_id": "a", "rank": 1, "text": ALMOST},
            {"sample_id": "c", "text": "court."},
            {"sample_id": "f", "text": "\U0001f600"},
            {"sample_id": "g", "text": "x"},
        ],
    )
    return run


def test_near_duplicates_are_of_another_sample_that_comes_before(tmp_path):
    assert found(small_run(tmp_path / "run")) == {
        ("a", 0): (False, False),
        ("a", 1): (False, False),  # of its own sample
        ("b", 0): (True, False),
        ("b", 1): (False, False),
        ("c", 0): (False, False),  # a source of the validation split
        ("d", 0): (True, False),
        ("e", 0): (False, False),  # without words
        ("f", 0): (False, False),
        ("g", 0): (False, True),
        ("h", 0): (None, False),
    }


def test_gold_of_the_test_split_is_not_looked_at(tmp_path):
    assert found(small_run(tmp_path / "one", "x")) == found(small_run(tmp_path / "two", "court"))


def test_without_a_test_split_nothing_is_near_it(tmp_path):
    run = make_run(tmp_path / "run")
    add_samples(run, [{"sample_id": "a", "source": "b c"}])
    add_shard(run, 0, [{"sample_id": "a", "text": "x"}])
    assert found(run) == {("a", 0): (False, False)}


def drawn_run(root: Path) -> tuple[RunDirectory, dict[str, list[set[str]]]]:
    """600 samples of two candidates each, many of them another's with some words changed."""
    draw = random.Random(11)
    run, samples, candidates = make_run(root), list[dict[str, Any]](), list[dict[str, Any]]()
    sets: dict[str, list[set[str]]] = {}
    earlier = [words(30, draw) for _ in range(150)]
    for i in range(600):
        name, text = f"{i:04}", list(draw.choice(earlier))
        for _ in range(draw.randrange(6)):
            text[draw.randrange(len(text))] = draw.choice("abcdefgh")
        samples.append({"sample_id": name, "source": " ".join(text)})
        targets = [" ".join(text[::-1]), " ".join(words(30, draw))]
        candidates += [{"sample_id": name, "rank": r, "text": t} for r, t in enumerate(targets)]
        source = shingles(samples[-1]["source"], "source")
        sets[name] = [source | shingles(target, "target") for target in targets]
    add_samples(run, samples)
    add_shard(run, 0, candidates[::2])
    add_shard(run, 1, candidates[1::2])
    return run, sets


def test_beside_the_similarity_of_all_pairs(tmp_path, monkeypatch):
    """Equal sets are always found, those of less than 0.3 hardly ever; and so by two processes."""
    run, sets = drawn_run(tmp_path / "run")
    one = found(run)
    wanted = list[tuple[float, bool]]()
    for name, candidates in sets.items():
        before = [other for earlier in sets if earlier < name for other in sets[earlier]]
        for rank, candidate in enumerate(candidates):
            most = max((jaccard(candidate, other) for other in before), default=0.0)
            wanted.append((most, bool(one[name, rank][0])))
    assert all(near for most, near in wanted if most == 1)
    assert sum(most == 1 for most, _ in wanted) > 10
    assert np.mean([near for most, near in wanted if most > 0.9]) > 0.99
    assert np.mean([near for most, near in wanted if most < 0.3]) < 0.01
    monkeypatch.setattr(texts, "INLINE", 0)
    monkeypatch.setattr(texts, "BATCH", 64)
    monkeypatch.setattr(texts, "available_cores", lambda: [0, 1])
    assert found(run) == one
