"""Samples: ids from content, gold by fraction, overlap, refused rows, pilots."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import ManifestError, SeqkdError, SourceError
from factory.manifest import Manifest, Prompt
from factory.prompting.prompts import Prompter, prompt_hashes
from factory.records import RunDirectory
from factory.samples import build_samples
from factory.schemas import REFUSED, SAMPLES
from tests.models import TEMPLATE, pairs

Rows = Sequence[dict[str, Any]]
NO_TOKENIZER = Prompter(None, Prompt(template="{source}"))
# A unit separator before a digit once stood between a text and its ordinal.
TEXTS = st.text(min_size=1, max_size=4).filter(str.strip) | st.sampled_from(["a", "a\x1f1", "a1"])
SETTINGS = settings(max_examples=25, deadline=None)


def write(path: Path, rows: Rows) -> dict[str, Any]:
    """A split as JSONL, with target and id columns where the rows have them."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    split = {"path": str(path), "source": "s"}
    names = {"target": "t", "id": "id"}
    return split | {key: name for key, name in names.items() if rows and name in rows[0]}


def build(
    folder: Path,
    *,
    prompter: Prompter = NO_TOKENIZER,
    limit: int = 0,
    data: dict[str, Any] | None = None,
    gold_fraction: float | None = None,
    **splits: Rows,
) -> RunDirectory:
    tree: dict[str, Any] = {n: write(folder / f"{n}.jsonl", rows) for n, rows in splits.items()}
    if gold_fraction is not None:
        tree["train"]["gold_fraction"] = gold_fraction
    manifest = Manifest.model_validate(
        {"name": "t", "teacher": {"model": "m"}, "data": tree | (data or {})}
    )
    run = RunDirectory(folder / "run")
    build_samples(run, manifest, prompter, "key", limit)
    return run


def stored(run: RunDirectory, table: str = "samples") -> list[dict[str, Any]]:
    [file] = run.files(table)
    found = pq.read_table(run.path(file["path"]))
    assert found.num_rows == file["rows"]
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def ids(run: RunDirectory) -> list[tuple[str, str, str | None, str]]:
    return [(r["split"], r["source"], r["gold"], r["sample_id"]) for r in stored(run)]


def content_id(text: str, ordinal: int = 0) -> str:
    first = hashlib.sha256(text.encode()).hexdigest()
    key = text if ordinal == 0 else f"{first}{ordinal}"
    return hashlib.sha256(key.encode()).hexdigest()[:20]


def test_a_row_is_stored_as_it_was_read(tmp_path: Path, tiny_tokenizer: Any) -> None:
    prompter = Prompter(tiny_tokenizer, Prompt(template=TEMPLATE))
    row = {"s": "a dog", "t": "un chien", "doc": {"n": [1, None]}, "ch": "é"}
    run = build(tmp_path, prompter=prompter, train=[row], gold_fraction=1.0)
    ids_ = tiny_tokenizer("<s>a dog<sep>", add_special_tokens=False)["input_ids"]
    assert stored(run) == [
        {
            "sample_id": "7dbdf68ac0bb3482a281",
            "split": "train",
            "source": "a dog",
            "gold": "un chien",
            "gold_visible": True,
            "prompt": "<s>a dog<sep>",
            "n_prompt_tokens": len(ids_),
            "meta": '{"doc": {"n": [1, null]}, "ch": "é"}',
            "prompt_ids": ids_,
            "prompt_hash": prompt_hashes([ids_])[0],
            "row": 0,
        }
    ]
    [file] = run.files("samples")
    assert pq.read_schema(run.path(file["path"])).remove_metadata().equals(SAMPLES)


def test_without_a_teacher_there_are_no_ids(tmp_path: Path) -> None:
    [row] = stored(build(tmp_path, train=[{"s": "a dog"}]))
    assert row["prompt"] == "a dog"
    for column in ("n_prompt_tokens", "prompt_ids", "prompt_hash", "gold"):
        assert row[column] is None
    assert row["gold_visible"] is False


