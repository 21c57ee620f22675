"""log P(source | target) of a reverse model, against a plain forward pass of that model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from factory.errors import StepFailed, Told, UserError
from factory.files import TEMPORARY
from factory.judging import reverse
from factory.judging.judge import judge
from factory.judging.signals import check_signals, signal_keys
from factory.manifest import Manifest
from factory.query.catalog import connect
from factory.records import RunDirectory
from tests.models import TEMPLATE, pairs
from tests.runs import MANIFEST, add_samples, add_shard, make_run

LONG = " ".join(["cat"] * 80)


def a_run(root: Path, model: Path, **section: Any) -> RunDirectory:
    """Four sources with two candidates each: one pair twice, one failed, one too long."""
    asked = {"reverse": {"model": str(model), "template": TEMPLATE}, "rules": ["empty"]}
    run = make_run(root, judge=asked | section)
    rows = pairs(3)
    sources = [rows[0][0], rows[1][0], rows[2][0] + " </s>", rows[0][0]]
    add_samples(run, [{"sample_id": f"{i}", "source": source} for i, source in enumerate(sources)])
    texts = {
        ("0", 0): rows[0][1],
        ("0", 1): rows[1][1],
        ("1", 0): rows[1][1],
        ("1", 1): LONG,
        ("2", 0): "<sep> " + rows[2][1],
        ("2", 1): None,
        ("3", 0): rows[0][1],
        ("3", 1): "",
    }
    for shard, ids in enumerate(("01", "23")):
        add_shard(run, shard, [_row(*key, t) for key, t in texts.items() if key[0] in ids])
    return run


def _row(sample_id: str, rank: int, text: str | None) -> dict[str, Any]:
    told = {"text": text} if text is not None else {"text": None, "error": "failed"}
    return {"sample_id": sample_id, "rank": rank, **told}


def here(run: RunDirectory, step: str, command: list[str], lock: int) -> None:
    """The worker's work, in this process: starting another takes seconds."""
    del step, lock
    reverse.score_pairs(run, command[-1])


def signals(run: RunDirectory) -> dict[tuple[str, int], tuple[str, str | None, float | None]]:
    with connect(run) as connection:
        rows = connection.execute(
            "SELECT sample_id, rank, source, text, reverse_logprob FROM signals"
            " JOIN samples USING (sample_id) JOIN candidates USING (sample_id, rank)"
        ).fetchall()
    return {(row[0], row[1]): row[2:] for row in rows}


def plain(model: Any, tokenizer: Any, text: str, source: str) -> float:
    """Mean log-probability of the source's tokens and its end after the prompt, one pair alone."""
    spelled = {"split_special_tokens": True, "add_special_tokens": False}
    body = tokenizer(text, **spelled)["input_ids"]
    prompt = [tokenizer.bos_token_id, *body, tokenizer.convert_tokens_to_ids("<sep>")]
    target = [*tokenizer(source, **spelled)["input_ids"], tokenizer.eos_token_id]
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            labels = torch.tensor([target])
            logits = model(input_ids=torch.tensor([prompt]), labels=labels).logits[0]
        else:
            logits = model(input_ids=torch.tensor([prompt + target])).logits[
                0, len(prompt) - 1 : -1
            ]
    logprobs = logits.double().log_softmax(-1)
    return float(logprobs[range(len(target)), target].mean())


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_t5"])
def test_scores_are_those_of_a_plain_forward_pass(tmp_path, request, monkeypatch, kind):
    folder = request.getfixturevalue(kind)
    if kind == "tiny_t5":
        monkeypatch.setattr(reverse, "run_worker", here)
    run = a_run(tmp_path / "run", folder)
    judge(run, "judge-key")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    auto = AutoModelForSeq2SeqLM if kind == "tiny_t5" else AutoModelForCausalLM
    model = auto.from_pretrained(folder).eval()
    found = signals(run)
    unfit = {("2", 1)} | ({("1", 1)} if kind == "tiny_llama" else set())  # T5 knows no end
    assert {key for key, row in found.items() if row[2] is None} == unfit
    for key in found.keys() - unfit:
        source, text, scored = found[key]
        assert scored == pytest.approx(plain(model, tokenizer, text or "", source), abs=1e-4)
    assert found["0", 0] == found["3", 0]
    assert not list(run.path("signals").glob(".reverse-*"))


def test_equal_pairs_are_scored_once(tmp_path, tiny_llama, monkeypatch):
    run = a_run(tmp_path / "run", tiny_llama)
    planned = []

    def look(run: RunDirectory, step: str, command: list[str], lock: int) -> None:
        planned.append(pq.read_table(Path(command[-1], reverse.PLAN)))
        here(run, step, command, lock)

    monkeypatch.setattr(reverse, "run_worker", look)
    judge(run, "judge-key")
    [plan] = planned
    texts = list(zip(plan["source"].to_pylist(), plan["text"].to_pylist(), strict=True))
    assert len(texts) == len(set(texts)) == 6
    lengths = [len(source) + len(text) for source, text in texts]
    assert lengths == sorted(lengths, reverse=True)


