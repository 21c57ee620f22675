"""Preparation of a stage: what is kept verbatim, what is counted, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from factory.distributions.precision import restored, stored
from factory.errors import DamagedFile, QueryError, RunError
from factory.files import write_json
from factory.manifest import Prompt
from factory.prompting.tokenizing import encode_targets, load_tokenizer, tokenizer_fingerprint
from factory.records import RunDirectory
from factory.schemas import LOGITS
from factory.shards import record_file
from factory.training import Stage, TrainTokenizer
from student.batches import Layout, collate
from student.dataset import DataRecord, StageRows, Text, prepare
from student.objectives import Weights, per_token
from student.rows import Wanted
from student.tokenizers import train_tokenizer
from tests.student.tiny import (
    SAMPLED,
    TEMPLATE,
    TOP_K,
    TOP_P,
    K,
    pairs,
    save_teacher,
    student_run,
)

STUDENT = {"init": {"from_teacher": {"layers": 1}}}
KD = {"ce": 0.5, "forward_kl": 0.5}
CE = {"ce": 1.0}
Change = Callable[[list[dict[str, Any]]], None]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("dataset") / "teacher")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> dict[str, RunDirectory]:
    """A run of each capture, made once."""
    root = tmp_path_factory.mktemp("kept")
    return {
        capture["capture"]: student_run(root / capture["capture"], teacher, STUDENT, capture)
        for capture in (TOP_K, TOP_P, SAMPLED)
    }


@pytest.fixture
def captured(tmp_path: Path, kept: dict[str, RunDirectory]) -> Callable[[str], RunDirectory]:
    """A run of a capture, for a test of its own."""
    return lambda name: RunDirectory(shutil.copytree(kept[name].root, tmp_path / "run"))


@pytest.fixture
def run(captured: Callable[[str], RunDirectory]) -> RunDirectory:
    return captured("top_k")


def same(teacher: Path, context: int | None = 64) -> Text:
    tokenizer = load_tokenizer(str(teacher))
    prompt = Prompt(template=TEMPLATE)
    return Text(tokenizer, prompt, tokenizer_fingerprint(tokenizer), True, context)


def other(context: int = 64) -> Text:
    tokenizer = train_tokenizer((s for s, _ in pairs()), TrainTokenizer(vocab_size=300))
    prompt = Prompt(template=TEMPLATE)
    return Text(tokenizer, prompt, tokenizer_fingerprint(tokenizer), False, context)


def wanted(data: str | dict[str, float], objective: dict[str, float], **more: Any) -> Wanted:
    stage = Stage.model_validate({"name": "s", "data": data, "objective": objective, **more})
    return Wanted(stage, bool(stage.objective.distributions), 320)


def made(
    run: RunDirectory,
    text: Text,
    data: str | dict[str, float],
    objective: dict[str, float],
    **more: Any,
) -> tuple[DataRecord, StageRows]:
    folder = run.path("student", "s", "data")
    record = prepare(run, wanted(data, objective, **more), text, folder)
    return record, StageRows(folder)


def change(run: RunDirectory, table: str, edit: Change) -> None:
    """Rewrite a part of shard 0 as if it had been generated so."""
    path = run.path(table, "00000.parquet")
    kept = pq.read_table(path)
    rows = kept.to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=kept.schema), path)
    rerecord(run, table)


def rerecord(run: RunDirectory, table: str) -> None:
    """Let the record of shard 0 tell of a part as it now is."""
    path = run.path(table, "00000.parquet")
    record = json.loads(run.path("shards", "00000.json").read_text())
    kept = [file for file in record["files"] if file["table"] != table]
    write_json(
        run.path("shards", "00000.json"),
        {**record, "files": [*kept, record_file(run, path, table)]},
    )


def test_stored_ids_are_trained_on_verbatim(run: RunDirectory, teacher: Path):
    def drop_ends(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["token_ids"] = row["token_ids"][:-1]

    change(run, "candidates", drop_ends)
    record, rows = made(run, same(teacher), "pseudolabels", CE)
    stored = pq.read_table(run.path("candidates", "00000.parquet")).to_pylist()
    prompts = pq.read_table(run.path("samples", "part-0.parquet")).to_pylist()
    assert len(rows) == record.rows == 40
    for i in range(40):
        assert rows.row(i)["target_ids"].tolist() == stored[i]["token_ids"]
        assert rows.row(i)["prompt_ids"].tolist() == prompts[i]["prompt_ids"]
    assert record.target_tokens == sum(len(row["token_ids"]) for row in stored)
    assert record.prompt_tokens == sum(rows.prompt_lengths)


def test_gold_begins_with_a_forced_first_token(run: RunDirectory, teacher: Path):
    plain, start = same(teacher), 3
    bare = [made(run, plain, "gold", CE)[1].row(i)["target_ids"].tolist() for i in range(20)]
    forced, rows = made(run, replace(plain, start=start), "gold", CE)
    assert [rows.row(i)["target_ids"].tolist() for i in range(20)] == [
        [start, *ids] for ids in bare
    ]
    stored, _ = made(run, plain, "pseudolabels", CE)
    verbatim, _ = made(run, replace(plain, start=start), "pseudolabels", CE)
    assert verbatim.target_tokens == stored.target_tokens
    assert forced.target_tokens == sum(map(len, bare)) + 20


@pytest.mark.parametrize("capture", ["top_k", "top_p", "sampled"])
def test_distributions_come_along(captured: Any, teacher: Path, capture: str):
    run = captured(capture)
    record, rows = made(run, same(teacher), "pseudolabels", KD)
    stored = pq.read_table(run.path("logits", "00000.parquet")).to_pylist()
    assert record.drawn == (capture == "sampled")
    for i in (0, 39):
        row = {name: values.tolist() for name, values in rows.row(i).items()}
        assert row["widths"] == (stored[i]["widths"] or [K] * stored[i]["n_tokens"])
        assert row["draws"] == [stored[i]["draws"] or 0]
        for name in ("token_logprobs", "topk_ids", "topk_logprobs", "tail_logprob", "counts"):
            assert row[name] == (stored[i][name] or [])


@pytest.mark.parametrize("capture", ["top_k", "top_p", "sampled"])
def test_a_batch_is_as_wide_as_its_widest_position(captured: Any, teacher: Path, capture: str):
    run = captured(capture)
    _, rows = made(run, same(teacher), "pseudolabels", KD)
    batch = collate(rows, [3, 0, 39], Layout(0), teacher=True)
    parts = [rows.row(i) for i in (3, 0, 39)]
    widths = np.concatenate([part["widths"] for part in parts])
    ids = np.split(np.concatenate([part["topk_ids"] for part in parts]), np.cumsum(widths)[:-1])
    mass = batch.teacher[1].exp() if capture != "sampled" else batch.teacher[1]
    assert batch.teacher.ids.shape == mass.shape == (len(batch.targets), widths.max())
    for got, weights, wanted in zip(batch.teacher.ids, mass, ids, strict=True):
        assert got[: len(wanted)].tolist() == wanted.tolist()
        assert (weights[: len(wanted)] > 0).all()
        assert (weights[len(wanted) :] == 0).all()
    whole = mass.sum(-1)
    if capture != "sampled":
        whole += batch.teacher.tail_logprob.exp()
    assert whole.tolist() == pytest.approx([1.0] * len(whole), abs=1e-5)


@pytest.mark.parametrize("precision", ["half", "compact"])
def test_every_precision_trains_as_the_view_tells_it(captured: Any, teacher: Path, precision: str):
    run = captured("top_p")
    path = run.path("logits", "00000.parquet")
    kept = stored(pq.read_table(path).select(LOGITS.names).cast(LOGITS), precision)
    pq.write_table(kept, path)
    rerecord(run, "logits")
    _, rows = made(run, same(teacher), "pseudolabels", KD)
    told = restored(kept).to_pylist()
    for i in (0, 39):
        assert rows.row(i)["topk_ids"].tolist() == told[i]["topk_ids"]
        assert rows.row(i)["widths"].tolist() == told[i]["widths"]
        wanted = pytest.approx(told[i]["topk_logprobs"], abs=1e-6)
        assert rows.row(i)["topk_logprobs"].tolist() == wanted


@pytest.mark.parametrize("k", [1, None])
def test_one_entry_and_the_whole_vocabulary_are_captures_too(
    tmp_path: Path, teacher: Path, k: int | None
):
    k = k or len(load_tokenizer(str(teacher)))
    run = student_run(tmp_path / "run", teacher, STUDENT, {"capture": "top_k", "k": k})
    _, rows = made(run, same(teacher), "pseudolabels", KD)
    batch = collate(rows, [0, 1], Layout(0), teacher=True)
    assert batch.teacher.ids.shape == (len(batch.targets), k)
    logits = torch.randn(len(batch.targets), 320, requires_grad=True)
    weights = Weights({"forward_kl": 1.0})
    values = per_token(logits, batch.targets, batch.teacher, batch.mask, weights)["forward_kl"]
    values.sum().backward()
    assert values.isfinite().all()
    assert logits.grad.isfinite().all()


def test_rows_may_differ_in_k(run: RunDirectory, teacher: Path):
    def narrow(rows: list[dict[str, Any]]) -> None:
        for row in rows[::2]:
            keep = [i for i in range(row["n_tokens"] * K) if i % K < 3]
            row["k"] = 3
            for name in ("topk_ids", "topk_logprobs"):
                row[name] = [row[name][i] for i in keep]

    change(run, "logits", narrow)
    _, rows = made(run, same(teacher), "pseudolabels", KD)
    batch = collate(rows, [0, 1], Layout(0), teacher=True)
    logits = torch.randn(len(batch.targets), 320)
    weights = Weights({"forward_kl": 1.0})
    parts = [collate(rows, [i], Layout(0), teacher=True) for i in (0, 1)]
    assert [part.teacher.ids.shape[1] for part in parts] == [3, K]
    cut = len(parts[0].targets)
    together = per_token(logits, batch.targets, batch.teacher, batch.mask, weights)["forward_kl"]
    alone = [
        per_token(some, part.targets, part.teacher, part.mask, weights)["forward_kl"]
        for some, part in zip((logits[:cut], logits[cut:]), parts, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_another_tokenizer_encodes_anew(run: RunDirectory):
    text = other()
    _, rows = made(run, text, "pseudolabels", CE)
    source, target = pairs()[7]
    assert rows.row(7)["target_ids"].tolist() == encode_targets(text.tokenizer, [target])[0]
    prompt = text.tokenizer.decode(rows.row(7)["prompt_ids"])
    assert prompt == f"<s>{source}<sep>"


def test_only_visible_gold_is_a_row(run: RunDirectory, teacher: Path):
    record, rows = made(run, same(teacher), "gold", CE)
    targets = [target for i, (_, target) in enumerate(pairs()[:40]) if i % 2 == 0]
    assert record.rows == 20
    encoded = encode_targets(load_tokenizer(str(teacher)), targets)
    assert [rows.row(i)["target_ids"].tolist() for i in range(20)] == encoded


def test_sql_does_not_see_hidden_gold_either(run: RunDirectory, teacher: Path):
    sql = "SELECT sample_id, source, gold AS target FROM samples WHERE split = 'train'"
    with pytest.raises(RunError, match="has no target"):
        made(run, same(teacher), sql, CE)
    record, _ = made(run, same(teacher), f"{sql} AND gold IS NOT NULL", CE)
    assert record.rows == 20


def test_sql_selects_rows(run: RunDirectory, teacher: Path):
    sql = "SELECT * FROM pseudolabels WHERE sample_id < 's05';"
    record, rows = made(run, same(teacher), sql, KD)
    assert record.rows == len(rows) == 5
    text = "SELECT sample_id, source, upper(source) AS target FROM samples WHERE sample_id = 's00'"
    _, rows = made(run, same(teacher), text, CE)
    decoded = load_tokenizer(str(teacher)).decode(rows.row(0)["target_ids"][:-1])
    assert decoded == pairs()[0][0].upper()


def test_rows_that_do_not_fit_are_counted(run: RunDirectory, teacher: Path):
    _, rows = made(run, same(teacher), "pseudolabels", CE)
    lengths = rows.prompt_lengths + rows.target_lengths
    context = int(sorted(lengths)[20])
    record, kept = made(run, same(teacher, context), "pseudolabels", CE)
    assert record.excluded == {"longer than the context": int((lengths > context).sum())}
    assert record.rows == len(kept) == int((lengths <= context).sum())
    with pytest.raises(RunError, match=r"no row can be used \(longer than the context: 40\)"):
        made(run, same(teacher, 3), "pseudolabels", CE)


def test_prepared_rows_stand_until_something_changes(run: RunDirectory, teacher: Path):
    path = run.path("student", "s", "data", "rows.arrow")
    made(run, same(teacher), "gold", CE)
    first = path.stat().st_mtime_ns
    made(run, same(teacher), "gold", CE, epochs=7)
    assert path.stat().st_mtime_ns == first
    made(run, same(teacher), "pseudolabels", CE)
    assert path.stat().st_mtime_ns > first


UPPER = "SELECT sample_id, source, upper(target) AS target FROM gold;"


def test_the_selections_of_a_mixture_lie_one_after_another(run: RunDirectory, teacher: Path):
    mixture = {"pseudolabels": 2.0, UPPER: 1.0, "gold": 1.0}
    record, rows = made(run, same(teacher), mixture, CE)
    assert record.portions == [40, 20, 20]
    assert rows.sample_ids().to_pylist()[38:42] == ["s38", "s39", "s00", "s02"]
    tokenizer = load_tokenizer(str(teacher))
    target = tokenizer.decode(rows.row(40)["target_ids"][:-1])
    assert target == tokenizer.decode(rows.row(60)["target_ids"][:-1]).upper() != ""
    path = run.path("student", "s", "data", "rows.arrow")
    first = path.stat().st_mtime_ns
    made(run, same(teacher), mixture | {"gold": 5.0}, CE)
    assert path.stat().st_mtime_ns == first


@pytest.mark.parametrize(
    ("data", "objective", "words"),
    [
        ("SELECT * FROM gold WHERE false", CE, ["s.data: 'SELECT * FROM gold", "gives no row"]),
        ("SELECT sample_id, target FROM gold", CE, ["s.data: 'SELECT", "source"]),
        ("gold", KD, ["student.stages.s.data.gold: sample s00", "has no stored distributions"]),
    ],
    ids=["no row", "no column", "no distributions"],
)
def test_a_selection_of_a_mixture_is_refused_by_name(
    run: RunDirectory, teacher: Path, data: str, objective: dict[str, float], words: list[str]
):
    with pytest.raises(RunError) as error:
        made(run, same(teacher), {"pseudolabels": 1.0, data: 1.0}, objective)
    assert all(word in str(error.value) for word in words), str(error.value)


def put(name: str, value: Any) -> Change:
    """Row 3 of a table with another value in a column, or another first entry of its list."""

    def edit(rows: list[dict[str, Any]]) -> None:
        if isinstance(rows[3][name], list) and not isinstance(value, list) and value is not None:
            rows[3][name][0] = value
        else:
            rows[3][name] = value

    return edit


def drop_last(name: str) -> Change:
    """Row 3 of a table with one entry fewer in a list."""
    return lambda rows: rows[3][name].pop()


def missing(rows: list[dict[str, Any]]) -> None:
    del rows[3]


ENTRIES = "sample s03 rank 0 does not hold as many entries as its k or widths say, and a tail"
OUTSIDE = "outside the student's vocabulary of 320: give it the teacher's vocab_size, or train on"
COUNTS = "sample s03 rank 0 does not count 20 draws for each of its tokens"
FAULTS: list[tuple[str, Change, str]] = [
    (
        "top_k",
        put("token_ids", 319),
        "s03 rank 0 has distributions of other tokens than its target's",
    ),
    ("top_k", drop_last("token_ids"), ENTRIES),
    ("top_k", drop_last("tail_logprob"), ENTRIES),
    ("top_k", drop_last("token_logprobs"), ENTRIES),
    ("top_k", drop_last("topk_ids"), ENTRIES),
    ("top_k", drop_last("topk_logprobs"), ENTRIES),
    ("top_k", put("topk_logprobs", None), ENTRIES),
    ("top_k", put("k", None), ENTRIES),
    ("top_k", put("k", K - 1), ENTRIES),
    ("top_k", put("topk_logprobs", float("nan")), "s03 rank 0 has a log-probability of nan"),
    ("top_k", put("tail_logprob", 0.5), "sample s03 rank 0 has a log-probability of 0.5"),
    ("top_k", put("token_logprobs", 0.5), "sample s03 rank 0 has a log-probability of 0.5"),
    ("top_k", missing, "sample s03 rank 0 has no stored distributions"),
    ("top_k", put("topk_ids", 320), f"sample s03 rank 0 has the token id 320, {OUTSIDE}"),
    ("top_k", put("topk_ids", -1), f"sample s03 rank 0 has the token id -1, {OUTSIDE}"),
    ("top_p", drop_last("widths"), ENTRIES),
    ("top_p", put("widths", 99), ENTRIES),
    ("top_p", put("widths", -1), ENTRIES),
    ("top_p", drop_last("topk_ids"), ENTRIES),
    ("sampled", drop_last("counts"), COUNTS),
    ("sampled", put("counts", 99), COUNTS),
    ("sampled", put("counts", None), COUNTS),
    ("sampled", put("draws", None), "sample s03 rank 0 mixes distributions that were sampled"),
]


@pytest.mark.parametrize(("capture", "edit", "message"), FAULTS)
def test_distributions_that_do_not_fit_are_refused(
    captured: Any, teacher: Path, capture: str, edit: Change, message: str
):
    run = captured(capture)
    change(run, "logits", edit)
    with pytest.raises(RunError) as caught:
        made(run, same(teacher), "pseudolabels", KD)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not run.path("student", "s", "data", "data.json").exists()


def test_what_is_refused_for_its_distributions_trains_on_text(run: RunDirectory, teacher: Path):
    change(run, "logits", missing)
    record, _ = made(run, same(teacher), "pseudolabels", CE)
    assert (record.rows, record.drawn) == (40, None)


def test_a_file_that_does_not_match_its_checksum_is_refused(run: RunDirectory, teacher: Path):
    path = run.path("logits", "00000.parquet")
    stored = pq.read_table(path)
    pq.write_table(stored, path, compression="none")
    with pytest.raises(DamagedFile, match=r"logits/00000\.parquet: does not match its SHA-256"):
        made(run, same(teacher), "pseudolabels", KD)


def test_prepared_rows_that_are_not_whole_are_prepared_again(run: RunDirectory, teacher: Path):
    folder = run.path("student", "s", "data")
    made(run, same(teacher), "pseudolabels", KD)
    whole = (folder / "rows.arrow").read_bytes()
    (folder / "rows.arrow").write_bytes(whole[:-100] + bytes(100))
    made(run, same(teacher), "pseudolabels", KD)
    assert (folder / "rows.arrow").read_bytes() == whole


@pytest.mark.parametrize("before", [False, True], ids=["anew", "prepared before"])
@pytest.mark.parametrize(
    ("objective", "unfit"),
    [({"reverse_kl": 1.0}, "reverse_kl"), ({"soft_ce": 1.0, "temperature": 2.0}, "temperature")],
)
def test_what_draws_do_not_tell_is_refused(
    captured: Any, teacher: Path, objective: dict[str, float], unfit: str, before: bool
):
    """Distributions may have come from another run than the manifest's capture tells of."""
    run = captured("sampled")
    if before:
        made(run, same(teacher), "pseudolabels", KD)
    with pytest.raises(RunError, match=rf"s\.objective: '?{unfit}'?: draws do not tell it"):
        made(run, same(teacher), "pseudolabels", objective)


