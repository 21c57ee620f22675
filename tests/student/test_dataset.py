"""Preparation of a stage: what is kept verbatim, what is counted, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.errors import DamagedFile, QueryError, RunError
from factory.files import write_json
from factory.manifest import Prompt, Stage, TrainTokenizer
from factory.records import RunDirectory
from factory.shards import record_file
from factory.tokenizing import encode_targets, load_tokenizer, tokenizer_fingerprint
from student.dataset import DataRecord, StageRows, Text, prepare
from student.rows import Wanted
from student.tokenizers import train_tokenizer
from tests.student.tiny import TEMPLATE, K, pairs, save_teacher, student_run

STUDENT = {"init": {"from_teacher": {"layers": 1}}}
KD = {"ce": 0.5, "forward_kl": 0.5}
CE = {"ce": 1.0}
Change = Callable[[list[dict[str, Any]]], None]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("dataset") / "teacher")


@pytest.fixture
def run(tmp_path: Path, teacher: Path) -> RunDirectory:
    return student_run(tmp_path / "run", teacher, STUDENT)


def same(teacher: Path, context: int | None = 64) -> Text:
    tokenizer = load_tokenizer(str(teacher))
    prompt = Prompt(template=TEMPLATE)
    return Text(tokenizer, prompt, tokenizer_fingerprint(tokenizer), True, context)


def other(context: int = 64) -> Text:
    tokenizer = train_tokenizer((s for s, _ in pairs()), TrainTokenizer(vocab_size=300))
    prompt = Prompt(template=TEMPLATE)
    return Text(tokenizer, prompt, tokenizer_fingerprint(tokenizer), False, context)


def wanted(data: str, objective: dict[str, float], **more: Any) -> Wanted:
    stage = Stage.model_validate({"name": "s", "data": data, "objective": objective, **more})
    return Wanted(stage, stage.objective.forward_kl > 0, 320)


def made(
    run: RunDirectory, text: Text, data: str, objective: dict[str, float], **more: Any
) -> tuple[DataRecord, StageRows]:
    folder = run.path("student", "s", "data")
    record = prepare(run, wanted(data, objective, **more), text, folder)
    return record, StageRows(folder)


def change(run: RunDirectory, table: str, edit: Change) -> None:
    """Rewrite a part of shard 0 as if it had been generated so."""
    path = run.path(table, "00000.parquet")
    stored = pq.read_table(path)
    rows = stored.to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=stored.schema), path)
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


def test_distributions_come_along(run: RunDirectory, teacher: Path):
    _, rows = made(run, same(teacher), "pseudolabels", KD)
    stored = pq.read_table(run.path("logits", "00000.parquet")).to_pylist()
    for i in (0, 39):
        row = rows.row(i)
        assert row["k"].tolist() == [K]
        assert row["topk_ids"].tolist() == stored[i]["topk_ids"]
        assert row["topk_logprobs"].tolist() == stored[i]["topk_logprobs"]
        assert row["tail_logprob"].tolist() == stored[i]["tail_logprob"]


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


def other_tokens(rows: list[dict[str, Any]]) -> None:
    rows[3]["token_ids"][0] += 1


def short_tail(rows: list[dict[str, Any]]) -> None:
    rows[3]["tail_logprob"].pop()


def short_top(rows: list[dict[str, Any]]) -> None:
    rows[3]["topk_ids"].pop()


def ragged(rows: list[dict[str, Any]]) -> None:
    rows[3]["k"] = None


def missing(rows: list[dict[str, Any]]) -> None:
    del rows[3]


def foreign(rows: list[dict[str, Any]]) -> None:
    rows[3]["topk_ids"][0] = 320


FAULTS: list[tuple[Change, str]] = [
    (other_tokens, "sample s03 rank 0 has distributions of other tokens than its target's"),
    (short_tail, "sample s03 rank 0 does not have k entries and a tail"),
    (short_top, "sample s03 rank 0 does not have k entries and a tail"),
    (ragged, "sample s03 rank 0 has ragged distributions"),
    (missing, "sample s03 rank 0 has no stored distributions"),
    (foreign, "sample s03 rank 0 has token ids outside the student's vocabulary of 320"),
]


@pytest.mark.parametrize(("edit", "message"), FAULTS)
def test_distributions_that_do_not_fit_are_refused(
    run: RunDirectory, teacher: Path, edit: Change, message: str
):
    change(run, "logits", edit)
    with pytest.raises(RunError) as caught:
        made(run, same(teacher), "pseudolabels", KD)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not run.path("student", "s", "data", "data.json").exists()
    made(run, same(teacher), "pseudolabels", CE)


def test_a_file_that_does_not_match_its_checksum_is_refused(run: RunDirectory, teacher: Path):
    path = run.path("logits", "00000.parquet")
    stored = pq.read_table(path)
    pq.write_table(stored, path, compression="none")
    with pytest.raises(DamagedFile, match="SHA-256"):
        made(run, same(teacher), "pseudolabels", KD)


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
    with pytest.raises(RunError, match=r"forward_kl.*needs the teacher's tokenizer"):
        made(run, other(), "pseudolabels", KD)


def test_a_row_above_the_budget_is_refused(run: RunDirectory, teacher: Path):
    with pytest.raises(RunError, match=r"s\.micro_batch_tokens: 9: a row has \d+ tokens: raise it"):
        made(run, same(teacher), "gold", CE, micro_batch_tokens=9)