def test_repeats_are_told_apart_by_split_then_gold_then_file_order(tmp_path: Path) -> None:
    run = build(
        tmp_path,
        train=[{"s": "a", "t": "z"}, {"s": "a", "t": "y"}, {"s": "b", "t": "x"}],
        unlabeled=[{"s": "a"}, {"s": "a"}],
        validation=[{"s": "a", "t": "v"}],
        test=[{"s": "a", "t": "u"}],
        data={"overlap": "keep"},
    )
    assert ids(run) == [
        ("train", "a", "z", content_id("a", 1)),
        ("train", "a", "y", content_id("a")),
        ("train", "b", "x", content_id("b")),
        ("unlabeled", "a", None, content_id("a", 2)),
        ("unlabeled", "a", None, content_id("a", 3)),
        ("validation", "a", "v", content_id("a", 4)),
        ("test", "a", "u", content_id("a", 5)),
    ]


def test_a_repeat_without_gold_comes_after_those_with(tmp_path: Path) -> None:
    run = build(tmp_path, train=[{"s": "a", "t": None}, {"s": "a", "t": "z"}])
    assert [row[2:] for row in ids(run)] == [(None, content_id("a", 1)), ("z", content_id("a"))]


def test_the_users_id_stands_for_the_source(tmp_path: Path) -> None:
    rows = [{"id": "k7", "s": "a"}, {"id": 7, "s": "a"}, {"id": "k7", "s": "b"}]
    run = build(tmp_path, train=rows)
    assert [row[3] for row in ids(run)] == [
        content_id("k7"),
        content_id("7"),
        content_id("k7", 1),
    ]


def _examples(rows: list[tuple[str, str | None]]) -> Rows:
    return [{"s": source, "t": gold} for source, gold in rows]


@SETTINGS
@given(data=st.data())
def test_ids_do_not_depend_on_the_order_of_rows(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(TEXTS, st.none() | TEXTS), min_size=1, max_size=12))
    shuffled = data.draw(st.permutations(rows))
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        before = ids(build(Path(one), train=_examples(rows)))
        after = ids(build(Path(other), train=_examples(shuffled)))
    assert Counter(before) == Counter(after)
    assert [row[1:3] for row in before] == rows
    assert len({row[3] for row in before}) == len(rows)


@SETTINGS
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8, unique=True),
    added=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8),
)
def test_ids_stand_when_other_sources_are_added(
    rows: list[tuple[str, str]], added: list[tuple[str, str]]
) -> None:
    known = {source for source, _ in rows}
    new = [row for row in added if row[0] not in known]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        before = ids(build(Path(one), train=_examples(rows)))
        after = ids(build(Path(other), train=_examples(rows + new)))
    assert after[: len(before)] == before


@SETTINGS
@given(
    count=st.integers(1, 40),
    without=st.integers(0, 10),
    fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_gold_fraction_is_exact_and_nested(
    count: int, without: int, fractions: list[float]
) -> None:
    rows = [{"s": s, "t": t} for s, t in pairs(count)]
    rows += [{"s": s, "t": None} for s, _ in pairs(without, count)]
    seen = []
    for fraction in fractions:
        with tempfile.TemporaryDirectory() as folder:
            run = build(Path(folder), train=rows, gold_fraction=fraction)
            visible = {row["sample_id"] for row in stored(run) if row["gold_visible"]}
            assert run.step("samples")["visible_gold"] == len(visible) == round(fraction * count)
            assert all(row["gold"] for row in stored(run) if row["gold_visible"])
            seen.append(visible)
    assert seen[0] <= seen[1]


def test_gold_is_drawn_by_seeded_hash(tmp_path: Path) -> None:
    """The rule itself, so that no release of DuckDB or seqkd draws other gold."""
    rows = [{"s": s, "t": t} for s, t in pairs(100)]
    run = build(tmp_path, train=rows, gold_fraction=0.1, test=[{"s": "t", "t": "t"}])
    every = [content_id(row["s"]) for row in rows]
    drawn = sorted(every, key=lambda i: hashlib.sha256(f"17{i}".encode()).hexdigest())[:10]
    assert {row["sample_id"] for row in stored(run) if row["gold_visible"]} == set(drawn)


OVERLAPPING = {
    "train": [{"s": "a", "t": "1"}, {"s": "b", "t": "2"}, {"s": "a", "t": "3"}],
    "unlabeled": [{"s": "b"}, {"s": "c"}],
    "validation": [{"s": "c", "t": "4"}],
    "test": [{"s": "a", "t": "5"}, {"s": "b", "t": "6"}],
}


def test_overlap_with_the_test_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        build(tmp_path, **OVERLAPPING)
    assert str(caught.value) == (
        "data.overlap: 4 training sources stand in the test split, the first at "
        f"{tmp_path}/train.jsonl:1: set data.overlap to drop or keep"
    )


def test_overlap_dropped(tmp_path: Path) -> None:
    rows = OVERLAPPING | {"train": [*OVERLAPPING["train"], {"s": "d", "t": "7"}]}
    run = build(tmp_path, data={"overlap": "drop"}, **rows)
    assert [row[:3] for row in ids(run)] == [
        ("train", "d", "7"),
        ("unlabeled", "c", None),
        ("validation", "c", "4"),
        ("test", "a", "5"),
        ("test", "b", "6"),
    ]
    reason = "its source stands in the test split"
    assert [(Path(r["file"]).name, r["line"], r["reason"]) for r in stored(run, "refused")] == [
        ("train.jsonl", 1, reason),
        ("train.jsonl", 2, reason),
        ("train.jsonl", 3, reason),
        ("unlabeled.jsonl", 1, reason),
    ]
    step = run.step("samples")
    assert step["rows"] == {"train": 1, "unlabeled": 1, "validation": 1, "test": 2}
    assert (step["refused"], step["overlap"]) == (4, {"validation": 1, "test": 4})


def test_overlap_that_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"data.train: no usable row \(4 refused"):
        build(tmp_path, data={"overlap": "drop"}, **OVERLAPPING)


