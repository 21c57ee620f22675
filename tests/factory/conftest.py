"""One finished run made by hand, shared by the tests of what looks at runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from factory.judging.judge import judge
from factory.records import RunDirectory
from tests.runs import add_samples, add_shard, add_stage, finish_evaluate, finish_generate, make_run

NASTY = "a | b <b>*c*</b> `d`\n[e](f) \x1b[31m"


@pytest.fixture
def finished(tmp_path: Path, pristine: RunDirectory) -> RunDirectory:
    """A copy that a test may damage."""
    return RunDirectory(Path(shutil.copytree(pristine.root, tmp_path / "finished")))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = make_run(
        tmp_path_factory.mktemp("runs") / "pristine",
        license="cc-by-4.0",
        languages=["en", "fr"],
        student={"init": {"model": "some/student"}},
    )
    train = [{"sample_id": f"{i:02d}", "source": f"one two {i}"} for i in range(20)]
    train[0] |= {"source": NASTY}
    train[1] |= {"gold": "seen", "gold_visible": True}
    train[2] |= {"gold": "unseen", "gold_visible": False}
    test = [{"sample_id": "t0", "source": "three", "split": "test", "gold": "trois"}]
    refused = [{"file": "train.tsv", "line": 3, "reason": "empty source"}]
    add_samples(run, train + test, refused)
    targets = [f"un deux {i}" for i in range(20)]
    targets[0], targets[5] = NASTY + " et", "un"
    rows = [
        {"sample_id": f"{i:02d}", "text": text, "mean_logprob": -i / 10, "score": -i / 10}
        for i, text in enumerate(targets)
    ]
    rows[7] |= {"finish_reason": "length"}
    rows[9] = {"sample_id": "09", "error": "does not fit"}
    rows.append({"sample_id": "05", "rank": 1, "text": "un deux cinq"})
    add_shard(run, 0, rows[:10])
    add_shard(run, 1, rows[10:])
    finish_generate(run)
    judge(run, "judge-key")
    log = [
        {"step": i, "stage_step": i, "loss": 4.0 - i, "tokens": 10, "tokens_per_second": 5.0}
        for i in range(3)
    ]
    add_stage(run, "pseudolabel", log, epochs=2, best_epoch=1, metric="chrf", rows=17)
    add_stage(run, "gold", [row | {"step": row["step"] + 3} for row in log], epochs=2, rows=1)
    score = {"system": "student", "stage": "gold", "split": "test", "metric": "bleu"}
    folds = [score | {"fold": fold, "score": 20.0 + fold} for fold in range(5)]
    said = [{"system": "student", "stage": "gold", "split": "test", "sample_id": "t0", "text": "x"}]
    finish_evaluate(run, [score | {"score": 21.5}, *folds], said)
    return run