def test_other_rules_score_nothing_anew(tmp_path, tiny_llama, monkeypatch):
    run = a_run(tmp_path / "run", tiny_llama)
    sittings = []

    def counted(run: RunDirectory, step: str, command: list[str], lock: int) -> None:
        sittings.append(step)
        here(run, step, command, lock)

    monkeypatch.setattr(reverse, "run_worker", counted)
    judge(run, "judge-key")
    before = signals(run)
    a_run(run.root, tiny_llama, rules=[{"length_ratio": {"max": 3.0}}])
    judge(run, "other-key")
    assert sittings == ["reverse"]
    assert signals(run) == before


def test_what_was_scored_is_not_scored_again(tmp_path, tiny_llama, monkeypatch):
    """The second portion's part is lost: nothing is recorded, and that portion is scored alone."""
    monkeypatch.setattr(reverse, "PORTION", 2)
    run = a_run(tmp_path / "run", tiny_llama)

    def die(run: RunDirectory, step: str, command: list[str], lock: int) -> None:
        here(run, step, command, lock)
        Path(command[-1], "part-00001.parquet").unlink()
        raise StepFailed("died")

    monkeypatch.setattr(reverse, "run_worker", die)
    with pytest.raises(StepFailed):
        judge(run, "judge-key")
    assert not run.step("judge")
    assert not list(run.path("signals").rglob("reverse.parquet"))
    [folder] = run.path("signals").glob(".reverse-*")
    parts = sorted(folder.glob("part-*.parquet"))
    assert [part.name for part in parts] == ["part-00000.parquet", "part-00002.parquet"]
    killed = folder.with_name("key") / f"reverse.unsorted{TEMPORARY}"
    killed.parent.mkdir()
    killed.touch()
    # What stands is believed: a score that no model gives comes out of it.
    told = pq.read_table(parts[0])
    pq.write_table(told.set_column(1, "reverse_logprob", [[-9.0] * len(told)]), parts[0])
    monkeypatch.setattr(reverse, "run_worker", here)
    judge(run, "judge-key")
    scores = [row[2] for row in signals(run).values()]
    assert scores.count(-9.0) == len(told)
    assert scores.count(None) == 1
    assert not killed.exists()
    assert not list(run.path("signals").glob(".reverse-*"))


def test_a_model_that_cannot_be_loaded_leaves_nothing(tmp_path, tiny_llama):
    broken = Path(shutil.copytree(tiny_llama, tmp_path / "broken"))
    (broken / "model.safetensors").unlink()
    run = a_run(tmp_path / "run", broken)
    with pytest.raises(Told, match=r"^judge\.reverse\.model: .*broken.*cannot be loaded") as caught:
        judge(run, "judge-key")
    assert caught.value.exit_status == 2
    assert not run.step("judge")
    assert not list(run.path("signals").rglob(f"*{TEMPORARY}"))


def test_what_the_score_hangs_on_is_in_the_key(tmp_path, tiny_llama, tiny_t5):
    run = a_run(tmp_path / "run", tiny_llama)

    def key(**changed: str) -> str | None:
        section = {"model": str(tiny_llama), "template": TEMPLATE} | changed
        judged = {"rules": [{"length_ratio": {"max": 3.0}}], "reverse": section}
        manifest = Manifest.model_validate(MANIFEST | {"judge": judged})
        return signal_keys(run, manifest)["reverse"]

    before = signal_keys(run, run.manifest())["reverse"]
    assert key() == before
    moved = shutil.copytree(tiny_llama, tmp_path / "moved")
    assert key(model=str(moved)) == before
    others = [{"template": "{source}<sep>"}, {"dtype": "bfloat16"}, {"model": str(tiny_t5)}]
    assert len({before, *(key(**other) for other in others)}) == 4


def test_without_a_reverse_model_there_is_no_score(tmp_path):
    run = make_run(tmp_path / "run")
    add_samples(run, [{"sample_id": "0", "source": "a"}])
    add_shard(run, 0, [{"sample_id": "0", "text": "b"}])
    judge(run, "judge-key")
    assert signals(run) == {("0", 0): ("a", "b", None)}
    assert "reverse" not in signal_keys(run, run.manifest())


def test_candidates_without_any_text(tmp_path, tiny_llama):
    section = {"model": str(tiny_llama), "template": TEMPLATE}
    run = make_run(tmp_path / "run", judge={"reverse": section})
    add_samples(run, [{"sample_id": "0", "source": "a"}])
    add_shard(run, 0, [_row("0", 0, None)])
    judge(run, "judge-key")
    assert signals(run) == {("0", 0): ("a", None, None)}


MISTAKES = {
    "no folder": ({"model": "/nowhere"}, "judge.reverse.model: '/nowhere': holds no config.json"),
    "no source": (
        {"template": "{text}"},
        "judge.reverse.template: '{text}': holds the candidate's",
    ),
    "a field": ({"template": "{source}{x}"}, "judge.reverse.template: '{source}{x}': holds"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_reverse_model_that_is_wrong(name, tiny_llama):
    section, words = MISTAKES[name]
    judged = {"reverse": {"model": str(tiny_llama), "template": TEMPLATE} | section}
    with pytest.raises(UserError) as caught:
        check_signals(Manifest.model_validate(MANIFEST | {"judge": judged}))
    assert str(caught.value).startswith(words)