def test_overlap_kept(tmp_path: Path) -> None:
    run = build(tmp_path, data={"overlap": "keep"}, **OVERLAPPING)
    assert len(ids(run)) == 8
    assert len({row[3] for row in ids(run)}) == 8
    assert stored(run, "refused") == []


BAD = [
    {"s": "a", "t": "1"},
    {"s": "", "t": "2"},
    {"s": "c"},
    {"s": "d", "t": 4},
    {"s": "e", "t": "5"},
]


def test_the_first_bad_row_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        build(tmp_path, train=BAD)
    assert str(caught.value) == (
        f"{tmp_path}/train.jsonl:2: source is empty: mend it, or set data.bad_rows to set_aside"
    )


def test_bad_rows_set_aside_are_listed(tmp_path: Path) -> None:
    run = build(tmp_path, data={"bad_rows": "set_aside"}, train=BAD)
    file = f"{tmp_path}/train.jsonl"
    assert stored(run, "refused") == [
        {"file": file, "line": 2, "reason": "source is empty"},
        {"file": file, "line": 3, "reason": "has no field 't': known: s"},
        {"file": file, "line": 4, "reason": "target is not text"},
    ]
    assert [(row["source"], row["row"]) for row in stored(run)] == [("a", 0), ("e", 1)]
    assert run.step("samples")["refused"] == 3
    [refused] = run.files("refused")
    assert pq.read_schema(run.path(refused["path"])).remove_metadata().equals(REFUSED)


