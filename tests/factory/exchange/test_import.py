"""`seqkd import`: candidates made elsewhere become shards like any other, or nothing is written."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory import cli
from factory.errors import ManifestError, RunError, SourceError
from factory.exchange import importing
from factory.looking.status import status
from factory.pipeline import import_candidates, run_steps
from factory.reading import load_manifest
from factory.records import RunDirectory
from factory.steps import make_plan
from factory.verify import verify
from tests.factory.generation.test_generate import rows
from tests.models import manifest_tree, pairs, write_manifest_file

Row = dict[str, Any]
SOURCES = pairs(20)
EVERYTHING = "SELECT * FROM candidates ORDER BY sample_id, rank"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, tiny_llama) -> Path:
    """Twenty sources, no student, distributions of four entries."""
    folder = tmp_path_factory.mktemp("import")
    path = folder / "rows.jsonl"
    lines = [{"en": s, "fr": t, "key": f"k{i}"} for i, (s, t) in enumerate(SOURCES)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    train = {"path": str(path), "source": "en", "target": "fr", "id": "key"}
    tree = manifest_tree(folder, tiny_llama, data={"train": train}, judge={"rules": ["error"]})
    tree["logits"] |= {"precision": "exact"}
    tree["generate"] |= {"shard_size": 8}
    del tree["student"]
    return write_manifest_file(folder / "manifest.yaml", tree)


@pytest.fixture(scope="module")
def decoded(manifest, tmp_path_factory) -> RunDirectory:
    """A run whose candidates the teacher wrote."""
    root = tmp_path_factory.mktemp("runs") / "decoded"
    return run_steps(root, load_manifest(manifest), ("generate", "judge"))


@pytest.fixture(scope="module")
def ready(manifest, tmp_path_factory) -> RunDirectory:
    """A run that has samples and waits for candidates."""
    root = tmp_path_factory.mktemp("runs") / "ready"
    return run_steps(root, load_manifest(manifest), ("samples",))


@pytest.fixture(scope="module")
def given(decoded) -> list[Row]:
    """What the teacher wrote, as somebody else would hand it in: lists nested."""
    names = ("source", "text", "token_ids", "token_logprobs", "topk_ids", "topk_logprobs")
    found = rows(
        decoded.root,
        "SELECT s.source, c.text, c.token_ids, l.token_logprobs, l.topk_ids, l.topk_logprobs "
        "FROM candidates c JOIN samples s USING (sample_id) JOIN logits l USING (sample_id, rank) "
        'ORDER BY s."row"',
    )
    told = [dict(zip(names, row, strict=True)) for row in found]
    for row in told:
        for name in ("topk_ids", "topk_logprobs"):
            row[name] = [row[name][i : i + 4] for i in range(0, len(row[name]), 4)]
    return told


def write_jsonl(path: Path, lines: Iterable[Row]) -> Path:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as stream:
        stream.write(text)
    return path


def flattened(lists: list[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


def taken(root: Path, manifest: Path, file: Path, *overrides: str, **options: Any) -> Row:
    return import_candidates(root, load_manifest(manifest, overrides), str(file), **options)


def told(root: Path, manifest: Path, *overrides: str, **options: Any) -> dict[str, str]:
    """What became of each step of a whole run."""
    outcomes: dict[str, str] = {}
    run_steps(root, load_manifest(manifest, overrides), tell=outcomes.__setitem__, **options)
    return outcomes


def texts(count: int = 20) -> list[Row]:
    return [{"source": source, "text": target} for source, target in SOURCES[:count]]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_what_a_teacher_wrote_comes_back_as_it_was(manifest, decoded, given, tmp_path, ending):
    file = tmp_path / f"given.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(given), file, row_group_size=7)
    elif ending == "jsonl.zst":
        plain = write_jsonl(tmp_path / "given.jsonl", given)
        with pa.CompressedOutputStream(str(file), "zstd") as stream:
            stream.write(plain.read_bytes())
    else:
        write_jsonl(file, given)
    root = tmp_path / "run"
    figures = taken(root, manifest, file)
    assert {name: figures[name] for name in ("rows", "samples", "candidates", "shards")} == {
        "rows": 20, "samples": 20, "candidates": 20, "shards": 3,
    }  # fmt: skip
    assert (figures["distributions"], figures["without_candidate"]) == (20, 0)
    columns = "sample_id, prompt_hash, rank, text, token_ids, n_tokens, finish_reason, ordinal"
    for sql in (
        f"SELECT {columns}, round(score, 5), round(sum_logprob, 5), round(mean_logprob, 5), "
        "duplicate_of, control_tokens FROM candidates ORDER BY sample_id, rank",
        "SELECT * FROM logits ORDER BY sample_id",
        "SELECT files[1].rows, files[2].rows FROM shards ORDER BY shard",
    ):
        assert rows(root, sql) == rows(decoded.root, sql)
    assert verify(RunDirectory(root))["problems"] == []
    outcomes = told(root, manifest)
    assert (outcomes["generate"], outcomes["judge"]) == ("stands", "done")
    selected = "SELECT * FROM pseudolabels ORDER BY sample_id"
    assert len(rows(root, selected)) == len(rows(decoded.root, selected)) == 20


def test_flat_lists_are_nested_lists(manifest, given, tmp_path):
    tops = ("topk_ids", "topk_logprobs")
    flat = [row | {"k": 4} | {name: flattened(row[name]) for name in tops} for row in given]
    for name, lines in (("nested", given), ("flat", flat)):
        taken(tmp_path / name, manifest, write_jsonl(tmp_path / f"{name}.jsonl", lines))
    sql = "SELECT * FROM logits ORDER BY sample_id"
    assert rows(tmp_path / "flat", sql) == rows(tmp_path / "nested", sql) != []


def test_texts_alone_become_what_training_reads(manifest, tiny_llama, tmp_path):
    """An API's candidates: no ids, no log-probabilities. The ids are the tokenizer's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    lines = texts()
    lines[3] = {"source": SOURCES[3][0], "error": "refused by the service"}
    lines[4] |= {"finish_reason": "length", "sum_logprob": -3.0}  # over tokens of its own
    figures = taken(tmp_path / "run", manifest, write_jsonl(tmp_path / "texts.jsonl", lines))
    assert (figures["errors"], figures["distributions"], figures["without_candidate"]) == (1, 0, 0)
    told_of = rows(
        tmp_path / "run",
        "SELECT source, text, token_ids, n_tokens, sum_logprob, mean_logprob, score, rank, "
        "finish_reason, error FROM candidates JOIN samples USING (sample_id)",
    )
    found = {source: rest for source, *rest in told_of}
    for i, (source, target) in enumerate(SOURCES):
        ids = [*tokenizer(target, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        ids = ids[:-1] if i == 4 else ids
        reason = "length" if i == 4 else "stop"
        total = -3.0 if i == 4 else None
        expected = [target, ids, len(ids), total, None, None, 0, reason, None]
        if i == 3:
            expected = [None, None, None, None, None, None, 0, "error", "refused by the service"]
        assert found[source] == expected
    outcomes = told(tmp_path / "run", manifest)
    assert (outcomes["generate"], outcomes["judge"]) == ("stands", "done")
    assert rows(tmp_path / "run", "SELECT count(*) FROM pseudolabels") == [(19,)]


def test_ranks_are_by_score_unless_they_are_given(manifest, tmp_path):
    source = SOURCES[0][0]
    scores = [-2.0, None, -0.5, -0.5, -1.0]
    lines = [{"source": source, "text": f"un {i}", "score": s} for i, s in enumerate(scores)]
    taken(tmp_path / "a", manifest, write_jsonl(tmp_path / "a.jsonl", [*lines, *texts()[1:]]))
    sql = "SELECT rank, ordinal, text FROM candidates WHERE text LIKE 'un _' ORDER BY rank"
    assert rows(tmp_path / "a", sql) == [
        (0, 2, "un 2"), (1, 3, "un 3"), (2, 4, "un 4"), (3, 0, "un 0"), (4, 1, "un 1")
    ]  # fmt: skip
    ranked = [
        {"source": source, "text": text, "rank": rank}
        for rank, text in [(7, "le b"), (2, "le a"), (3, "le b")]
    ]
    taken(tmp_path / "b", manifest, write_jsonl(tmp_path / "b.jsonl", ranked))
    sql = "SELECT rank, ordinal, text, duplicate_of FROM candidates ORDER BY rank"
    assert rows(tmp_path / "b", sql) == [
        (2, 1, "le a", None), (3, 2, "le b", None), (7, 0, "le b", 3)
    ]  # fmt: skip


def test_the_file_once_more_stands_and_the_rest_is_decoded(manifest, decoded, tmp_path):
    root, file = tmp_path / "run", write_jsonl(tmp_path / "half.jsonl", texts(10))
    figures = taken(root, manifest, file)
    assert (figures["outcome"], figures["without_candidate"]) == ("done", 10)
    parts = {path: path.stat().st_mtime_ns for path in root.glob("*/*.parquet")}
    again = taken(root, manifest, file)
    assert again == figures | {"outcome": "stands"}
    with pytest.raises(SourceError, match=r"row 1: '\w+': has a candidate already"):
        taken(root, manifest, write_jsonl(tmp_path / "other.jsonl", texts(11)))
    # A key of decoding does not touch what was imported; the rest is decoded, and no more.
    outcomes = told(root, manifest, "generate.max_new_tokens=12")
    assert (outcomes["generate"], outcomes["judge"]) == ("done", "done")
    assert parts.items() <= {p: p.stat().st_mtime_ns for p in root.glob("*/*.parquet")}.items()
    assert RunDirectory(root).step("generate")["decoded_sources"] == 10
    with pytest.raises(RunError, match="holds 10 candidates made with another"):
        told(root, manifest, "generate.max_new_tokens=13")
    told(root, manifest, "generate.max_new_tokens=13", fresh=True, wanted=("samples",))
    assert rows(root, "SELECT count(*) FROM candidates") == [(10,)]
    assert parts.items() <= {p: p.stat().st_mtime_ns for p in root.glob("*/*.parquet")}.items()
    # The prompt is part of what an imported candidate is an answer to.
    with pytest.raises(RunError, match="holds 10 candidates"):
        told(root, manifest, "generate.max_new_tokens=13", "prompt.template=<s>fr {source}<sep>")


def test_an_import_that_was_killed_between_its_records_is_done_anew(manifest, tmp_path):
    root, file = tmp_path / "run", write_jsonl(tmp_path / "texts.jsonl", texts())
    taken(root, manifest, file)
    before = rows(root, EVERYTHING)
    RunDirectory(root).path("shards", "00001.json").unlink()
    assert taken(root, manifest, file)["outcome"] == "done"
    assert rows(root, EVERYTHING) == before
    assert len(list(root.glob("candidates/*"))) == 3


def test_equal_sources_all_get_their_candidates_and_ids_name_one(tiny_llama, tmp_path):
    lines = [{"en": "the cat", "key": i} for i in range(3)] + [{"en": "the dog", "key": 3}]
    write_jsonl(tmp_path / "rows.jsonl", lines)
    train = {"path": str(tmp_path / "rows.jsonl"), "source": "en"}
    tree = manifest_tree(tmp_path, tiny_llama, data={"train": train})
    del tree["student"]
    plain = write_manifest_file(tmp_path / "plain.yaml", tree)
    file = write_jsonl(tmp_path / "by-source.jsonl", [{"source": "the cat", "text": "le chat"}])
    figures = taken(tmp_path / "plain", plain, file)
    assert (figures["rows"], figures["candidates"], figures["without_candidate"]) == (1, 3, 1)
    tree["data"]["train"] |= {"id": "key"}
    keyed = write_manifest_file(tmp_path / "keyed.yaml", tree)
    file = write_jsonl(
        tmp_path / "by-key.jsonl",
        [{"key": 3, "text": "le chien"}, {"key": 1, "source": "the cat", "text": "un chat"}],
    )
    taken(tmp_path / "keyed", keyed, file)
    sql = "SELECT source, text FROM candidates JOIN samples USING (sample_id) ORDER BY ALL"
    assert rows(tmp_path / "keyed", sql) == [("the cat", "un chat"), ("the dog", "le chien")]
    crossed = write_jsonl(tmp_path / "x.jsonl", [{"key": 3, "source": "the cat", "text": "le"}])
    with pytest.raises(SourceError, match="is not the source that this id has in the run"):
        taken(tmp_path / "crossed", keyed, crossed)
    assert not (tmp_path / "crossed").exists()


def test_candidates_of_unlabeled_sources_stand_beside_those_of_train(tiny_llama, tmp_path):
    """A split's rows are numbered anew: no shard's number may come of that."""
    for name, part in (("train", SOURCES[:8]), ("unlabeled", SOURCES[8:])):
        write_jsonl(tmp_path / f"{name}.jsonl", ({"en": source} for source, _ in part))
    data = {
        name: {"path": str(tmp_path / f"{name}.jsonl"), "source": "en"}
        for name in ("train", "unlabeled")
    }
    tree = manifest_tree(tmp_path, tiny_llama, data=data)
    tree["generate"] |= {"shard_size": 8}
    del tree["student"]
    both = write_manifest_file(tmp_path / "both.yaml", tree)
    file = write_jsonl(tmp_path / "made.jsonl", texts()[::-1])
    figures = taken(tmp_path / "run", both, file)
    assert (figures["candidates"], figures["shards"]) == (20, 3)
    shards = RunDirectory(tmp_path / "run").shard_records()
    assert [record["samples"] for record in shards] == [8, 8, 4]
    sql = "SELECT source, text FROM candidates JOIN samples USING (sample_id)"
    assert sorted(rows(tmp_path / "run", sql)) == sorted(SOURCES)


def test_widths_may_differ_where_the_run_keeps_a_nucleus(manifest, given, tmp_path):
    lines = []
    for row in given:
        widths = [1 + i % 4 for i in range(len(row["token_ids"]))]
        cut = {
            name: [inner[:w] for inner, w in zip(row[name], widths, strict=True)]
            for name in ("topk_ids", "topk_logprobs")
        }
        lines.append(row | cut)
    file = write_jsonl(tmp_path / "ragged.jsonl", lines)
    nucleus = "logits={capture: top_p, p: 0.9, k: 4, precision: exact}"
    taken(tmp_path / "run", manifest, file, nucleus)
    found = rows(
        tmp_path / "run",
        "SELECT source, k, widths, len(topk_ids), tail_logprob, topk_logprobs FROM logits "
        "JOIN samples USING (sample_id)",
    )
    for source, k, widths, entries, tails, logprobs in found:
        [line] = [line for line in lines if line["source"] == source]
        assert (k, entries) == (None, sum(widths))
        assert widths == [len(inner) for inner in line["topk_ids"]]
        assert logprobs == pytest.approx(flattened(line["topk_logprobs"]))
        for inner, tail in zip(line["topk_logprobs"], tails, strict=True):
            assert sum(map(math.exp, inner)) + math.exp(tail) == pytest.approx(1, abs=1e-5)
    with pytest.raises(SourceError, match=r"entries at a position in topk_ids: logits keeps 4"):
        taken(tmp_path / "fixed", manifest, file)


# --- mistakes ------------------------------------------------------------------------------------

LONG = SOURCES[0][0]


def edited(given: list[Row], place: int, **columns: Any) -> list[Row]:
    """The rows with some columns of one replaced; `...` takes a column out."""
    changed = {k: v for k, v in (given[place] | columns).items() if v is not ...}
    return [*given[:place], changed, *given[place + 1 :]]


# name: (what becomes of the rows, what the line says after the file's name)
MISTAKES: dict[str, tuple[Callable[[list[Row]], list[Row]], str]] = {
    "an unknown source": (
        lambda g: edited(g, 9, source="not there"),
        " row 10: 'not there': is no sample of this run: leave it out, or import into the run it",
    ),
    "an unknown id": (
        lambda g: edited(g, 2, sample_id="0" * 20),
        " row 3: ",
    ),
    "a line off": (
        lambda g: [{"key": f"k{i}", "source": SOURCES[i - 1][0], "text": "le"} for i in range(3)],
        f" row 1: {SOURCES[-1][0]!r}: is not the source that this id has in the run: are the rows",
    ),
    "no sample named": (
        lambda g: edited(g, 1, source=...),
        " row 2: names no sample: give sample_id or key or source",
    ),
    "no target": (
        lambda g: edited(g, 4, text=..., token_ids=...),
        " row 5: holds no target: give text, token_ids, or the error that left none",
    ),
    "an error beside a text": (
        lambda g: [{"source": LONG, "text": "le", "error": "no"}],
        " row 1: 'no': is an error beside a target: keep one of them",
    ),
    "a reason that is none": (
        lambda g: edited(g, 0, finish_reason="eos"),
        " row 1: 'eos': as finish_reason: give stop, length, or error",
    ),
    "the same rank twice": (
        lambda g: [
            {"source": LONG, "text": t, "rank": r} for t, r in [("a", 0), ("b", 1), ("c", 0)]
        ],
        " row 3: 0: as rank of sample ",
    ),
    "a rank left out": (
        lambda g: [{"source": LONG, "text": "a", "rank": 0}, {"source": LONG, "text": "b"}],
        " row 2: has no rank, and other rows have one: give all rows a rank, or none",
    ),
    "a rank in between": (
        lambda g: edited(g, 0, rank=0.5),
        " row 1: 0.5: as rank: give a whole number from 0",
    ),
    "ranks against scores": (
        lambda g: [
            {"source": LONG, "text": "a", "rank": 0, "score": -2.0},
            {"source": LONG, "text": "b", "rank": 1, "score": -1.0},
        ],
        " row 2: -1: as score: is more than that of a lower rank: rank 0 has the highest",
    ),
    "an id outside the vocabulary": (
        lambda g: edited(g, 18, text=..., token_ids=[5, 400, 2], token_logprobs=..., **BARE),
        " row 19: 400: in token_ids: is no id of the tokenizer, which has 400: was another",
    ),
    "an id below 0": (
        lambda g: [{"source": LONG, "token_ids": [5, -1]}],
        " row 1: -1: in token_ids: is no id",
    ),
    "an id that is no whole number": (
        lambda g: [{"source": LONG, "token_ids": [5, 6.5]}],
        " row 1: 6.5: in token_ids: is no id",
    ),
    "no ids at all": (
        lambda g: [{"source": LONG, "token_ids": []}],
        " row 1: has no id in token_ids: leave the column out, or give an error",
    ),
    "text and ids that disagree": (
        lambda g: edited(g, 11, text="tout autre"),
        " row 12: 'tout autre': is the text, and its token_ids say ",
    ),
    "padding after the end": (
        lambda g: [{"source": LONG, "token_ids": [50, 2, 0, 0], "finish_reason": "stop"}],
        " row 1: 0: ends token_ids, and is no end token (2): add it, take padding off",
    ),
    "log-probabilities of no tokens": (
        lambda g: [{"source": LONG, "text": "le", "token_logprobs": [-1.0]}],
        " row 1: has log-probabilities of tokens it does not name: give token_ids",
    ),
    "a log-probability too few": (
        lambda g: edited(g, 6, token_logprobs=g[6]["token_logprobs"][1:]),
        " row 7: ",
    ),
    "a positive log-probability": (
        lambda g: edited(g, 6, token_logprobs=[0.5, *g[6]["token_logprobs"][1:]]),
        " row 7: 0.5: in token_logprobs: give finite natural logarithms, at most 0",
    ),
    "a positive sum": (
        lambda g: [{"source": LONG, "text": "le", "sum_logprob": 3.5}],
        " row 1: 3.5: as a log-probability: give a finite natural logarithm, at most 0",
    ),
    "a sum that is none": (
        lambda g: edited(g, 3, sum_logprob=-300.0),
        " row 4: -300: as sum_logprob: token_logprobs add up to ",
    ),
    "a mean that is none": (
        lambda g: edited(g, 3, mean_logprob=-9.0),
        " row 4: -9: as mean_logprob: over ",
    ),
    "ids without their log-probabilities": (
        lambda g: edited(g, 3, topk_logprobs=...),
        " row 4: has one of topk_ids and topk_logprobs: give both",
    ),
    "lists without the tokens' own": (
        lambda g: edited(g, 3, token_logprobs=...),
        " row 4: has no token_logprobs beside topk_ids: give those of the tokens themselves",
    ),
    "a list too few": (
        lambda g: edited(g, 3, **{name: g[3][name][1:] for name in TOPS}),
        " row 4: ",
    ),
    "lists of another k": (
        lambda g: [row | {name: [i[:3] for i in row[name]] for name in TOPS} for row in g],
        " row 1: 3: entries at a position in topk_ids: logits keeps 4: set logits.k",
    ),
    "lists of unequal lengths": (
        lambda g: edited(g, 3, topk_ids=[i[:3] for i in g[3]["topk_ids"]]),
        " row 4: ",
    ),
    "flat lists without k": (
        lambda g: [row | {name: flattened(row[name]) for name in TOPS} for row in g],
        " row 1: has flat topk_ids and no k: give k, or a list for each token",
    ),
    "flat lists of another k": (
        lambda g: [row | {name: flattened(row[name]) for name in TOPS} | {"k": 5} for row in g],
        " row 1: ",
    ),
    "a list out of order": (
        lambda g: edited(g, 8, **{name: [i[::-1] for i in g[8][name]] for name in TOPS}),
        ": at position 0: comes after a smaller value in topk_logprobs: sort each position",
    ),
    "an id twice in a list": (
        lambda g: edited(g, 8, topk_ids=[[i[0], i[1], i[1], i[3]] for i in g[8]["topk_ids"]]),
        ": at position 0: stands twice in topk_ids: keep one of them",
    ),
    "an id outside the head": (
        lambda g: edited(g, 8, topk_ids=[[*i[:3], 400] for i in g[8]["topk_ids"]]),
        " row 9: 400: in topk_ids: is no id of the teacher, which has 400",
    ),
    "more mass than there is": (
        lambda g: edited(
            g,
            8,
            token_logprobs=[-0.1] * len(g[8]["token_ids"]),
            topk_logprobs=[[-0.1] * 4 for _ in g[8]["token_ids"]],
        ),
        " row 9: 3.6193: at position 0: is the mass of topk_logprobs, more than 1: give natural",
    ),
    "a tail that does not fit": (
        lambda g: edited(g, 8, tail_logprob=[-0.5] * len(g[8]["token_ids"])),
        ": at position 0: is the mass of topk_logprobs and tail_logprob together, not 1",
    ),
    "lists a position off": (
        lambda g: edited(g, 8, **{name: [*g[8][name][1:], g[8][name][0]] for name in TOPS}),
        "contradicts: are the lists a position off?",
    ),
    "no row": (lambda g: [], ": is empty: give each candidate a row"),
    "a word for a number": (
        lambda g: edited(g, 1, score="best"),
        " row 2: JSON parse error: Column(/score) changed from number to string: mend it",
    ),
}
TOPS = ("topk_ids", "topk_logprobs")
BARE: Row = dict.fromkeys(TOPS, ...)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(name, manifest, given, ready, tmp_path):
    change, words = MISTAKES[name]
    file = write_jsonl(tmp_path / "wrong.jsonl", change(given))
    before = {str(p): p.read_bytes() for p in ready.root.rglob("*") if p.is_file()}
    with pytest.raises(SourceError) as caught:
        importing.bring_in(ready, make_plan(ready.manifest()), str(file))
    assert caught.value.exit_status == 2
    assert str(caught.value).startswith(str(file))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert {str(p): p.read_bytes() for p in ready.root.rglob("*") if p.is_file()} == before


def test_files_that_are_none_and_manifests_that_take_none(manifest, tmp_path):
    lines = write_jsonl(tmp_path / "texts.jsonl", texts())
    root = tmp_path / "runs" / "new"
    wrong = lines.rename(tmp_path / "texts.txt")
    with pytest.raises(SourceError, match=r"texts.txt: ending not known: use .jsonl, plain, .gz"):
        taken(root, manifest, wrong)
    with pytest.raises(SourceError, match=r"absent.jsonl: is missing"):
        taken(root, manifest, tmp_path / "absent.jsonl")
    pq.write_table(pa.table({"source": ["a"], "text": [["b"]]}), tmp_path / "odd.parquet")
    with pytest.raises(SourceError, match=r"odd.parquet column text: holds list<.*: make it text"):
        taken(root, manifest, tmp_path / "odd.parquet")
    packed = gzip.compress(wrong.read_bytes())
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(SourceError, match=r"cut.jsonl.gz: "):
        taken(root, manifest, tmp_path / "cut.jsonl.gz")
    (tmp_path / "odd.jsonl").write_bytes(b'{"source": "a", "text": "b"}\n{"source": "\xff"}\n')
    with pytest.raises(SourceError, match=r"odd.jsonl row 2: "):
        taken(root, manifest, tmp_path / "odd.jsonl")
    file = write_jsonl(tmp_path / "texts.jsonl", texts())
    with pytest.raises(ManifestError, match=r"candidates_from: .*: remove it to import some"):
        taken(root, manifest, file, f"candidates_from={tmp_path}")
    tree = json.loads(manifest.read_text()) | {"student": {"init": {"model": "some/model"}}}
    del tree["teacher"], tree["logits"]
    with pytest.raises(ManifestError, match="teacher: is missing: importing needs one"):
        taken(root, write_manifest_file(tmp_path / "gold.yaml", tree), file)
    assert not (tmp_path / "runs").exists()


def test_a_mistake_ends_the_command_with_status_2_and_takes_a_new_run_back(
    manifest, tmp_path, monkeypatch, capsys
):
    file = write_jsonl(tmp_path / "wrong.jsonl", [*texts(), {"source": "not there", "text": "x"}])
    root = tmp_path / "runs" / "new"
    words = ["seqkd", "import", str(manifest), str(file), "--run-dir", str(root), "--json"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(f"seqkd: {file} row 21: 'not there': is no sample")
    assert not (tmp_path / "runs").exists()
    write_jsonl(file, texts())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["candidates"] == 20


def test_a_run_that_is_held_takes_nothing(manifest, ready, tmp_path, monkeypatch):
    monkeypatch.setattr("factory.records.LOCK_PATIENCE", 0.2)
    file = write_jsonl(tmp_path / "texts.jsonl", texts())
    with ready.locked(), pytest.raises(RunError, match="another seqkd is at work here"):
        taken(ready.root, manifest, file)
    assert rows(ready.root, "SELECT count(*) FROM candidates") == [(0,)]


def test_another_run_takes_over_what_was_imported(manifest, tmp_path):
    taken(tmp_path / "one", manifest, write_jsonl(tmp_path / "texts.jsonl", texts()))
    outcomes = told(tmp_path / "two", manifest, f"candidates_from={tmp_path / 'one'}")
    assert (outcomes["generate"], outcomes["judge"]) == ("taken over", "done")
    assert rows(tmp_path / "two", EVERYTHING) == rows(tmp_path / "one", EVERYTHING)


def test_the_card_and_the_pace_tell_what_was_imported(manifest, tmp_path):
    root = tmp_path / "run"
    taken(root, manifest, write_jsonl(tmp_path / "half.jsonl.gz", texts(10)))
    told(root, manifest, wanted=("judge", "card"))
    card = (root / "card.md").read_text("utf-8")
    assert "| imported | 10 candidates of half.jsonl.gz (SHA-256 " in card
    facts = status(RunDirectory(root))
    assert (facts["samples"], facts["candidates"]) == ({"done": 10, "missing": 10}, 10)
    assert (facts["tokens_per_second"], facts["seconds_left"]) == (None, None)