@pytest.mark.parametrize(("head", "fits"), [(321, True), (1000, True), (320, True), (319, False)])
def test_a_head_need_only_cover_the_stored_ids(
    run: RunDirectory, teacher: Path, head: int, fits: bool
):
    """Teacher and student share a tokenizer of 320; either may pad its head with unused rows."""
    change(run, "logits", put("topk_ids", 319))
    stage = Stage.model_validate({"name": "s", "data": "pseudolabels", "objective": KD})
    asked = Wanted(stage, True, head)
    folder = run.path("student", "s", "data")
    if fits:
        assert prepare(run, asked, same(teacher), folder).rows == 40
        return
    with pytest.raises(RunError, match=f"has the token id 319, outside .* of {head}: give it"):
        prepare(run, asked, same(teacher), folder)


SELECTIONS = [
    ("SELECT * FROM pseudolabels WHERE false", CE, RunError, "the query gives no row"),
    ("SELECT sample_id, target FROM gold", CE, RunError, "lacks the column source"),
    ("SELECT sample_id, source FROM gold", CE, RunError, "lacks the column target"),
    ("SELECT sample_id, source, target FROM gold", KD, RunError, "lacks the column token_ids"),
    ("gold", KD, RunError, "sample s00 has no stored distributions"),
    ("SELECT 'x' AS sample_id, '' AS source, '' AS target", CE, RunError, "sample x is not in"),
    ("SELECT sample_id, source, gold AS target FROM samples WHERE split = 'test'", CE, RunError,
     "sample s44 is held out: its split is test"),
    ("SELECT sample_id, source, NULL::VARCHAR AS target FROM gold", CE, RunError, "has no target"),
    ("SELECT nonsense", CE, QueryError, "nonsense"),
    ("DROP VIEW gold", CE, QueryError, ""),
    ("SELECT * FROM read_csv('/etc/passwd')", CE, QueryError, ""),
]  # fmt: skip


@pytest.mark.parametrize(("data", "objective", "error", "message"), SELECTIONS)
def test_selections_that_cannot_be_trained_on(
    run: RunDirectory, teacher: Path, data, objective, error, message
):
    with pytest.raises(error) as caught:
        made(run, same(teacher), data, objective)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_distributions_of_another_tokenizer_are_refused(run: RunDirectory):
    with pytest.raises(RunError, match=r"forward_kl.*needs the teacher's tokenizer.*use ce alone"):
        made(run, other(), "pseudolabels", KD)


def test_a_row_above_the_budget_is_refused(run: RunDirectory, teacher: Path):
    with pytest.raises(RunError, match=r"s\.micro_batch_tokens: 9: a row has \d+ tokens: raise it"):
        made(run, same(teacher), "gold", CE, micro_batch_tokens=9)
