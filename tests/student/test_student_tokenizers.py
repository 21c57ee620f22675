"""A tokenizer trained on the run's text, and the four places one can come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import RunError
from factory.prompting.tokenizing import (
    decode_targets,
    encode_targets,
    load_tokenizer,
    tokenizer_fingerprint,
)
from factory.training import TrainTokenizer
from student.plan import student_of
from student.tokenizers import student_tokenizer, train_tokenizer, training_text
from tests.student.tiny import pairs, save_teacher, student_run

TRAINED = train_tokenizer(
    (text for pair in pairs() for text in pair), TrainTokenizer(vocab_size=300)
)


def test_special_tokens_have_their_ids_and_roles():
    assert TRAINED.convert_tokens_to_ids(["<pad>", "<s>", "</s>", "<sep>"]) == [0, 1, 2, 3]
    assert (TRAINED.pad_token_id, TRAINED.bos_token_id, TRAINED.eos_token_id) == (0, 1, 2)
    assert TRAINED.sep_token == "<sep>"
    assert len(TRAINED) <= 300


def test_it_adds_no_special_token_by_itself(tmp_path: Path):
    TRAINED.save_pretrained(tmp_path)
    for tokenizer in (TRAINED, load_tokenizer(str(tmp_path))):
        ids = tokenizer("the dog")["input_ids"]
        assert ids
        assert not set(ids) & {0, 1, 2, 3}
        assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(TRAINED)


@given(st.text())
def test_decoding_gives_the_text_back(text: str):
    assert decode_targets(TRAINED, encode_targets(TRAINED, [text])) == [text]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("tokenizers") / "teacher")


LLAMA = {"model_type": "llama"}
ORIGINS: list[tuple[dict[str, Any], bool]] = [
    ({"from_teacher": {"layers": 1}}, True),
    ({"config": LLAMA}, True),
    ({"config": LLAMA, "tokenizer": {"train": {"vocab_size": 300}}}, False),
    ({"config": LLAMA, "tokenizer": {"model": "TEACHER"}}, True),
    ({"model": "TEACHER"}, True),
]


@pytest.mark.parametrize(("init", "same"), ORIGINS)
def test_origins(tmp_path: Path, teacher: Path, init: dict[str, Any], same: bool):
    if init.get("model"):
        init = {"model": str(teacher)}
    elif init.get("tokenizer", {}).get("model"):
        init = {**init, "tokenizer": {"model": str(teacher)}}
    run = student_run(tmp_path / "run", teacher, {"init": init})
    manifest = run.manifest()
    tokenizer = student_tokenizer(run, manifest, student_of(manifest))
    wanted = tokenizer_fingerprint(load_tokenizer(str(teacher)))
    assert (tokenizer_fingerprint(tokenizer) == wanted) is same


def test_only_what_the_student_may_see_is_trained_on(tmp_path: Path, teacher: Path):
    run = student_run(tmp_path / "run", teacher, {"init": {"from_teacher": {"layers": 1}}})
    rows = pairs()
    wanted = [s for s, _ in rows[:40]] + [t for i, (_, t) in enumerate(rows[:40]) if i % 2 == 0]
    assert sorted(training_text(run)) == sorted(wanted)


def test_no_tokenizer_at_all_is_a_mistake(tmp_path: Path, teacher: Path):
    stages = [{"name": "gold", "data": "gold"}]
    run = student_run(tmp_path / "run", teacher, {"init": {"config": LLAMA}, "stages": stages})
    manifest = run.manifest().model_copy(update={"teacher": None})
    with pytest.raises(RunError, match=r"add tokenizer: \{train"):
        student_tokenizer(run, manifest, student_of(manifest))
