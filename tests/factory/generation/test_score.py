"""`seqkd score`: distributions of targets that exist are those of a plain forward pass."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from factory.errors import ManifestError, Told, UserError
from factory.looking.status import status
from factory.pipeline import run_steps
from factory.reading import load_manifest
from factory.records import RunDirectory
from factory.verify import verify
from tests.factory.engines.test_transformers_engine import load, plain_logprobs
from tests.factory.generation.test_generate import rows
from tests.models import manifest_tree, pairs, write_manifest_file

LOGITS = (
    "SELECT l.sample_id, s.source, l.origin, l.rank, l.n_tokens, l.k, l.token_ids, "
    "l.token_logprobs, l.topk_ids, l.topk_logprobs, l.tail_logprob "
    "FROM logits l JOIN samples s USING (sample_id)"
)
COUNTS = "SELECT origin, count(*) FROM logits GROUP BY ALL"


def write_rows(path: Path, count: int, **changed: object) -> Path:
    """JSONL rows with a gold target, and a field `other` in all but the last."""
    lines = [
        {"en": source, "fr": target, "other": f"{target} {source}"}
        for source, target in pairs(count)
    ]
    del lines[-1]["other"]
    lines[0] |= changed
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def manifest_of(folder: Path, teacher: Path, **sections: object) -> Path:
    """Twelve rows whose gold the student may see half of."""
    path = write_rows(folder / "rows.jsonl", 12)
    train = {"path": str(path), "source": "en", "target": "fr", "gold_fraction": 0.5}
    tree = manifest_tree(folder, teacher, data={"train": train}, **sections)
    tree["logits"] |= {"precision": "exact"}
    tree["generate"] |= {"shard_size": 5}
    if "student" not in sections:
        del tree["student"]
    return write_manifest_file(folder / "manifest.yaml", tree)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, tiny_llama) -> Path:
    return manifest_of(tmp_path_factory.mktemp("score"), tiny_llama)


def scored(root: Path, manifest: Path, *overrides: str, **options: object) -> RunDirectory:
    return run_steps(root, load_manifest(manifest, overrides), ("score",), **options)


@pytest.mark.parametrize(("target", "expected"), [("gold", 6), ("other", 11)])
def test_stored_distributions_are_those_of_a_forward_pass(
    manifest, tiny_llama, tmp_path, target, expected
):
    run = scored(tmp_path / "run", manifest, f"score.targets=[{target}]")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = LlamaForCausalLM.from_pretrained(tiny_llama).eval()
    texts = {s: t if target == "gold" else f"{t} {s}" for s, t in pairs(12)}
    found = rows(run.root, LOGITS)
    assert len(found) == expected
    for _, source, origin, rank, length, k, ids, realised, top_ids, tops, tail in found:
        assert (origin, rank, length, k) == (target, 0, len(ids), 4)
        assert ids == [*tokenizer(texts[source], add_special_tokens=False).input_ids, ids[-1]]
        assert ids[-1] == tokenizer.eos_token_id
        prompt = tokenizer(f"<s>{source}<sep>", add_special_tokens=False).input_ids
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)
        plain = logprobs.gather(-1, torch.tensor(ids)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(realised, plain, atol=1e-5)
        best = logprobs.topk(4)
        np.testing.assert_allclose(np.reshape(tops, (-1, 4)), best.values.numpy(), atol=1e-5)
        np.testing.assert_array_equal(np.reshape(top_ids, (-1, 4)), best.indices.numpy())
        rest = 1 - best.values.double().exp().sum(-1).numpy()
        np.testing.assert_allclose(np.exp(tail), rest, atol=1e-5)
    absent = {"gold": 6, "other": 1}[target]
    told = {target: {"scored": expected, "skipped": 0, "absent": absent}}
    assert run.step("score")["targets"] == told
    assert status(run)["scored"] == {target: expected}
    assert verify(run)["problems"] == []


def test_gold_is_scored_with_the_forced_first_token(manifest, tiny_llama, tmp_path):
    settings = ("score.targets=[gold]", "generate.first_token=<sep>")
    run = scored(tmp_path / "run", manifest, *settings)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    texts = dict(pairs(12))
    found = rows(run.root, LOGITS)
    assert len(found) == 6
    for _, source, _, _, _, _, ids, *_ in found:
        told = tokenizer(texts[source], add_special_tokens=False).input_ids
        assert ids == [tokenizer.sep_token_id, *told, tokenizer.eos_token_id]


def test_gold_out_of_sight_is_not_scored(manifest, tmp_path):
    run = scored(tmp_path / "run", manifest, "score.targets=[gold]")
    hidden = "SELECT sample_id FROM samples WHERE NOT gold_visible"
    assert rows(run.root, f"SELECT * FROM raw.logits SEMI JOIN ({hidden}) USING (sample_id)") == []


def test_what_is_scored_stands_and_the_rest_is_added(manifest, tmp_path):
    root, told = tmp_path / "run", {}
    scored(root, manifest, "score.targets=[gold]")
    parts = {path: path.stat().st_mtime_ns for path in root.glob("logits/*")}
    scored(root, manifest, "score.targets=[gold]", tell=told.__setitem__)
    assert told["score"] == "stands"
    run = scored(root, manifest, "score.targets=[other, gold]", tell=told.__setitem__)
    assert told["score"] == "done"
    assert rows(root, COUNTS) == [("gold", 6), ("other", 11)]
    assert parts.items() <= {p: p.stat().st_mtime_ns for p in root.glob("logits/*")}.items()
    # A shard lost to a kill is done again, and no other.
    run.path("scores", "00000.json").unlink()
    run.forget(("score",))
    run = scored(root, manifest, "score.targets=[other, gold]")
    assert rows(root, COUNTS) == [("gold", 6), ("other", 11)]
    assert run.step("score")["decoded_sources"] == 5


def test_changed_words_and_a_changed_teacher_are_scored_anew(tiny_llama, tmp_path):
    manifest = manifest_of(tmp_path, tiny_llama, score={"targets": ["other"]})
    root = tmp_path / "run"
    before = rows(scored(root, manifest).root, LOGITS)
    write_rows(tmp_path / "rows.jsonl", 12, other="un chat")
    after = rows(scored(root, manifest).root, LOGITS)
    assert len(after) == len(before)
    assert len(set(map(str, after)) - set(map(str, before))) == 1
    run = scored(root, manifest, "logits.k=3")
    assert {row[5] for row in rows(run.root, LOGITS)} == {3}


def test_a_target_too_long_is_skipped_once_and_counted(tiny_llama, tmp_path):
    manifest = manifest_of(tmp_path, tiny_llama, score={"targets": ["other"]})
    write_rows(tmp_path / "rows.jsonl", 12, other="the cat " * 40)
    run = scored(tmp_path / "run", manifest)
    counts = {"scored": 10, "skipped": 1, "absent": 1}
    assert run.step("score")["targets"] == {"other": counts}
    assert rows(run.root, COUNTS) == [("other", 10)]
    run.forget(("score",))
    assert "decoded_sources" not in scored(run.root, manifest).step("score")
    assert run.step("score")["targets"] == {"other": counts}


def test_targets_that_cannot_be_scored_are_one_line(manifest, tmp_path):
    with pytest.raises(ManifestError, match=r"score.targets: 'othr': .* did you mean 'other'"):
        scored(tmp_path / "a", manifest, "score.targets=[othr]")
    with pytest.raises(UserError, match=r"set score.targets to candidate, gold"):
        scored(tmp_path / "b", manifest)
    with pytest.raises(ManifestError, match=r"logits.capture keeps none: set it to top_k"):
        scored(tmp_path / "c", manifest, "score.targets=[gold]", "logits={capture: none}")
    with pytest.raises(UserError, match=r"score needs generate: seqkd generate first"):
        scored(tmp_path / "d", manifest, "score.targets=[candidate]")
    with pytest.raises((ManifestError, Told), match=r"no gold may be seen"):
        scored(tmp_path / "e", manifest, "score.targets=[gold]", "data.train.gold_fraction=0")


DRAWN = (
    "SELECT sample_id, origin, rank, token_ids, k, widths, topk_ids, topk_logprobs, tail_logprob, "
    "counts, draws, prompt FROM logits JOIN samples USING (sample_id) ORDER BY ALL"
)


def assert_drawn(teacher: Path, found: list[tuple], draws: int) -> None:
    """Draws of each position, all told; their log-probabilities are those of a forward pass."""
    tokenizer, model = AutoTokenizer.from_pretrained(teacher), load(teacher)
    for _, _, _, ids, k, widths, drawn, logprobs, tail, counts, told, prompt in found:
        assert (k, told, len(widths), len(tail)) == (None, draws, len(ids), len(ids))
        starts = np.cumsum(widths) - widths
        assert np.add.reduceat(counts, starts).tolist() == [draws] * len(ids)
        prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
        plain = plain_logprobs(model, prompt_ids, ids).numpy()
        expected = plain[np.repeat(np.arange(len(ids)), widths), drawn]
        np.testing.assert_allclose(logprobs, expected, atol=1e-4)
        rest = 1 - np.add.reduceat(np.exp(expected), starts)
        np.testing.assert_allclose(np.exp(tail), rest, atol=1e-5)


def test_draws_of_given_targets(manifest, tiny_llama, tmp_path):
    sampled = "logits={capture: sampled, draws: 9, precision: exact}"
    run = scored(tmp_path / "run", manifest, sampled, "score.targets=[gold, other]")
    found = rows(run.root, DRAWN)
    assert_drawn(tiny_llama, found, 9)
    origins = [row[1] for row in found]
    assert (origins.count("gold"), origins.count("other")) == (6, 11)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ctranslate2"), reason="no ctranslate2")
def test_draws_of_candidates_whose_engine_sees_no_distribution(tiny_t5, tmp_path):
    manifest = manifest_of(tmp_path, tiny_t5)
    sampled = ("teacher.engine=ctranslate2", "logits={capture: sampled, draws: 9}")
    loaded = load_manifest(manifest, (*sampled, "logits.precision=exact"))
    run = run_steps(tmp_path / "run", loaded, ("generate", "score"))
    found = rows(run.root, DRAWN)
    assert [row[1] for row in found] == ["candidate"] * 12
    assert_drawn(tiny_t5, found, 9)


@pytest.mark.skipif(not importlib.util.find_spec("ctranslate2"), reason="no ctranslate2")
def test_candidates_without_distributions_are_scored_and_trained_on(tiny_t5, tmp_path):
    stage = {
        "learning_rate": 1e-3,
        "batch_tokens": 512,
        "objective": {"ce": 0.5, "forward_kl": 0.5},
    }
    student = {
        "init": {"model": str(tiny_t5)},
        "stages": [
            {"name": "pseudolabel", "data": "pseudolabels", **stage},
            {"name": "gold", "data": "gold", **stage},
        ],
    }
    manifest = manifest_of(
        tmp_path, tiny_t5, student=student, score={"targets": ["gold"]}, judge={"rules": ["error"]}
    )
    told: dict[str, str] = {}
    engine = ("teacher.engine=ctranslate2", "evaluate.systems=[student]")
    loaded = load_manifest(manifest, engine)
    run = run_steps(tmp_path / "run", loaded, tell=told.__setitem__)
    assert {told[step] for step in ("generate", "score", "judge", "train")} == {"done"}
    assert rows(run.root, COUNTS) == [("candidate", 12), ("gold", 6)]
    check = run.step("score")["check"]
    assert (check["candidates"], check["skipped"]) == (12, 0)
    assert check["mean"] < 1e-4
    trained = {stage["stage"]: stage["rows"] for stage in run.stage_records()}
    assert trained == {"pseudolabel": 12, "gold": 6}
    assert [path.name for path in run.path("engine").iterdir()] != []
    again: dict[str, str] = {}
    run_steps(run.root, loaded, tell=again.__setitem__)
    assert set(again.values()) == {"stands"}