@SETTINGS
@given(st.lists(st.sampled_from(BAD), min_size=1, max_size=30))
def test_no_row_is_lost(rows: Rows) -> None:
    rows = [{"s": "good", "t": "bon"}, *rows]
    with tempfile.TemporaryDirectory() as folder:
        run = build(Path(folder), data={"bad_rows": "set_aside"}, train=rows)
        assert len(stored(run)) + len(stored(run, "refused")) == len(rows)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"s": "b"}, "the prompt's {topic} is no field of this row, known: source"),
        ({"s": "b", "topik": "x"}, "{topic} is no field of this row, did you mean 'topik'?"),
        ({"s": "b", "topic": None}, "the prompt's {topic} is empty"),
    ],
)
def test_fields_of_the_prompt(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    prompter = Prompter(None, Prompt(template="{topic}: {source}"))
    rows = [{"s": "a", "topic": "pets"}, row, {"s": "c", "topic": 7}]
    run = build(tmp_path, prompter=prompter, train=rows, data={"bad_rows": "set_aside"})
    assert [r["prompt"] for r in stored(run)] == ["pets: a", "7: c"]
    [refused] = stored(run, "refused")
    assert refused["line"] == 2
    assert reason in refused["reason"]
    with pytest.raises(SourceError, match=r"train\.jsonl:2: "):
        build(tmp_path, prompter=prompter, train=rows)


def test_no_usable_row_tells_the_last_reason(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"data.train: no usable row \(2 refused; .*is empty"):
        build(tmp_path, data={"bad_rows": "set_aside"}, train=BAD[1:2] * 2)


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    for splits in ({"train": []}, {"train": BAD[:1], "test": []}):
        name = list(splits)[-1]
        with pytest.raises(SourceError, match=f"data.{name}: no usable row"):
            build(tmp_path, **splits)


def test_meta_is_json_whatever_the_file_held(tmp_path: Path) -> None:
    rows = [{"s": "a", "x": float("nan"), "y": [float("inf")], "z": b"\x00", "w": "NaN"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    run = build(tmp_path, data={"train": {"path": str(tmp_path / "a.parquet"), "source": "s"}})
    [row] = stored(run)
    assert json.loads(row["meta"], parse_constant=pytest.fail) == {
        "x": None,
        "y": [None],
        "z": "b'\\x00'",
        "w": "NaN",
    }


def test_a_pilot_takes_as_many_sources_of_each_kind(tmp_path: Path) -> None:
    rows = [{"s": s, "t": t} for s, t in pairs(50)]
    held_out = [{"s": s, "t": t} for s, t in pairs(20, 50)]
    splits = {
        "train": rows[:30],
        "unlabeled": [{"s": row["s"]} for row in rows[30:]],
        "test": held_out,
    }
    whole = {row[3]: row for row in ids(build(tmp_path, **splits))}
    run = build(tmp_path, limit=10, gold_fraction=0.5, **splits)
    counts = Counter(row["split"] for row in stored(run))
    assert counts["train"] + counts["unlabeled"] == 10
    assert counts["test"] == 10
    assert all(whole[row[3]] == row for row in ids(run))
    assert run.step("samples")["rows"] == {"train": 30, "unlabeled": 20, "test": 20}
    assert run.step("samples")["visible_gold"] == round(0.5 * counts["train"])


def test_rows_stay_in_file_order_beyond_one_batch(tmp_path: Path) -> None:
    lines = [f"{n}" for n in range(20_000)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    run = build(tmp_path, data={"train": {"source": str(tmp_path / "a.txt")}})
    assert [(row["row"], row["source"]) for row in stored(run)] == list(enumerate(lines))


def test_many_refused_rows_are_written_in_batches(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n" + "\n" * 9_999)
    data = {"train": {"source": str(tmp_path / "a.txt")}, "bad_rows": "set_aside"}
    run = build(tmp_path, data=data)
    assert [row["line"] for row in stored(run, "refused")] == list(range(2, 10_001))


def test_a_failed_step_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SeqkdError):
        build(tmp_path, train=BAD)
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []


# --- conversations -------------------------------------------------------------------------------

Turns = list[dict[str, str]]


def turns_of(*texts: str) -> Turns:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def build_chat(folder: Path, tokenizer: Any, **splits: Any) -> RunDirectory:
    """As `build`, of rows with a field `talk`; `s` is named as the source where they have it."""
    data: dict[str, Any] = {}
    for name, rows in splits.items():
        if name in ("overlap", "bad_rows"):
            data[name] = rows
            continue
        data[name] = write(folder / f"{name}.jsonl", rows)
        if not any("s" in row for row in rows):
            del data[name]["source"]
    prompt = {"messages": "talk"}
    manifest = Manifest.model_validate(
        {"name": "t", "teacher": {"model": "m"}, "prompt": prompt, "data": data}
    )
    run = RunDirectory(folder / "run")
    build_samples(run, manifest, Prompter(tokenizer, manifest.prompt), "key")
    return run


def test_a_conversation_is_told_by_its_last_user_turn(tmp_path: Path, chat_tokenizer: Any) -> None:
    talk = turns_of("Hello.", "Hi!", "Go on.")
    # A column `source` that nobody named is where the row comes from, not what it says.
    row = {"talk": talk, "t": "Well.", "source": "a corpus"}
    [stored_row] = stored(build_chat(tmp_path, chat_tokenizer, train=[row]))
    assert (stored_row["source"], stored_row["gold"]) == ("Go on.", "Well.")
    assert json.loads(stored_row["meta"]) == {"talk": talk, "source": "a corpus"}
    ids_ = chat_tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert stored_row["prompt_ids"] == ids_
    canonical = json.dumps(talk, sort_keys=True, ensure_ascii=False)
    assert stored_row["sample_id"] == content_id(canonical)


def test_a_column_that_is_named_is_the_source(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [{"talk": turns_of("Hello."), "s": "the gist"}]
    [row] = stored(build_chat(tmp_path, chat_tokenizer, train=rows))
    assert row["source"] == "the gist"
    assert row["sample_id"] == content_id(
        json.dumps(turns_of("Hello."), sort_keys=True, ensure_ascii=False)
    )


def test_conversations_differ_by_any_turn(tmp_path: Path, chat_tokenizer: Any) -> None:
    first, other = turns_of("a", "b", "Go on."), turns_of("a", "c", "Go on.")
    turned = [dict(reversed(turn.items())) for turn in first]
    train = [{"talk": first}, {"talk": turned}]
    run = build_chat(tmp_path, chat_tokenizer, train=train, test=[{"talk": other}])
    rows = stored(run)
    canonical = json.dumps(first, sort_keys=True, ensure_ascii=False)
    assert [row["sample_id"] for row in rows[:2]] == [
        content_id(canonical),
        content_id(canonical, 1),
    ]
    assert len({row["sample_id"] for row in rows}) == 3
    assert run.step("samples")["overlap"] == {"validation": 0, "test": 0}


def test_a_conversation_that_stands_in_the_test_split(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [{"talk": turns_of("a")}, {"talk": turns_of("b")}]
    with pytest.raises(ManifestError, match="1 training sources stand in the test split"):
        build_chat(tmp_path, chat_tokenizer, train=rows, test=rows[1:])
    run = build_chat(tmp_path, chat_tokenizer, train=rows, test=rows[1:], overlap="drop")
    assert [(r["split"], r["source"]) for r in stored(run)] == [("train", "a"), ("test", "b")]


def test_conversations_in_parquet(tmp_path: Path, chat_tokenizer: Any) -> None:
    """Its structs have every key in every turn: what is null was not there."""
    named = [{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"}]
    rows = [{"talk": [*named, {"role": "user", "content": "c"}]}, {"talk": turns_of("d")}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "json").mkdir()
    read = {
        "name": "t",
        "teacher": {"model": "m"},
        "prompt": {"messages": "talk"},
        "data": {"train": {"path": str(tmp_path / "a.parquet")}},
    }
    manifest = Manifest.model_validate(read)
    run = RunDirectory(tmp_path / "run")
    build_samples(run, manifest, Prompter(chat_tokenizer, manifest.prompt), "key")
    same = build_chat(tmp_path / "json", chat_tokenizer, train=rows)
    columns = ("sample_id", "source", "prompt", "prompt_ids")
    assert [[r[c] for c in columns] for r in stored(run)] == [
        [r[c] for c in columns] for r in stored(same)
    ]


BAD_TALKS = [
    ({"t": "x"}, "has no field 'talk': known: t"),
    ({"talk": "[]"}, "talk is no list of turns"),
    ({"talk": []}, "talk holds no turn"),
    ({"talk": [{"role": "user"}]}, "talk turn 1 has no content"),
    ({"talk": [{"role": "robot", "content": "a"}, *turns_of("b")]}, "refuses it: no such role"),
    ({"talk": turns_of("a") * 2}, "the chat template refuses it: roles must alternate"),
    ({"talk": turns_of("a", "b")}, "the last turn is the assistant's: cut it off"),
    ({"talk": turns_of(" ")}, "source is empty"),
    ({"talk": turns_of("a\ud800")}, "field 'talk' is not valid UTF-8"),
]


def test_turns_that_cannot_be_are_refused_rows(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [{"talk": turns_of("a"), "t": "x"}, *({"t": "x"} | row for row, _ in BAD_TALKS)]
    run = build_chat(tmp_path, chat_tokenizer, train=rows, bad_rows="set_aside")
    assert [row["source"] for row in stored(run)] == ["a"]
    for number, (row, (_, reason)) in enumerate(
        zip(stored(run, "refused"), BAD_TALKS, strict=True), 2
    ):
        assert row["line"] == number
        assert reason in row["reason"]
    with pytest.raises(SourceError, match=r"train\.jsonl:2: has no field 'talk'.*: mend it"):
        build_chat(tmp_path, chat_tokenizer, train=rows)
