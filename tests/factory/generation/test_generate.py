"""Generation jobs: killed anywhere, they end with the candidates of an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factory.engines import Result
from factory.engines.transformers import TransformersEngine
from factory.errors import PromptError, RunError, StepFailed
from factory.generation.generate import engine_options, fill_shards, plan_generation
from factory.pipeline import run_steps
from factory.query.catalog import connect
from factory.reading import load_manifest
from factory.records import RunDirectory
from factory.verify import verify
from tests.models import manifest_tree, write_manifest_file

ROWS = (
    "SELECT sample_id, rank, text, token_ids, finish_reason, error, round(score, 4) FROM candidates"
)
LOGITS = "SELECT sample_id, rank, n_tokens, k, token_ids, topk_ids FROM logits"
COLUMNS = "SELECT sample_id, count(*) FROM candidates GROUP BY ALL HAVING count(*) <> 1"


def seqkd(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "factory.cli", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def generated(root: Path, manifest: Path, *overrides: str, fresh: bool = False) -> RunDirectory:
    """Bring the generation of a run up to date; its worker is a process of its own."""
    return run_steps(root, load_manifest(manifest, overrides), ("generate",), fresh=fresh)


def rows(root: Path, sql: str = ROWS) -> list[tuple[Any, ...]]:
    """Rows of a run, in a fixed order."""
    with connect(RunDirectory(root)) as database:
        return sorted(database.execute(sql).fetchall(), key=str)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, tiny_llama) -> Path:
    folder = tmp_path_factory.mktemp("job")
    tree = manifest_tree(
        folder,
        tiny_llama,
        generate={
            "max_new_tokens": {"ratio": 1.0, "plus": 2, "cap": 16},
            "shard_size": 16,
            "window": 8,
        },
    )
    tree["teacher"]["options"] = {"batch_size": 4}
    del tree["student"]
    return write_manifest_file(folder / "manifest.yaml", tree)


@pytest.fixture(scope="module")
def undisturbed(manifest, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    return generated(root, manifest).root


def test_every_source_has_its_candidate(undisturbed):
    assert len(rows(undisturbed)) == 60
    assert rows(undisturbed, COLUMNS) == []
    assert len(rows(undisturbed, LOGITS)) == 60
    record = RunDirectory(undisturbed).step("generate")
    assert (record["shards"], record["candidates"], record["errors"]) == (4, 60, 0)


def test_parts_carry_the_signature_of_the_run(undisturbed):
    import pyarrow.parquet as pq

    run = RunDirectory(undisturbed)
    for file in run.files("candidates") + run.files("logits"):
        signature = json.loads(pq.read_schema(run.path(file["path"])).metadata[b"seqkd.signature"])
        assert signature["key"] == run.step("generate")["key"]
        assert signature["teacher"]["fingerprint"] == run.record()["teacher"]["fingerprint"]


@pytest.mark.parametrize(
    "shards_before_kill",
    [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow), 3],
)
def test_killed_at_any_point_it_ends_with_the_same_candidates(
    manifest, undisturbed, tmp_path, shards_before_kill
):
    root = tmp_path / "run"
    process = seqkd("generate", manifest, "--run-dir", root)
    deadline = time.monotonic() + 120
    while len(list(root.glob("shards/*.json"))) < shards_before_kill or not root.is_dir():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = generated(root, manifest)
    assert rows(root) == rows(undisturbed)
    assert rows(root, LOGITS) == rows(undisturbed, LOGITS)
    assert not list(root.rglob("*.tmp"))
    assert verify(run)["problems"] == []


class Warm(TransformersEngine):
    """An engine at fault: what it tells of decoded tokens is of another temperature."""

    def step(self) -> list[Result]:
        return [
            replace(r, hypotheses=[replace(h, token_logprobs=h.token_logprobs / 2) for h in found])
            if r.key.count(":") == 1 and (found := r.hypotheses)
            else r
            for r in super().step()
        ]


def test_an_engine_at_fault_is_stopped_before_its_first_shard_is_kept(
    manifest, undisturbed, tmp_path
):
    run = RunDirectory(Path(shutil.copytree(undisturbed, tmp_path / "run")))
    for folder in ("shards", "candidates", "logits"):
        shutil.rmtree(run.path(folder))
    assert plan_generation(run) == 60
    engine = Warm(engine_options(run, run.manifest()))
    with pytest.raises(StepFailed, match=r"generate\.check: 16 candidates scored anew"):
        fill_shards(run, engine, "key")
    assert not list(run.path("shards").glob("*.json"))
    assert not list(run.path("candidates").iterdir())


def test_a_second_run_does_nothing_again(manifest, undisturbed):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.glob("candidates/*.parquet")}
    generated(undisturbed, manifest)
    assert before == {p: p.stat().st_mtime_ns for p in undisturbed.glob("candidates/*.parquet")}


def test_appended_sources_cost_only_their_own_generation(manifest, undisturbed, tmp_path):
    tree = json.loads(manifest.read_text())
    train = tree["data"]["train"]
    for key, line in (("source", "the king sees no road"), ("target", "le roi voit aucun chemin")):
        longer = tmp_path / f"train.{key}"
        longer.write_text(Path(train[key]).read_text() + f"{line}\n")
        train[key] = str(longer)
    appended = write_manifest_file(tmp_path / "manifest.yaml", tree)
    run = generated(undisturbed, appended)
    assert run.step("generate")["decoded_sources"] == 1
    assert len(rows(undisturbed)) == 61
    generated(undisturbed, manifest)  # and back: the row stays, unseen
    assert len(rows(undisturbed)) == 60


def test_other_decoding_asks_before_it_throws_away(manifest, tmp_path):
    root, shorter = tmp_path / "run", "generate.max_new_tokens=3"
    generated(root, manifest)
    with pytest.raises(RunError, match=r"60 candidates .* --fresh"):
        generated(root, manifest, shorter)
    assert len(rows(root)) == 60
    generated(root, manifest, shorter, fresh=True)
    assert {len(row[3]) for row in rows(root)} <= {1, 2, 3}


def test_candidates_from_another_run_are_taken_over(manifest, undisturbed, tmp_path):
    taken = f"candidates_from={undisturbed}"
    run = generated(tmp_path / "run", manifest, taken)
    assert rows(run.root) == rows(undisturbed)
    with pytest.raises(RunError, match="other settings"):
        generated(tmp_path / "other", manifest, taken, "generate.max_new_tokens=3")


def test_rows_that_do_not_fit_are_error_rows_and_the_job_goes_on(manifest, tmp_path):
    tree = json.loads(manifest.read_text())
    sources = tmp_path / "long.en"
    sources.write_text("the cat sees the dog\n" + "the cat " * 40 + "\n")
    tree["data"] = {"unlabeled": {"source": str(sources)}}
    mixed = write_manifest_file(tmp_path / "mixed.yaml", tree)
    generated(tmp_path / "mixed", mixed)
    [failed] = [row for row in rows(tmp_path / "mixed") if row[5]]
    assert failed[1] == 0
    assert failed[2] is None
    assert "does not fit the context of 64" in failed[5]
    sources.write_text("the cat " * 40 + "\n")
    with pytest.raises(PromptError, match="not one of 1 sources") as raised:
        generated(tmp_path / "none", mixed)
    assert raised.value.exit_status == 2


def test_a_damaged_shard_is_told_by_verify(undisturbed, tmp_path):
    run = RunDirectory(Path(shutil.copytree(undisturbed, tmp_path / "run")))
    part = run.path("candidates", "00001.parquet")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    [problem] = verify(run)["problems"]
    assert "00001.parquet" in str(problem)


def test_real_vllm_killed_and_resumed(manifest, undisturbed, tmp_path):
    root = tmp_path / "run"
    engine = ("teacher.engine=vllm", "teacher.options={}")
    process = seqkd("generate", manifest, "--run-dir", root, *(f"--set={s}" for s in engine))
    while not list(root.glob("shards/*.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    generated(root, manifest, *engine)
    texts = "SELECT sample_id, rank, text, token_ids, finish_reason FROM candidates"
    assert rows(root, texts) == rows(undisturbed, texts)
